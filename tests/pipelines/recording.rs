// SPDX-License-Identifier: LGPL-2.1-or-later
//! Recordings: complete, with the time before an event, and with audio.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::signal::Signal;

use testing::{ChildGroup, TestDir, built, until};
use testing_gst::TestPipeline;

use crate::support::{camera, check_recording, decode, published, records, watch};

/// A recording of a publisher that plays a file.
#[test]
fn file_is_published_and_recorded() {
    let test = TestDir::slow("file");
    let (file, copy) = (test.path("source.mp4"), test.path("copy.mkv"));
    let make = format!(
        "videotestsrc num-buffers=90 ! video/x-raw,width=320,height=240,framerate=30/1 \
         ! x264enc bframes=2 key-int-max=15 ! h264parse ! mp4mux ! filesink location={}",
        file.display()
    );
    ChildGroup::start(&mut test.launch(&make)).success();
    let recorder =
        ChildGroup::start(test.script("record.sh").args(["clip", copy.to_str().unwrap()]));
    ChildGroup::start(test.script("publish-file.sh").args([file.to_str().unwrap(), "clip"]))
        .success();
    recorder.success();
    let frames = decode(&copy).len();
    assert!((30..=90).contains(&frames), "{frames} frames of 90");
}

/// Ctrl-C reaches every process of a terminal. One interrupt completes the file. A second would end the
/// recorder at once.
#[test]
fn interrupted_recordings_are_whole() {
    let test = TestDir::slow("interrupt");
    let _published = published(&test, "--size 320x240");
    let watched = watch(&test, "cam1", "newest");
    let files: Vec<_> = (0..8).map(|n| test.path(&format!("{n}.mp4"))).collect();
    let record = |file: &PathBuf| {
        let file = file.to_str().unwrap();
        ChildGroup::start(test.script("record.sh").args(["cam1", file, "50"]))
    };
    let recorders: Vec<_> = files.iter().map(record).collect();
    until(|| files.iter().all(|file| file.exists()));
    watched.more(60);
    recorders.iter().for_each(|one| one.signal(Signal::SIGINT));
    recorders.into_iter().for_each(ChildGroup::success);
    assert!(files.iter().all(|file| check_recording(file, 0).len() >= 30));
}

/// The recording of an event begins before the recorder was started.
#[test]
fn event_is_recorded_with_its_past() {
    let test = TestDir::slow("event");
    let (_camera, url) = camera("--size 320x240 --fps 30 --gop 30");
    let watched = watch(&test, "cam1", "newest");
    let _publisher =
        ChildGroup::start(test.script("publish-rtsp.sh").args(["--codec", "h264", &url, "cam1"]));
    watched.more(150);
    let file = test.path("event.mp4");
    let now = *watched.check().last().unwrap();
    let event = ["cam1", file.to_str().unwrap(), "3", "1"];
    ChildGroup::start(test.script("record-event.sh").args(event)).success();
    let numbers = check_recording(&file, 0);
    let [first, last] = [numbers[0], *numbers.last().unwrap()];
    assert!(now - first >= 3 * 30 - 10, "it begins {} frames ago", now - first);
    assert!(last > now, "it goes on to {last}, from {now}");
}

/// The example `event-recorder`, which records while frames change.
#[test]
fn motion_starts_recording_of_its_past() {
    let test = TestDir::slow("motion");
    let (_camera, url) = camera("--size 320x240 --fps 30 --gop 15");
    let watched = watch(&test, "cam1", "newest");
    let publisher =
        ChildGroup::start(test.script("publish-rtsp.sh").args(["--codec", "h264", &url, "cam1"]));
    watched.more(60);
    let mut recorder = test.command(built("event-recorder"));
    let events = test.path("events");
    recorder.arg("cam1").arg(&events).stdout(Stdio::piped());
    recorder.args("--before 1 --after 1 --events 1".split(' '));
    // The test picture always moves.
    let mut recorder = ChildGroup::start(&mut recorder);
    let mut lines = recorder.stdout().lines();
    assert!(lines.next().unwrap().unwrap().ends_with("of the picture changed"));
    let now = *watched.check().last().unwrap();
    watched.more(30);
    // Nothing moves any more.
    drop(publisher);
    assert!(lines.next().unwrap().unwrap().ends_with("done"));
    recorder.success();
    let numbers = check_recording(&events.join("1.mp4"), 0);
    assert!(numbers[0] + 15 <= now && *numbers.last().unwrap() > now, "{now}: {numbers:?}");
}

