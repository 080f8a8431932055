// SPDX-License-Identifier: LGPL-2.1-or-later
//! Readers of packets across publishers, pauses and failures.

use gst::prelude::*;
use testing::{TestDir, until};
use testing_gst::TestPipelineExt;

use super::{picture, play_for, take};

/// The source that the others align with fails before it has begun. They continue without it.
#[test]
fn failed_leader_releases_other_tracks() {
    let test = TestDir::new("leader");
    let publisher = || {
        let publisher = test.pipeline(
            "cuframessink name=pub key=a audiotestsrc is-live=true samplesperbuffer=160 \
             ! audio/x-raw,rate=8000,channels=1 ! mulawenc ! pub.packets_1",
        );
        publisher.play();
        publisher
    };
    let first = publisher();
    let recorder = test.pipeline(
        "cuframespacketsrc name=sound key=a track=1 ! fakesink name=s sync=false async=false \
         cuframespacketsrc name=video key=a track=0 on-lost=error ! fakesink async=false",
    );
    let sound = recorder.collect("s", "sink", |b, _| b.offset());
    recorder.play();
    // Both have joined and wait, because there is no video to begin with.
    let readers = || first.stats("pub").get::<gst::Array>("subscribers").unwrap().len();
    until(|| readers() == 2);
    drop(first);
    let failed = |m: &gst::MessageView<'_>| matches!(m, gst::MessageView::Error(_)).then_some(());
    recorder.message(failed);
    let second = publisher();
    until(|| !sound.lock().unwrap().is_empty());
    // The same happens when the application ends the source.
    let recorder = test.pipeline(
        "cuframespacketsrc name=sound key=a track=1 ! fakesink name=s sync=false async=false \
         cuframespacketsrc name=video key=a track=0 ! fakesink async=false",
    );
    let sound = recorder.collect("s", "sink", |b, _| b.offset());
    recorder.play();
    let readers = || second.stats("pub").get::<gst::Array>("subscribers").unwrap().len();
    until(|| readers() >= 3);
    recorder.get("video").send_event(gst::event::Eos::new());
    until(|| !sound.lock().unwrap().is_empty());
}

/// A source gets all packets of the next publisher from its first keyframe on.
#[test]
fn source_takes_all_packets_of_next_publisher() {
    let test = TestDir::new("next-publisher");
    let subscriber =
        test.pipeline("cuframespacketsrc name=src key=a ! fakesink name=out sync=false");
    let got = subscriber.collect("out", "sink", |b, _| (b.offset(), b.pts().unwrap(), b.flags()));
    subscriber.play();
    for round in 0..3 {
        let publisher = test.pipeline(&format!(
            "{} ! x264enc key-int-max=10 tune=zerolatency speed-preset=ultrafast ! h264parse \
             ! cuframessink name=pub key=a forward-eos=false",
            picture(25)
        ));
        publisher.play();
        if round > 0 {
            subscriber.wait_for("cuframes-reconnected");
        }
        publisher.wait_eos();
        until(|| got.lock().unwrap().last().is_some_and(|g| g.0 == 24));
        drop(publisher);
        subscriber.wait_for("cuframes-lost");
        let got = take(&got);
        if round > 0 {
            assert_eq!(got.iter().map(|g| g.0).collect::<Vec<_>>(), (0..25).collect::<Vec<_>>());
        }
        assert!(got[0].2.contains(gst::BufferFlags::DISCONT));
        assert!(got.windows(2).all(|pair| pair[1].1 > pair[0].1));
    }
    assert_eq!(subscriber.stat("src", "lost"), 0);
}

/// A publisher that waits for a packet reader can be paused, played and stopped.
#[test]
fn waiting_sink_of_packets_can_be_paused_and_stopped() {
    let test = TestDir::new("waits");
    let publisher = test.pipeline(&format!(
        "{} ! x264enc key-int-max=10 tune=zerolatency speed-preset=ultrafast ! h264parse \
         ! cuframessink name=pub key=a policy=wait wait-timeout=3600000000000 packet-buffer-bytes=65536",
        picture(1_000_000)
    ));
    let subscriber = test
        .pipeline("cuframespacketsrc name=src key=a mode=lossless ! fakesink name=out sync=false");
    let got = subscriber.collect("out", "sink", |b, _| b.offset());
    let gate = subscriber.hold("out");
    subscriber.play();
    play_for(&publisher, 1);
    let published = || {
        let tracks: gst::Array = publisher.stats("pub").get("tracks").unwrap();
        let track = tracks.first().map(|t| t.get::<gst::Structure>().unwrap());
        track.map_or(0, |t| t.get::<u64>("published").unwrap())
    };
    let stands = || {
        let before = published();
        std::thread::sleep(std::time::Duration::from_millis(100));
        before > 0 && published() == before
    };
    until(stands);
    publisher.set_state(gst::State::Paused).unwrap();
    publisher.state(gst::ClockTime::NONE).0.unwrap();
    publisher.play();
    let before = published();
    drop(gate);
    until(|| published() > before + 500);
    let gate = subscriber.hold("out");
    until(stands);
    // If this waited for the reader, it would exceed the limit of the watchdog.
    publisher.set_state(gst::State::Null).unwrap();
    drop(gate);
    subscriber.wait_for("cuframes-lost");
    let got = take(&got);
    let all: Vec<_> = (0..got.len() as u64).collect();
    assert_eq!(got, all, "nothing is lost");
    assert_eq!(subscriber.stat("src", "lost"), 0);
}
