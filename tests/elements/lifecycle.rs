// SPDX-License-Identifier: LGPL-2.1-or-later
//! Elements under any order of states, flushes and key changes, and with many subscribers.

use gst::prelude::*;
use testing::{Child, Resources, TestDir, until};
use testing_gst::{TestPipeline, TestPipelineExt};

/// Plays the role of a child.
#[test]
fn child() {
    let Some((role, dir)) = testing::role() else { return };
    let test = TestDir::at(&dir, &role);
    match &*role {
        "states" => any_order_of_states(&test),
        other => panic!("{other}?"),
    }
}

const CAMERA: &str =
    "videotestsrc is-live=true ! video/x-raw,format=GRAY8,width=64,height=48,framerate=100/1";

#[test]
fn thousand_state_changes_leak_nothing() {
    let test = TestDir::new("lifecycle-states");
    Child::start(module_path!(), "states", &test.dir).finish();
}

fn any_order_of_states(test: &TestDir) {
    let make = || {
        [
            format!("{CAMERA} ! cuframessink key=a"),
            "cuframessrc key=a ! fakesink async=false sync=false".into(),
            "cuframessrc key=a mode=strict ! fakesink async=false sync=false".into(),
            "cuframespacketsrc key=a ! fakesink async=false sync=false".into(),
        ]
        .map(|description| test.pipeline(&description))
    };
    // Creates what GStreamer keeps from its first use on.
    make().into_iter().for_each(|p| drop(p.playing()));
    let before = Resources::without_threads();
    let pipelines = make();
    let states = [gst::State::Null, gst::State::Ready, gst::State::Paused, gst::State::Playing];
    let mut dice = 1u64;
    for _ in 0..1000 {
        dice = dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let (which, state) = (dice >> 40 & 3, dice >> 50 & 3);
        pipelines[which as usize].set_state(states[state as usize]).unwrap();
    }
    drop(pipelines);
    until(|| Resources::without_threads() == before);
}

#[test]
fn key_changes_between_runs() {
    let test = TestDir::new("lifecycle-key");
    let publisher = test.pipeline(&format!("{CAMERA} ! cuframessink name=pub key=a"));
    let subscriber = test.pipeline("cuframessrc name=src key=a ! fakesink sync=false");
    for (key, state) in [("a", gst::State::Null), ("b", gst::State::Ready), ("c", gst::State::Null)]
    {
        publisher.get("pub").set_property("key", key);
        subscriber.get("src").set_property("key", key);
        publisher.play();
        subscriber.play();
        sees_frames(&subscriber);
        assert_eq!(test.files(), [format!("{key}.lock"), format!("{key}.sock")]);
        publisher.set_state(state).unwrap();
        subscriber.set_state(state).unwrap();
    }
}

#[test]
fn waiting_sources_can_be_disposed() {
    let test = TestDir::new("lifecycle-dispose");
    let publisher = test.pipeline(&format!("{CAMERA} ! cuframessink key=here")).playing();
    for round in 0..50 {
        for source in [
            "cuframessrc key=none",
            "cuframespacketsrc key=none",
            "cuframessrc key=here",
            "cuframespacketsrc key=here",
        ] {
            let pipeline = test.pipeline(&format!("{source} name=src ! fakesink")).playing();
            let weak = pipeline.get("src").downgrade();
            if round % 2 == 0 {
                std::thread::yield_now();
            }
            drop(pipeline);
            until(|| weak.upgrade().is_none());
        }
    }
    drop(publisher);
}

#[test]
fn two_sinks_and_ten_sources_share_a_process() {
    let test = TestDir::new("lifecycle-many");
    let publishers = ["a", "b"]
        .map(|key| test.pipeline(&format!("{CAMERA} ! cuframessink name=pub key={key}")).playing());
    let sources: Vec<_> = (0..10)
        .map(|n| {
            let key = ["a", "b"][n % 2];
            let source = format!("cuframessrc name=src key={key} ! fakesink sync=false");
            test.pipeline(&source).playing()
        })
        .collect();
    sources.iter().for_each(sees_frames);
    for publisher in publishers {
        let stats = publisher.get("pub").property::<gst::Structure>("stats");
        assert_eq!(stats.get::<gst::Array>("subscribers").unwrap().len(), 5);
    }
}

#[test]
fn waiting_sources_can_be_flushed() {
    let test = TestDir::new("lifecycle-flush");
    let subscriber = test.pipeline("cuframessrc name=src key=a ! fakesink sync=false").playing();
    // Events go through the pipeline, which hands them to the source. GStreamer deadlocks when an element
    // gets them directly while its pipeline changes state.
    let flush = || {
        for _ in 0..50 {
            assert!(subscriber.send_event(gst::event::FlushStart::new()));
            assert!(subscriber.send_event(gst::event::FlushStop::new(true)));
        }
    };
    flush();
    let _publisher = test.pipeline(&format!("{CAMERA} ! cuframessink key=a")).playing();
    flush();
    sees_frames(&subscriber);
    flush();
    sees_frames(&subscriber);
}

/// The 33rd of 32 subscribers gets the reason why it has to wait, and gets the place of one that leaves.
#[test]
fn subscriber_over_limit_waits_for_place() {
    let test = TestDir::new("lifecycle-crowd");
    let publisher = test.pipeline(&format!("{CAMERA} ! cuframessink name=pub key=a")).playing();
    let mut crowd: Vec<_> = (0..33)
        .map(|_| {
            test.pipeline("cuframessrc name=src key=a max-frames=2 ! fakesink sync=false").playing()
        })
        .collect();
    until(|| crowd.iter().filter(|p| p.stat("src", "received") > 0).count() >= 32);
    let late = crowd.iter().position(|p| p.stat("src", "received") == 0).expect("one has to wait");
    let late = crowd.swap_remove(late);
    let warning = [gst::MessageType::Warning, gst::MessageType::Error];
    let said = late.bus().unwrap().timed_pop_filtered(gst::ClockTime::NONE, &warning).unwrap();
    let gst::MessageView::Warning(said) = said.view() else { panic!("{said:?}") };
    assert!(said.error().message().contains("all 32 places are taken"), "{said:?}");
    crowd.iter().for_each(sees_frames);
    assert_eq!(late.stat("src", "received"), 0);
    crowd.pop();
    sees_frames(&late);
    let stats = publisher.get("pub").property::<gst::Structure>("stats");
    assert_eq!(stats.get::<u64>("dropped").unwrap(), 0);
}

/// Waits for further frames.
fn sees_frames(pipeline: &TestPipeline) {
    let before = pipeline.stat("src", "received");
    until(|| pipeline.stat("src", "received") > before + 2);
}
