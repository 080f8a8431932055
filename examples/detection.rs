// SPDX-License-Identifier: LGPL-2.1-or-later
//! Finds the packet that a frame with a detection was decoded from: `detection KEY [DETECTIONS]`.
//!
//! Each frame carries the track and the sequence number of its packet, and the packets of a key are
//! available beside its frames. A program can therefore cut a detection out of the stream without encoding
//! it again. The detector of this example reports every 30th frame.

use std::collections::BTreeMap;

use gst::prelude::*;

type Error = Box<dyn std::error::Error>;

/// Number of packets to keep: 20 s at 30 packets per second.
const MAX_PACKETS: usize = 600;

/// Identifies a packet of a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct PacketId {
    track: u32,
    seq: u64,
}

struct Packet {
    bytes: usize,
    keyframe: bool,
}

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let key = arguments.next().ok_or("usage: detection KEY [DETECTIONS]")?;
    let wanted: usize = arguments.next().map_or(Ok(usize::MAX), |n| n.parse())?;
    gst::init()?;
    gstcuframes::plugin_register_static()?;

    let pipeline = gst::parse::launch(&format!(
        "cuframessrc key={key} mode=strict ! appsink name=frames sync=false \
         cuframespacketsrc key={key} ! appsink name=packets sync=false"
    ))?;
    let pipeline = pipeline.downcast::<gst::Pipeline>().map_err(|_| "not a pipeline")?;
    let sink = |name| {
        let element = pipeline.by_name(name).ok_or("no appsink")?;
        element.downcast::<gst_app::AppSink>().map_err(|_| "no appsink")
    };
    let (frames, packets) = (sink("frames")?, sink("packets")?);
    pipeline.set_state(gst::State::Playing)?;

    let mut recent: BTreeMap<PacketId, Packet> = BTreeMap::new();
    let mut detections = 0;
    for number in 1.. {
        let Ok(sample) = frames.pull_sample() else { break };
        // Usually a packet arrives before the frame that was decoded from it.
        while let Some(sample) = packets.try_pull_sample(gst::ClockTime::ZERO) {
            let buffer = sample.buffer().ok_or("a sample without a buffer")?;
            if let Some(id) = packet_id(buffer) {
                let keyframe = !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
                recent.insert(id, Packet { bytes: buffer.size(), keyframe });
            }
            if recent.len() > MAX_PACKETS {
                recent.pop_first();
            }
        }
        if number % 30 != 0 {
            continue;
        }
        let frame = sample.buffer().ok_or("a sample without a buffer")?;
        let Some(id) = packet_id(frame) else { continue };
        // None for a packet from before the start of this program.
        let Some(packet) = recent.get(&id) else { continue };
        let kind = if packet.keyframe { "keyframe" } else { "packet" };
        println!(
            "frame {number} comes from {kind} {} of track {}: {} bytes",
            id.seq, id.track, packet.bytes
        );
        detections += 1;
        if detections == wanted {
            break;
        }
    }
    pipeline.set_state(gst::State::Null)?;
    Ok(())
}

/// Returns the ID of a packet, or of the packet that a frame was decoded from.
fn packet_id(buffer: &gst::BufferRef) -> Option<PacketId> {
    let meta = gst::meta::CustomMeta::from_buffer(buffer, "GstCuframesPacketMeta").ok()?;
    let structure = meta.structure();
    Some(PacketId { track: structure.get("track").ok()?, seq: structure.get("seq").ok()? })
}
