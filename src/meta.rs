// SPDX-License-Identifier: LGPL-2.1-or-later
//! Metadata of buffers that crosses processes: packet identities and reference timestamps.

use std::sync::Once;

use crate::caps::parse_caps;
use cuframes::{PacketId, ReferenceTimestamp};

/// GstCustomMeta that names a packet: on the packet itself, and on frames decoded from it.
///
/// Its structure has `track` (uint) and `seq` (uint64). `seq` counts the packets of a track from 0
/// for each start of a publisher.
const PACKET: &str = "GstCuframesPacketMeta";

/// Registers the meta with GStreamer.
pub(crate) fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Registered without tags, because it stays true for every change of the pixels. Another copy
        // of this plugin in the process may have registered it already.
        if !gst::meta::CustomMeta::is_registered(PACKET) {
            gst::meta::CustomMeta::register_simple(PACKET);
        }
    });
}

/// Attaches the identity of `packet` to the buffer.
pub(crate) fn add_packet(buffer: &mut gst::BufferRef, packet: PacketId) {
    if let Ok(mut meta) = gst::meta::CustomMeta::add(buffer, PACKET) {
        let structure = meta.mut_structure();
        structure.set("track", packet.track);
        structure.set("seq", packet.seq);
    }
}

/// Returns the reference timestamps of a buffer: its times on other clocks.
pub(crate) fn references(buffer: &gst::BufferRef) -> Vec<ReferenceTimestamp> {
    let reference = |meta: gst::MetaRef<'_, gst::ReferenceTimestampMeta>| ReferenceTimestamp {
        clock: meta.reference().to_string().into(),
        timestamp: meta.timestamp().nseconds(),
        duration: meta.duration().map(|d| d.nseconds()),
    };
    buffer.iter_meta().map(reference).collect()
}

/// Attaches reference timestamps to a buffer.
///
/// They come from another process. Entries with invalid caps or an invalid time are left out.
pub(crate) fn add_references(buffer: &mut gst::BufferRef, references: &[ReferenceTimestamp]) {
    for reference in references {
        let Some(clock) = parse_caps(&reference.clock) else { continue };
        // u64::MAX is GST_CLOCK_TIME_NONE.
        let time = |ns: u64| (ns < u64::MAX).then(|| gst::ClockTime::from_nseconds(ns));
        let Some(timestamp) = time(reference.timestamp) else { continue };
        let duration = reference.duration.and_then(time);
        gst::ReferenceTimestampMeta::add(buffer, &clock, timestamp, duration);
    }
}
