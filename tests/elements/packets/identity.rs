// SPDX-License-Identifier: LGPL-2.1-or-later
//! Which packet a frame was decoded from.

use testing::TestDir;
use testing_gst::TestPipelineExt;

use super::{Seen, add_references, picture, play_for, take};

/// Returns the packet that a buffer names as its source.
fn packet_of(buffer: &gst::BufferRef) -> Option<(u32, u64)> {
    let meta = gst::meta::CustomMeta::from_buffer(buffer, "GstCuframesPacketMeta").ok()?;
    Some((meta.structure().get("track").unwrap(), meta.structure().get("seq").unwrap()))
}

/// Through a decoder that reorders frames, and a conversion that creates new buffers.
#[test]
fn frames_name_the_packet_they_were_decoded_from() {
    let test = TestDir::new("identity");
    let publisher = test.pipeline(&format!(
        "{} ! x264enc bframes=3 key-int-max=15 ! h264parse name=parse ! tee name=t \
         t. ! pub.packets_0  t. ! queue ! avdec_h264 ! pub.sink \
         cuframessink name=pub key=a policy=wait",
        picture(60)
    ));
    add_references(&publisher, "parse");
    let subscriber = test.pipeline(
        "cuframessrc key=a mode=strict ! videoconvert ! video/x-raw,format=RGB \
         ! fakesink name=x sync=false \
         cuframespacketsrc key=a mode=lossless ! fakesink name=y sync=false",
    );
    let look = |b: &gst::Buffer, pad: &gst::Pad| (packet_of(b), Seen::of(b, pad));
    let frames = subscriber.collect("x", "sink", look);
    let packets = subscriber.collect("y", "sink", look);
    subscriber.play();
    play_for(&publisher, 2);
    subscriber.wait_eos();

    let (frames, packets) = (take(&frames), take(&packets));
    assert_eq!((frames.len(), packets.len()), (60, 60));
    let mut apart = Vec::new();
    let mut order = Vec::new();
    for (packet, frame) in &frames {
        let (track, seq) = packet.expect("a frame has a packet");
        assert_eq!(track, 0);
        let (own, packet) = &packets[seq as usize];
        assert_eq!(*own, Some((track, seq)));
        assert_eq!(frame.references, packet.references);
        // The two sources may begin at different times.
        apart.push(frame.pts.unwrap() - packet.pts.unwrap());
        order.push(seq);
    }
    assert!(apart.iter().all(|ns| *ns == apart[0]), "{apart:?}");
    assert!(!order.is_sorted(), "without B-frames this shows nothing: {order:?}");
    assert_eq!(publisher.stat("pub", "unmatched-frames"), 0);
}
