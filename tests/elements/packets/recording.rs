// SPDX-License-Identifier: LGPL-2.1-or-later
//! Recorders: where a recording begins, and its content.

use gst::prelude::*;
use testing::stamp;
use testing::{TestDir, until};
use testing_gst::{TestPipeline, TestPipelineExt};

use super::{SIZE, Seen, picture, play_for, same, take};

/// Returns the content of a file: video packets with their times, and the numbers in its frames.
fn recorded(test: &TestDir, file: &std::path::Path) -> (Vec<Seen>, Vec<Option<u32>>) {
    let pipeline = test.pipeline(&format!(
        "filesrc location={} ! parsebin ! tee name=t t. ! queue ! fakesink name=packets sync=false async=false \
         t. ! queue ! decodebin ! videoconvert ! video/x-raw,format=I420 ! fakesink name=frames sync=false async=false",
        file.display()
    ));
    let packets = pipeline.collect("packets", "sink", Seen::of);
    let numbers = pipeline.collect("frames", "sink", |b, pad| {
        let info = gst_video::VideoInfo::from_caps(&pad.current_caps().unwrap()).unwrap();
        let map = b.map_readable().unwrap();
        let (width, height) = (info.width() as usize, info.height() as usize);
        stamp::read(&map, info.stride()[0] as usize, width, height)
    });
    pipeline.play();
    pipeline.wait_eos();
    (take(&packets), take(&numbers))
}

/// With B-frames, in both containers. The files are the same, packet by packet.
#[test]
fn recording_equals_one_made_beside_tee() {
    for (muxer, exact) in [("mp4mux", 1), ("matroskamux", 1_000_001)] {
        let test = TestDir::new(&format!("tee-{muxer}"));
        let [beside, through] = ["beside", "through"].map(|name| test.dir.join(name));
        let publisher = test.pipeline(&format!(
            "{} ! x264enc bframes=2 key-int-max=20 ! h264parse ! video/x-h264,stream-format=avc,alignment=au \
             ! tee name=t t. ! queue ! {muxer} ! filesink async=false location={} \
             t. ! queue ! cuframessink key=a policy=wait",
            picture(90),
            beside.display()
        ));
        publisher.stamp("camera", SIZE);
        let recorder = test.pipeline(&format!(
            "cuframespacketsrc name=src key=a mode=lossless ! h264parse ! {muxer} ! filesink location={}",
            through.display()
        ));
        recorder.play();
        play_for(&publisher, 1);
        publisher.wait_eos();
        recorder.wait_eos();
        drop((publisher, recorder));
        let (sent, sent_numbers) = recorded(&test, &beside);
        let (got, got_numbers) = recorded(&test, &through);
        // Matroska stores whole milliseconds of a running time that begins elsewhere.
        same(&sent, &got, exact);
        assert_eq!(sent_numbers, (1..=90).map(Some).collect::<Vec<_>>());
        assert_eq!(got_numbers, sent_numbers);
    }
}

/// A GOP of 10 s, and readers that join in the middle of it.
#[test]
fn late_reader_gets_long_gop_from_its_keyframe() {
    let test = TestDir::new("long-gop");
    let publisher = test.pipeline(&format!(
        "{} ! x264enc key-int-max=300 tune=zerolatency speed-preset=ultrafast ! h264parse \
         ! cuframessink name=pub key=a forward-eos=false",
        picture(590)
    ));
    publisher.play();
    publisher.wait_eos();
    let subscriber =
        test.pipeline("cuframespacketsrc name=src key=a ! fakesink name=out sync=false");
    let got = subscriber.collect("out", "sink", |b, _| {
        (b.offset(), b.flags().contains(gst::BufferFlags::DELTA_UNIT))
    });
    subscriber.play();
    until(|| got.lock().unwrap().len() == 290);
    let expected: Vec<_> = (300..590).map(|n| (n, n != 300)).collect();
    assert_eq!(take(&got), expected);
}

/// Packets of the past keep their distances. They begin at running time 0 of a pipeline that is younger.
#[test]
fn recording_begins_in_the_past() {
    let test = TestDir::new("preroll");
    let publisher = test.pipeline(&format!(
        "{} ! x264enc key-int-max=15 tune=zerolatency ! h264parse ! cuframessink key=a forward-eos=false",
        // Keyframes at 0, 15, 30 and 45.
        picture(50)
    ));
    publisher.play();
    publisher.wait_eos();
    for (properties, first) in [
        ("", 45),
        ("preroll-gops=1", 30),
        ("preroll-time=1000000000", 15),
        ("preroll-time=1000000000 preroll-gops=3", 0),
        ("preroll-time=3600000000000", 0),
    ] {
        let subscriber = test.pipeline(&format!(
            "cuframespacketsrc key=a {properties} ! fakesink name=out sync=false"
        ));
        let got = subscriber.collect("out", "sink", |b, _| {
            (b.offset(), b.pts().unwrap(), b.flags().contains(gst::BufferFlags::DISCONT))
        });
        subscriber.play();
        until(|| got.lock().unwrap().len() as u64 == 50 - first);
        let got = take(&got);
        assert_eq!((got[0].0, got[0].2), (first, true), "{properties}");
        for pair in got.windows(2) {
            assert_eq!((pair[1].0, pair[1].2), (pair[0].0 + 1, false));
            let distance = pair[1].1 - pair[0].1;
            assert!((33_333_333..=33_333_334).contains(&distance.nseconds()), "{distance}");
        }
    }
}

