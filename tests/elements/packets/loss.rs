// SPDX-License-Identifier: LGPL-2.1-or-later
//! Packets that are lost or skipped.

use std::sync::{Arc, Mutex};

use gst::prelude::*;
use testing::{TestDir, until};
use testing_gst::TestPipelineExt;

use super::{SIZE, take};

/// A reader is held up while the ring wraps. It reports exactly what it lost, and continues at a keyframe.
#[test]
fn loss_is_counted_and_reported() {
    let test = TestDir::new("loss");
    let publisher = test.pipeline(&format!(
        "videotestsrc is-live=true ! video/x-raw,width={},height={},framerate=200/1 \
         ! x264enc key-int-max=10 tune=zerolatency speed-preset=ultrafast ! h264parse \
         ! cuframessink name=pub key=a packet-buffer-bytes=65536",
        SIZE.0, SIZE.1
    ));
    let subscriber =
        test.pipeline("cuframespacketsrc name=src key=a track=0 ! fakesink name=out sync=false");
    let got = subscriber.collect("out", "sink", |b, _| (b.offset(), b.flags()));
    let gate = subscriber.hold("out");
    publisher.play();
    subscriber.play();
    until(|| got.lock().unwrap().len() == 1);
    let track = |field: &str| {
        let tracks: gst::Array = publisher.stats("pub").get("tracks").unwrap();
        tracks[0].get::<gst::Structure>().unwrap().get::<u64>(field).unwrap()
    };
    // Until all packets at which the reader could continue are overwritten.
    let most = 65536 / 128;
    let held_at = track("published");
    until(|| track("published") > held_at + 2 * most);
    drop(gate);
    let message = subscriber.wait_for("cuframes-packets-lost");
    until(|| got.lock().unwrap().len() > 30);
    let got = take(&got);
    let gap = got.windows(2).find(|pair| pair[1].0 != pair[0].0 + 1).expect("there is a gap");
    let lost = gap[1].0 - gap[0].0 - 1;
    assert!(gap[1].1.contains(gst::BufferFlags::DISCONT));
    assert!(!gap[1].1.contains(gst::BufferFlags::DELTA_UNIT), "it goes on at a keyframe");
    assert_eq!(message.get::<u64>("lost").unwrap(), lost);
    assert_eq!(
        (message.get::<&str>("key").unwrap(), message.get::<u32>("track").unwrap()),
        ("a", 0)
    );
    assert!(subscriber.stat("src", "lost") >= lost);
}

/// Each kind of problem is reported once. The sink's statistics count the others.
#[test]
fn packets_that_do_not_fit_are_reported_once() {
    let test = TestDir::new("said-once");
    let publisher = test.pipeline(
        "appsrc name=in format=time ! pub.packets_0 cuframessink name=pub key=a packet-buffer-bytes=65536",
    );
    let input = publisher.get("in").downcast::<gst_app::AppSrc>().unwrap();
    let caps = "video/x-h264,stream-format=byte-stream,alignment=au".parse::<gst::Caps>().unwrap();
    input.set_caps(Some(&caps));
    publisher.play();
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let push = |keyframe: bool, len: usize| {
        let mut buffer = gst::Buffer::from_mut_slice(vec![0; len]);
        if !keyframe {
            buffer.get_mut().unwrap().set_flags(gst::BufferFlags::DELTA_UNIT);
        }
        input.push_buffer(buffer).unwrap();
    };
    for _ in 0..3 {
        push(true, 100);
        push(false, 100_000);
        push(false, 100_000);
        push(false, 100);
        push(true, 30_000);
        for _ in 0..3 {
            push(false, 30_000);
        }
    }
    input.end_of_stream().unwrap();
    publisher.message(|m| {
        if let gst::MessageView::Warning(w) = m {
            warnings.lock().unwrap().push(w.error().message().to_owned());
        }
        matches!(m, gst::MessageView::Eos(_)).then_some(())
    });
    let warnings = take(&warnings);
    let about = |text: &str| warnings.iter().filter(|w| w.contains(text)).count();
    assert_eq!(
        (about("A packet of 100000 bytes"), about("A group of pictures")),
        (3, 1),
        "{warnings:?}"
    );
    let tracks: gst::Array = publisher.stats("pub").get("tracks").unwrap();
    let track = tracks[0].get::<gst::Structure>().unwrap();
    let count = |field: &str| track.get::<u64>(field).unwrap();
    assert_eq!((count("oversized"), count("broken-gop"), count("truncated-gops")), (3, 6, 3));
}
