// SPDX-License-Identifier: LGPL-2.1-or-later
//! Publishers that end, are lost, and restart.

use testing::{TestDir, until};
use testing_gst::TestPipelineExt;

use crate::source;

#[test]
fn sources_survive_their_publisher() {
    let test = TestDir::new("restart");
    let subscriber = test.pipeline("cuframessrc name=src key=a ! fakesink name=out sync=false");
    let seen = subscriber.collect("out", "sink", |b, _| {
        (b.pts().unwrap(), b.flags().contains(gst::BufferFlags::DISCONT))
    });
    subscriber.play();
    for round in 0..3 {
        let before = seen.lock().unwrap().len();
        let publisher = test.pipeline(&format!("{} ! cuframessink key=a", source(1_000_000)));
        publisher.play();
        if round > 0 {
            subscriber.wait_for("cuframes-reconnected");
        }
        until(|| seen.lock().unwrap().len() > before + 5);
        drop(publisher);
        let lost = subscriber.wait_for("cuframes-lost");
        assert_eq!(lost.get::<&str>("key").unwrap(), "a");
    }
    assert_eq!(subscriber.stat("src", "reconnects"), 2);
    let seen = seen.lock().unwrap();
    assert!(seen.windows(2).all(|pair| pair[1].0 > pair[0].0), "time goes on");
    let disconts = seen.iter().filter(|(_, discont)| *discont).count() as u64;
    assert!((3..=3 + subscriber.stat("src", "skipped")).contains(&disconts), "{disconts}");
}

#[test]
fn end_of_stream_ends_sources_or_not() {
    let test = TestDir::new("eos");
    let ends = test.pipeline("cuframessrc key=a ! fakesink sync=false");
    let waits = test.pipeline("cuframessrc key=a on-eos=wait ! fakesink name=out sync=false");
    let seen = waits.collect("out", "sink", |_, _| ());
    ends.play();
    waits.play();
    let publisher = test.pipeline(&format!("{} ! cuframessink key=a", source(10)));
    publisher.play();
    ends.wait_eos();
    publisher.wait_eos();
    drop(publisher);
    let before = seen.lock().unwrap().len();
    let publisher = test.pipeline(&format!("{} ! cuframessink key=a", source(10)));
    publisher.play();
    until(|| seen.lock().unwrap().len() > before);
}

/// When a camera drops, the pipeline of its publisher ends and is started again.
#[test]
fn end_that_is_not_forwarded_is_a_pause() {
    let test = TestDir::new("no-eos");
    let subscriber = test.pipeline("cuframessrc name=src key=a ! fakesink sync=false");
    subscriber.play();
    for _ in 0..2 {
        let publisher =
            test.pipeline(&format!("{} ! cuframessink key=a forward-eos=false", source(10)));
        publisher.play();
        publisher.wait_eos();
        drop(publisher);
        subscriber.wait_for("cuframes-lost");
    }
    assert_eq!(subscriber.stat("src", "reconnects"), 1);
}

#[test]
fn lost_publisher_is_end_or_error() {
    let test = TestDir::new("on-lost");
    let ends = test.pipeline("cuframessrc name=src key=a on-lost=eos ! fakesink sync=false");
    let fails = test.pipeline("cuframessrc name=src key=a on-lost=error ! fakesink sync=false");
    let publisher = test.pipeline(&format!("{} ! cuframessink key=a", source(1_000_000)));
    publisher.play();
    for subscriber in [&ends, &fails] {
        subscriber.play();
        until(|| subscriber.stat("src", "received") > 0);
    }
    drop(publisher);
    ends.wait_eos();
    let error = fails.error();
    assert!(error.matches(gst::ResourceError::Read), "{error}");
    assert!(error.message().contains("on-lost=reconnect"), "{error}");
}
