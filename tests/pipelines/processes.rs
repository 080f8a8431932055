// SPDX-License-Identifier: LGPL-2.1-or-later
//! Publishers and subscribers as processes: every frame, every byte, no leaks.

use gst::prelude::*;
use nix::sys::signal::Signal;

use testing::{ChildGroup, TestDir, stamp, until};
use testing_gst::TestPipelineExt;

use crate::support::watch;

/// 2,000 frames at full speed. Four processes get every one.
#[test]
fn four_processes_get_every_frame() {
    const FRAMES: u32 = 2_000;
    const SIZE: (usize, usize) = (160, 120);
    let test = TestDir::slow("four");
    let files: Vec<_> = (0..4).map(|n| test.path(&format!("{n}.raw"))).collect();
    let subscribers: Vec<_> = files
        .iter()
        .map(|file| {
            let sink =
                format!("cuframessrc key=a mode=strict ! filesink location={}", file.display());
            ChildGroup::start(&mut test.launch(&sink))
        })
        .collect();
    let publisher = test.pipeline(&format!(
        "videotestsrc name=camera num-buffers={FRAMES} pattern=black \
         ! video/x-raw,format=GRAY8,width={},height={},framerate=30/1 \
         ! cuframessink name=pub key=a policy=wait",
        SIZE.0, SIZE.1
    ));
    publisher.stamp("camera", SIZE);
    // Nothing is published before PLAYING, so that all can join first.
    publisher.set_state(gst::State::Paused).unwrap();
    for _ in 0..4 {
        publisher.wait_for("cuframes-subscriber-added");
    }
    publisher.play();
    publisher.wait_eos();
    subscribers.into_iter().for_each(ChildGroup::success);
    assert_eq!(publisher.stat("pub", "copied"), 0);
    assert_eq!(publisher.stat("pub", "dropped"), 0);
    drop(publisher);

    for file in files {
        let bytes = std::fs::read(file).unwrap();
        let frames = bytes.chunks(SIZE.0 * SIZE.1);
        let numbers: Vec<_> = frames.map(|f| stamp::read(f, SIZE.0, SIZE.0, SIZE.1)).collect();
        let expected: Vec<_> = (1..=FRAMES).map(Some).collect();
        assert!(numbers == expected, "{} frames, not all in order", numbers.len());
    }
}

/// A recorder gets the stream that the parser produced, byte for byte.
#[test]
fn elementary_stream_crosses_unchanged() {
    let test = TestDir::slow("bytes");
    let (sent, got) = (test.path("sent.h264"), test.path("got.h264"));
    let mut subscriber = test.launch(&format!(
        "cuframespacketsrc key=a start=oldest-keyframe ! filesink location={}",
        got.display()
    ));
    let subscriber = ChildGroup::start(&mut subscriber);
    let mut publisher = test.launch(&format!(
        "videotestsrc num-buffers=300 is-live=true ! video/x-raw,width=320,height=240,framerate=100/1 \
         ! x264enc key-int-max=30 speed-preset=ultrafast ! h264parse \
         ! video/x-h264,stream-format=byte-stream,alignment=au ! tee name=t \
         t. ! queue ! filesink location={} t. ! queue ! cuframessink key=a",
        sent.display()
    ));
    ChildGroup::start(&mut publisher).success();
    subscriber.success();
    let (sent, got) = (std::fs::read(sent).unwrap(), std::fs::read(got).unwrap());
    assert!(got.len() > 10_000);
    assert!(sent == got, "{} bytes became {}", sent.len(), got.len());
}

/// After SIGKILL the other side continues, and no file has to be removed by hand.
#[test]
fn killed_processes_leave_no_files() {
    let test = TestDir::slow("kill");
    let source =
        "videotestsrc is-live=true ! video/x-raw,format=NV12,width=320,height=240,framerate=60/1";
    let watched = watch(&test, "a", "newest");
    let publish = || ChildGroup::start(&mut test.launch(&format!("{source} ! cuframessink key=a")));
    for round in 0..3 {
        let publisher = publish();
        let before = watched.numbers.lock().unwrap().len();
        until(|| watched.stat("reconnects") == round && watched.count() > before + 5);
        let subscriber = ChildGroup::start(&mut test.launch("cuframessrc key=a ! fakesink"));
        watched.more(5);
        subscriber.signal(Signal::SIGKILL);
        drop(subscriber);
        watched.more(5);
        publisher.signal(Signal::SIGKILL);
    }
    // Files stay after SIGKILL, and the next publisher replaces them. A clean end removes them.
    let publisher = publish();
    until(|| watched.stat("reconnects") == 3);
    publisher.signal(Signal::SIGINT);
    publisher.success();
    until(|| std::fs::read_dir(&test.dir).unwrap().count() == 0);
}

