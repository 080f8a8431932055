// SPDX-License-Identifier: LGPL-2.1-or-later
//! A camera over RTSP, its publisher, and the frames of subscribers in other processes.

use std::sync::Mutex;

use gst::prelude::*;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use testing::{ChildGroup, TestDir, until};
use testing_gst::TestPipelineExt;

use crate::support::{camera, check_recording, watch};

/// The main use: a camera over RTSP, one publisher, frames and packets in other processes.
fn camera_reaches_all_subscribers(name: &'static str, codec: &str) {
    let test = TestDir::slow(name);
    let options = format!("--codec {codec} --size 640x360 --fps 30 --gop 15");
    let (_camera, url) = camera(&options);
    let watched: Vec<_> = (0..2).map(|_| watch(&test, "cam1", "strict")).collect();
    let _publisher =
        ChildGroup::start(test.script("publish-rtsp.sh").args(["--codec", codec, &url, "cam1"]));
    watched[0].more(20);
    let recording = test.path("late.mp4");
    let recorder =
        ChildGroup::start(test.script("record.sh").args(["cam1", recording.to_str().unwrap()]));
    let picture = test.path("now.jpg");
    ChildGroup::start(test.script("snapshot.sh").args(["cam1", picture.to_str().unwrap()]))
        .success();
    until(|| recording.exists());
    watched[0].more(60);
    recorder.signal(Signal::SIGINT);
    recorder.success();

    for one in &watched {
        let numbers = one.check();
        // On a busy machine, the leaky queue in front of the decoder drops frames.
        let span = (numbers.last().unwrap() - numbers[0] + 1) as usize;
        assert!(numbers.len() * 2 >= span, "{} of {span}", numbers.len());
        assert_eq!(one.stat("duplicates"), 0);
    }
    assert_eq!(&std::fs::read(&picture).unwrap()[..2], b"\xff\xd8", "a JPEG");

    let numbers = check_recording(&recording, 0);
    assert!(numbers.len() >= 30, "{} frames", numbers.len());
}

#[test]
fn h264_camera_reaches_all_subscribers() {
    camera_reaches_all_subscribers("h264", "h264");
}

#[test]
fn h265_camera_reaches_all_subscribers() {
    camera_reaches_all_subscribers("h265", "h265");
}

#[test]
fn one_decoder_gives_two_sizes() {
    let test = TestDir::slow("scaled");
    let (_camera, url) = camera("--size 640x360 --fps 30 --gop 15");
    let (whole, small) = (watch(&test, "cam1", "newest"), watch(&test, "cam1.sub", "newest"));
    let options = ["--codec", "h264", "--scaled", "320x180", &url, "cam1"];
    let _publisher = ChildGroup::start(test.script("publish-rtsp.sh").args(options));
    whole.more(20);
    small.more(20);
    whole.check();
    small.check();
    let pad = small.pipeline.by_name("out").unwrap().static_pad("sink").unwrap();
    let info = gst_video::VideoInfo::from_caps(&pad.current_caps().unwrap()).unwrap();
    assert_eq!((info.width(), info.height()), (320, 180));
}

#[test]
fn camera_that_drops_is_reconnected() {
    let test = TestDir::slow("drop");
    let (camera, url) = camera("--size 320x240 --fps 30 --gop 15");
    let watched = watch(&test, "cam1", "newest");
    let _publisher =
        ChildGroup::start(test.script("publish-rtsp.sh").args(["--codec", "h264", &url, "cam1"]));
    watched.more(10);
    camera.signal(Signal::SIGUSR1);
    until(|| watched.stat("reconnects") == 1);
    watched.more(10);
    watched.check();
}

/// Ten cameras on one CPU are interrupted between any two of their steps.
#[test]
fn camera_ends_right_after_start() {
    let _test = TestDir::slow("short-lived");
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).unwrap();
    let mut one = CpuSet::new();
    one.set((0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu).unwrap()).unwrap()).unwrap();
    sched_setaffinity(this, &one).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| drop(camera("")));
        }
    });
}

/// The camera's own time, which rtspsrc learns by NTP, arrives unchanged with each packet.
#[test]
fn camera_time_crosses() {
    let test = TestDir::slow("ntp");
    let (_camera, url) = camera("--size 320x240 --fps 30 --gop 15");
    let pipeline = |description: &str| {
        let pipeline = test.pipeline(description);
        let times = pipeline.collect("out", "sink", |buffer, _| {
            let meta = buffer.meta::<gst::ReferenceTimestampMeta>();
            meta.map(|m| (m.reference().to_string(), m.timestamp().nseconds()))
        });
        pipeline.play();
        (pipeline, times)
    };
    let (subscriber, got) =
        pipeline("cuframespacketsrc key=cam1 start=oldest-keyframe ! fakesink name=out sync=false");
    let (publisher, sent) = pipeline(&format!(
        "rtspsrc location={url} protocols=tcp latency=50 add-reference-timestamp-meta=true \
         ! rtph264depay ! h264parse ! video/x-h264,stream-format=byte-stream,alignment=au \
         ! identity name=out ! sink.packets_0 cuframessink name=sink key=cam1"
    ));
    let known = |seen: &Mutex<Vec<Option<_>>>| seen.lock().unwrap().iter().flatten().count();
    until(|| known(&got) > 30);
    drop((publisher, subscriber));
    let (sent, got) = (sent.lock().unwrap(), got.lock().unwrap());
    // The first packets may be older than the first keyframe.
    let first = got.iter().flatten().next().unwrap();
    assert!(first.0.starts_with("timestamp/x-ntp"), "{first:?}");
    let at = sent.iter().position(|s| s.as_ref() == Some(first)).unwrap();
    let here = got.iter().position(|g| g.as_ref() == Some(first)).unwrap();
    assert_eq!(got[here..], sent[at..at + got.len() - here]);
}