/// The publisher is killed in the middle of a GOP and restarted, and the camera is disconnected.
#[test]
fn recording_has_gap_where_publisher_was_gone() {
    let test = TestDir::slow("gap");
    let (camera, url) = camera("--size 320x240 --fps 30 --gop 20");
    let watched = watch(&test, "cam1", "newest");
    let publish = || {
        ChildGroup::start(&mut test.launch(&format!(
            "rtspsrc location={url} protocols=tcp latency=50 ! rtph264depay \
             ! video/x-h264,stream-format=avc,alignment=au ! h264parse config-interval=-1 \
             ! video/x-h264,stream-format=byte-stream,alignment=au ! tee name=t \
             t. ! queue leaky=downstream ! avdec_h264 ! cuframessink name=pub key=cam1 forward-eos=false \
             t. ! queue ! pub.packets_0"
        )))
    };
    let file = test.path("gap.mkv");
    let recorder = ChildGroup::start(&mut test.launch(&format!(
        "-e cuframespacketsrc key=cam1 ! h264parse ! matroskamux ! filesink location={}",
        file.display()
    )));
    let publisher = publish();
    until(|| records(&test));
    watched.more(50);
    publisher.signal(Signal::SIGKILL);
    drop(publisher);
    let publisher = publish();
    watched.more(50);
    camera.signal(Signal::SIGUSR1);
    drop(publisher);
    let _publisher = publish();
    watched.more(50);
    recorder.signal(Signal::SIGINT);
    recorder.success();
    let numbers = check_recording(&file, 2);
    assert!(numbers.len() >= 120, "{} frames", numbers.len());
}

/// A camera changes to another frame size and back during a recording.
#[test]
fn recording_continues_when_size_changes() {
    let test = TestDir::slow("size");
    let (camera, url) = camera("--size 640x480 --fps 30 --gop 15");
    let watched = watch(&test, "cam1", "newest");
    let _publisher =
        ChildGroup::start(test.script("publish-rtsp.sh").args(["--codec", "h264", &url, "cam1"]));
    watched.more(20);
    let file = test.path("size.ts");
    let recorder = ChildGroup::start(&mut test.launch(&format!(
        "-e cuframespacketsrc key=cam1 ! h264parse ! mpegtsmux ! filesink location={}",
        file.display()
    )));
    until(|| records(&test));
    watched.more(40);
    for _ in 0..2 {
        camera.signal(Signal::SIGUSR2);
        watched.more(60);
    }
    recorder.signal(Signal::SIGINT);
    recorder.success();
    let numbers = check_recording(&file, 0);
    assert!(numbers.len() >= 140, "{} frames", numbers.len());
}

/// The recorder of the manual: video and audio of a camera, from the past on, in one file.
#[test]
fn picture_and_sound_are_recorded_together() {
    let test = TestDir::slow("sound");
    let (_camera, url) = camera("--size 320x240 --fps 30 --gop 30 --audio");
    let _publisher = ChildGroup::start(&mut test.launch(&format!(
        "cuframessink name=pub key=cam1 rtspsrc location={url} protocols=tcp latency=50 name=camera \
         camera. ! application/x-rtp,media=video ! rtph264depay ! video/x-h264,stream-format=avc,alignment=au \
         ! h264parse config-interval=-1 ! video/x-h264,stream-format=byte-stream,alignment=au ! queue ! pub.packets_0 \
         camera. ! application/x-rtp,media=audio ! rtpmp4gdepay ! aacparse ! queue ! pub.packets_1"
    )));
    // Waits for some seconds of packets.
    ChildGroup::start(&mut test.launch("cuframespacketsrc key=cam1 num-buffers=120 ! fakesink"))
        .success();
    let file = test.path("sound.mp4");
    let recorder = format!(
        "mp4mux name=mux ! filesink location={} \
         cuframespacketsrc key=cam1 track=0 preroll-time=2000000000 num-buffers=90 ! h264parse ! queue ! mux. \
         cuframespacketsrc key=cam1 track=1 num-buffers=140 ! aacparse ! queue ! mux.",
        file.display()
    );
    ChildGroup::start(&mut test.launch(&recorder)).success();

    let pipeline = TestPipeline::parse(&format!(
        "filesrc location={} ! parsebin name=all all. ! video/x-h264 ! fakesink name=v sync=false async=false \
         all. ! audio/mpeg ! fakesink name=a sync=false async=false",
        file.display()
    ));
    let times = ["v", "a"].map(|name| {
        pipeline.collect(name, "sink", |buffer, _| {
            let delta = buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
            (buffer.pts().unwrap().mseconds() as i64, delta)
        })
    });
    pipeline.play();
    pipeline.wait_eos();
    drop(pipeline);
    let [video, sound] = times.map(|t| std::mem::take(&mut *t.lock().unwrap()));
    assert!(video.len() == 90 && sound.len() >= 130, "{} and {}", video.len(), sound.len());
    assert!(!video[0].1, "it begins with a keyframe");
    // On a busy machine rtspsrc recovers the camera's clock unevenly, by less than a GOP.
    assert!((sound[0].0 - video[0].0).abs() < 500, "{:?} and {:?}", video[0], sound[0]);
    for times in [&video, &sound] {
        assert!(times.windows(2).all(|pair| pair[1].0 > pair[0].0), "{times:?}");
    }
}
