// SPDX-License-Identifier: LGPL-2.1-or-later
//! Frames through the elements: without a copy where possible, whole, and with their times.

use gst::prelude::*;
use testing::{TestDir, stamp, until};
use testing_gst::TestPipelineExt;

use crate::{HEIGHT, WIDTH, frame_number, source};

#[test]
fn frames_cross_without_copy() {
    let test = TestDir::new("no-copy");
    let publisher =
        test.pipeline(&format!("{} ! cuframessink name=pub key=a policy=wait", source(100)));
    let subscriber =
        test.pipeline("cuframessrc name=src key=a mode=strict ! fakesink name=out sync=false");
    publisher.stamp("camera", (WIDTH, HEIGHT));
    let seen = subscriber.collect("out", "sink", |b, pad| {
        let meta = b.meta::<gst_video::VideoMeta>().expect("the slot's strides");
        assert_eq!(meta.stride(), [WIDTH as i32, WIDTH as i32]);
        assert!(b.peek_memory(0).flags().contains(gst::MemoryFlags::READONLY));
        (frame_number(b), b.offset(), b.pts().unwrap(), pad.current_caps().unwrap())
    });
    subscriber.play();
    publisher.play();
    subscriber.wait_eos();

    let seen = seen.lock().unwrap();
    assert!(seen.len() > 50, "only {} frames", seen.len());
    for pair in seen.windows(2) {
        assert_eq!(pair[1].0, pair[0].0 + 1);
        assert!(pair[1].2 > pair[0].2);
    }
    for (number, seq, ..) in seen.iter() {
        assert_eq!(u64::from(*number), *seq);
    }
    let info = gst_video::VideoInfo::from_caps(&seen[0].3).unwrap();
    assert_eq!((info.format(), info.width()), (gst_video::VideoFormat::Nv12, WIDTH as u32));
    assert_eq!(publisher.stat("pub", "copied"), 0);
    assert_eq!(publisher.stat("pub", "dropped"), 0);
    assert_eq!(subscriber.stat("src", "copied"), 0);
    assert_eq!(subscriber.stat("src", "received"), seen.len() as u64);
    assert_eq!(subscriber.stat("src", "skipped"), 0);
}

#[test]
fn other_memory_is_copied_once_and_counted() {
    let test = TestDir::new("copy");
    let publisher = test.pipeline(&format!(
        "{} ! identity name=id drop-allocation=true ! cuframessink name=pub key=a policy=wait",
        source(20)
    ));
    let subscriber =
        test.pipeline("cuframessrc name=src key=a mode=strict ! fakesink name=out sync=false");
    publisher.stamp("camera", (WIDTH, HEIGHT));
    let seen = subscriber.collect("out", "sink", |b, _| frame_number(b));
    subscriber.play();
    publisher.play();
    subscriber.wait_eos();
    assert_eq!(publisher.stat("pub", "copied"), 20);
    assert!(seen.lock().unwrap().windows(2).all(|pair| pair[1] == pair[0] + 1));
}

/// A decoder writes its frames into the slots.
#[test]
fn decoder_publishes_without_copy() {
    let test = TestDir::new("decoder");
    let publisher = test.pipeline(&format!(
        "videotestsrc name=camera num-buffers=60 pattern=ball \
         ! video/x-raw,format=I420,width={WIDTH},height={HEIGHT},framerate=30/1 \
         ! x264enc bframes=2 key-int-max=30 bitrate=2000 ! h264parse ! avdec_h264 max-threads=1 \
         ! cuframessink name=pub key=a policy=wait"
    ));
    publisher.stamp("camera", (WIDTH, HEIGHT));
    let subscriber =
        test.pipeline("cuframessrc name=src key=a mode=strict ! fakesink name=out sync=false");
    let seen = subscriber.collect("out", "sink", |b, _| {
        let meta = b.meta::<gst_video::VideoMeta>().unwrap();
        let (offset, stride) = (meta.offset()[0], meta.stride()[0] as usize);
        let map = b.map_readable().unwrap();
        stamp::read(&map[offset..], stride, WIDTH, HEIGHT).expect("a whole picture")
    });
    subscriber.play();
    publisher.play();
    subscriber.wait_eos();
    let seen = seen.lock().unwrap();
    assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seen:?}");
    assert_eq!(publisher.stat("pub", "published"), 60);
    assert_eq!(publisher.stat("pub", "copied"), 0);
}

