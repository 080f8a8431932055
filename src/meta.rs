//! What buffers carry of where they come from, beside their timestamps.

use std::sync::Once;

use crate::properties::parse_caps;
use cuframes::{PacketId, ReferenceTimestamp};

/// A GstCustomMeta on frames and packets: which packet this is, or was decoded from. Its structure has
/// `track` (uint) and `seq` (uint64), which counts the packets of a track from 0 in one life of a
/// publisher.
const PACKET: &str = "GstCuframesPacketMeta";

pub fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Without tags: it stays true whatever is done to the pixels. Another copy of this plugin in the
        // process may have registered it.
        if !gst::meta::CustomMeta::is_registered(PACKET) {
            gst::meta::CustomMeta::register_simple(PACKET);
        }
    });
}

/// Marks the buffer as coming from the packet.
pub fn add_packet(buffer: &mut gst::BufferRef, packet: PacketId) {
    if let Ok(mut meta) = gst::meta::CustomMeta::add(buffer, PACKET) {
        let structure = meta.mut_structure();
        structure.set("track", packet.track);
        structure.set("seq", packet.seq);
    }
}

/// The times of a buffer on other clocks.
pub fn references(buffer: &gst::BufferRef) -> Vec<ReferenceTimestamp> {
    let reference = |meta: gst::MetaRef<'_, gst::ReferenceTimestampMeta>| ReferenceTimestamp {
        clock: meta.reference().to_string().into(),
        timestamp: meta.timestamp().nseconds(),
        duration: meta.duration().map(|d| d.nseconds()),
    };
    buffer.iter_meta().map(reference).collect()
}

pub fn add_references(buffer: &mut gst::BufferRef, references: &[ReferenceTimestamp]) {
    for reference in references {
        // What is no caps here is of no use to anybody here.
        let Some(clock) = parse_caps(&reference.clock) else { continue };
        // The largest number is no time, which another process may say all the same.
        let time = |ns: u64| (ns < u64::MAX).then(|| gst::ClockTime::from_nseconds(ns));
        let Some(timestamp) = time(reference.timestamp) else { continue };
        let duration = reference.duration.and_then(time);
        gst::ReferenceTimestampMeta::add(buffer, &clock, timestamp, duration);
    }
}