/// Video and audio of one recorder are delayed by the same time, and begin with a frame.
#[test]
fn video_and_sound_stay_in_sync() {
    let test = TestDir::new("in-sync");
    let publisher = test.pipeline(&format!(
        "cuframessink name=pub key=a \
         videotestsrc is-live=true ! video/x-raw,width={},height={},framerate=50/1 \
         ! x264enc key-int-max=25 tune=zerolatency ! h264parse ! identity name=video ! queue ! pub.packets_0 \
         audiotestsrc is-live=true samplesperbuffer=160 ! audio/x-raw,rate=8000,channels=1 \
         ! mulawenc ! identity name=sound ! queue ! pub.packets_1",
        SIZE.0, SIZE.1
    ));
    let times = |pipeline: &TestPipeline, element: &str, pad: &str| {
        pipeline.collect(element, pad, |b, pad| {
            let base = pad.parent_element().unwrap().base_time().unwrap();
            let segment = pad.sticky_event::<gst::event::Segment>(0).unwrap();
            let segment = segment.segment().downcast_ref::<gst::ClockTime>().unwrap();
            let absolute = base + segment.to_running_time(b.pts()).unwrap();
            let absolute = absolute.nseconds() as i64;
            (b.offset(), absolute, b.flags().contains(gst::BufferFlags::DELTA_UNIT))
        })
    };
    let sent = [times(&publisher, "video", "src"), times(&publisher, "sound", "src")];
    publisher.play();
    // The recorder joins in the middle of a GOP.
    until(|| sent[0].lock().unwrap().len() > 60);
    for properties in ["", "preroll-time=500000000"] {
        let recorder = test.pipeline(&format!(
            "cuframespacketsrc key=a track=1 ! fakesink name=s sync=false \
             cuframespacketsrc key=a track=0 {properties} ! fakesink name=v sync=false"
        ));
        let got = [times(&recorder, "v", "sink"), times(&recorder, "s", "sink")];
        recorder.play();
        until(|| got.iter().all(|g| g.lock().unwrap().len() > 80));
        drop(recorder);
        let got = got.map(|g| take(&g));
        let [video, sound] = [got[0][0], got[1][0]];
        assert!(!video.2, "the first picture is a keyframe");
        assert!((0..=20_000_000).contains(&(sound.1 - video.1)), "sound begins with it");
        // The offset is the number of the packet. All packets are later by the same time.
        let delay = |track: usize, (n, time, _): (u64, i64, bool)| {
            time - sent[track].lock().unwrap()[n as usize].1
        };
        let moved = delay(0, video);
        assert!(moved > 0, "{moved} {:?} {:?}", got[0][0], got[1][0]);
        for (track, packets) in got.iter().enumerate() {
            assert!(packets.iter().all(|packet| delay(track, *packet) == moved), "track {track}");
        }
    }
}

/// A recorder that joins after the end gets the last GOP and the audio that belongs to it.
#[test]
fn ended_tracks_are_read_together() {
    let test = TestDir::new("ended");
    let publisher = test.pipeline(&format!(
        "cuframessink name=pub key=a \
         {} ! x264enc key-int-max=10 tune=zerolatency ! h264parse ! pub.packets_0 \
         audiotestsrc num-buffers=50 samplesperbuffer=160 ! audio/x-raw,rate=8000,channels=1 \
         ! mulawenc ! pub.packets_1",
        picture(25)
    ));
    publisher.play();
    publisher.wait_eos();
    for _ in 0..20 {
        let recorder = test.pipeline(
            "cuframespacketsrc key=a track=1 ! fakesink name=s sync=false \
             cuframespacketsrc key=a track=0 ! fakesink name=v sync=false",
        );
        let [video, sound] = ["v", "s"].map(|out| recorder.collect(out, "sink", |b, _| b.offset()));
        recorder.play();
        recorder.wait_eos();
        assert_eq!(take(&video), [20, 21, 22, 23, 24]);
        // 20 frames of 1/30 s last as long as 33.3 packets of 1/50 s.
        assert_eq!(take(&sound), (34..50).collect::<Vec<_>>());
    }
}
