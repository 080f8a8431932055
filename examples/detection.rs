//! From a detection back to the packet that its frame was decoded from: `detection KEY [DETECTIONS]`.
//!
//! The packets of a key are at hand beside its frames, and each frame says which packet it comes from. So
//! what was detected in a picture can be cut out of the stream, without encoding anything anew. The
//! detector here finds every thirtieth frame remarkable.

use std::collections::BTreeMap;

use gst::prelude::*;

type Failure = Box<dyn std::error::Error>;

/// Packets that are kept: at 30 a second, those of 20 s.
const KEPT: usize = 600;

fn main() -> Result<(), Failure> {
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

    // Bytes, and whether it is a keyframe, by track and sequence number.
    let mut recent: BTreeMap<(u32, u64), (usize, bool)> = BTreeMap::new();
    let mut detections = 0;
    for number in 1.. {
        let Ok(sample) = frames.pull_sample() else { break };
        while let Some(sample) = packets.try_pull_sample(gst::ClockTime::ZERO) {
            let packet = sample.buffer().ok_or("a sample has a buffer")?;
            let key = !packet.flags().contains(gst::BufferFlags::DELTA_UNIT);
            recent.extend(packet_of(packet).map(|id| (id, (packet.size(), key))));
            if recent.len() > KEPT {
                recent.pop_first();
            }
        }
        if number % 30 != 0 {
            continue;
        }
        let frame = sample.buffer().ok_or("a sample has a buffer")?;
        let Some(id) = packet_of(frame) else { continue };
        // One that was published before this program came is not here.
        let Some((bytes, key)) = recent.get(&id) else { continue };
        let kind = if *key { "keyframe" } else { "packet" };
        println!("frame {number} comes from {kind} {} of track {}: {bytes} bytes", id.1, id.0);
        detections += 1;
        if detections == wanted {
            break;
        }
    }
    pipeline.set_state(gst::State::Null)?;
    Ok(())
}

/// Track and sequence number of the packet that a frame was decoded from, or that a packet is.
fn packet_of(buffer: &gst::BufferRef) -> Option<(u32, u64)> {
    let meta = gst::meta::CustomMeta::from_buffer(buffer, "GstCuframesPacketMeta").ok()?;
    let structure = meta.structure();
    Some((structure.get("track").ok()?, structure.get("seq").ok()?))
}