#[test]
fn frames_are_copied_when_downstream_keeps_them() {
    let test = TestDir::new("keep");
    let publisher =
        test.pipeline(&format!("{} ! cuframessink name=pub key=a policy=wait", source(40)));
    publisher.stamp("camera", (WIDTH, HEIGHT));
    let subscriber = test.pipeline(
        "cuframessrc name=src key=a mode=strict max-frames=4 ! fakesink name=out sync=false",
    );
    let kept = subscriber.collect("out", "sink", |b, _| b.clone());
    subscriber.play();
    publisher.play();
    subscriber.wait_eos();
    let kept = kept.lock().unwrap();
    let numbers: Vec<_> = kept.iter().map(frame_number).collect();
    assert!(numbers.len() > 20 && numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
    assert_eq!(subscriber.stat("src", "copied"), kept.len() as u64 - 3);
    assert_eq!(publisher.stat("pub", "dropped"), 0);
}

#[test]
fn running_times_of_two_pipelines_agree() {
    let test = TestDir::new("time");
    let publisher = test.pipeline(&format!("{} ! cuframessink name=pub key=a", source(60)));
    let subscriber = test.pipeline("cuframessrc name=src key=a ! fakesink name=out sync=false");
    let absolute = |b: &gst::Buffer, pad: &gst::Pad| {
        let base = pad.parent_element().unwrap().base_time().unwrap();
        let number = b.offset();
        (number, base + b.pts().unwrap(), b.duration().unwrap())
    };
    let sent = publisher.collect("camera", "src", absolute);
    let got = subscriber.collect("out", "sink", absolute);
    publisher.play();
    subscriber.play();
    subscriber.wait_eos();
    let (sent, got) = (sent.lock().unwrap(), got.lock().unwrap());
    let mut compared = 0;
    // The first frame may be older than the subscriber's pipeline, whose running time begins at 0.
    for (seq, time, duration) in got.iter().skip(1) {
        let (_, expected, of) = sent[*seq as usize - 1];
        assert_eq!((*time, *duration), (expected, of), "frame {seq}");
        compared += 1;
    }
    assert!(compared > 10);
}

/// The latency of a camera makes its frames older than a pipeline that starts with them.
#[test]
fn strict_source_keeps_frames_older_than_its_pipeline() {
    let test = TestDir::new("older");
    let publisher =
        test.pipeline(&format!("{} ! cuframessink name=pub key=a policy=wait", source(40)));
    let subscriber = test.pipeline(
        "cuframessrc name=all key=a mode=strict ! fakesink name=x sync=false \
         cuframessrc name=some key=a ! fakesink name=y sync=false",
    );
    let times = |b: &gst::Buffer, _: &gst::Pad| (b.offset(), b.pts().unwrap());
    let (all, some) =
        (subscriber.collect("x", "sink", times), subscriber.collect("y", "sink", times));
    // The running time of the pipeline begins in an hour.
    let clock = gst::SystemClock::obtain();
    subscriber.use_clock(Some(&clock));
    subscriber.set_start_time(gst::ClockTime::NONE);
    subscriber.set_base_time(clock.time() + gst::ClockTime::from_seconds(3600));
    publisher.set_state(gst::State::Paused).unwrap();
    subscriber.play();
    (0..2).for_each(|_| drop(publisher.wait_for("cuframes-subscriber-added")));
    publisher.play();
    subscriber.wait_eos();
    let all = all.lock().unwrap();
    assert_eq!((all.len(), all[0].1), (40, gst::ClockTime::ZERO));
    assert!(all.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1 && pair[1].1 > pair[0].1));
    assert_eq!(some.lock().unwrap().len(), 1);
}

/// A source reports the latency of its publisher, also if that becomes known after the source joined.
#[test]
fn source_reports_latency_of_publisher() {
    let test = TestDir::new("latency");
    let publisher = test.pipeline(&format!(
        "{} ! queue min-threshold-time=150000000 ! cuframessink key=a",
        source(1_000_000)
    ));
    let subscriber = test.pipeline("cuframessrc name=src key=a ! fakesink sync=false");
    subscriber.play();
    publisher.play();
    until(|| {
        let mut query = gst::query::Latency::new();
        subscriber.get("src").query(&mut query);
        let (live, min, _) = query.result();
        live && min >= gst::ClockTime::from_mseconds(150)
    });
}