/// Starts a pipeline under GStreamer's leaks tracer, which writes to `log`.
fn traced(test: &TestDir, pipeline: &str, log: &str) -> ChildGroup {
    let mut command = test.launch(pipeline);
    command
        .env("GST_TRACERS", "leaks")
        .env("GST_DEBUG", "GST_TRACER:7")
        .env("GST_DEBUG_NO_COLOR", "1")
        .stderr(std::fs::File::create(test.path(log)).unwrap());
    ChildGroup::start(&mut command)
}

#[track_caller]
fn no_leaks_in(test: &TestDir, logs: &[&str]) {
    for log in logs {
        let log = std::fs::read_to_string(test.path(log)).unwrap();
        let leaks: Vec<_> =
            log.lines().filter(|l| l.contains("object-alive, type-name=(string)Gst")).collect();
        assert!(leaks.is_empty(), "{leaks:#?}");
    }
}

/// GStreamer's leaks tracer reports neither our elements nor their buffers.
#[test]
fn processes_leak_nothing() {
    let test = TestDir::slow("leaks");
    let publisher = traced(
        &test,
        "videotestsrc is-live=true num-buffers=120 ! video/x-raw,width=320,height=240,framerate=60/1 \
         ! tee name=t t. ! queue ! cuframessink name=pub key=a \
         t. ! queue ! x264enc tune=zerolatency key-int-max=30 ! h264parse ! pub.packets_0",
        "publisher",
    );
    let frames = traced(&test, "cuframessrc key=a ! queue ! fakesink", "frames");
    let copies = traced(&test, "cuframessrc key=a max-frames=1 ! queue ! fakesink", "copies");
    let packets = traced(&test, "cuframespacketsrc key=a ! h264parse ! fakesink", "packets");
    for process in [publisher, frames, copies, packets] {
        process.success();
    }
    no_leaks_in(&test, &["publisher", "frames", "copies", "packets"]);
}

/// The leaks tracer reports nothing in subscribers whose publishers are killed.
#[test]
fn subscribers_leak_nothing_when_publishers_die() {
    let test = TestDir::slow("leaks-kill");
    let watched = watch(&test, "a", "newest");
    let publish = || {
        ChildGroup::start(&mut test.launch(
            "videotestsrc is-live=true ! video/x-raw,width=160,height=120,framerate=60/1 ! tee name=t \
             t. ! queue ! cuframessink name=pub key=a \
             t. ! queue ! x264enc tune=zerolatency key-int-max=10 ! h264parse ! pub.packets_0",
        ))
    };
    let rest = "num-buffers=150 ! queue ! fakesink sync=false";
    let frames = traced(&test, &format!("cuframessrc key=a {rest}"), "frames");
    let copies = traced(&test, &format!("cuframessrc key=a max-frames=1 {rest}"), "copies");
    let packets = traced(&test, &format!("cuframespacketsrc key=a {rest}"), "packets");
    for _ in 0..3 {
        let publisher = publish();
        watched.more(30);
        publisher.signal(Signal::SIGKILL);
    }
    let _publisher = publish();
    for process in [frames, copies, packets] {
        process.success();
    }
    no_leaks_in(&test, &["frames", "copies", "packets"]);
}

/// GPU decoders use types in their caps that a subscriber has not registered.
#[test]
fn caps_with_own_types_are_understood() {
    let test = TestDir::slow("types");
    let _publisher = ChildGroup::start(&mut test.launch(
        "videotestsrc is-live=true ! video/x-raw,format=NV12,width=320,height=240,framerate=60/1 \
         ! capssetter caps=video/x-raw,multiview-flags=(GstVideoMultiviewFlagsSet)0:ffffffff:/right-view-first/half-aspect \
         ! cuframessink key=a",
    ));
    ChildGroup::start(&mut test.launch("cuframessrc key=a num-buffers=5 ! fakesink")).success();
}
