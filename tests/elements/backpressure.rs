// SPDX-License-Identifier: LGPL-2.1-or-later
//! A sink that waits for a subscriber, and what may happen meanwhile.

use gst::prelude::*;
use testing::{TestDir, until};
use testing_gst::{Gate, TestPipeline, TestPipelineExt};

use crate::source;

/// A publisher that waits, for longer than the watchdog does, since its subscriber takes nothing; and what
/// has the subscriber go on. `before` stands in front of the sink.
pub(crate) fn waiting(test: &TestDir, before: &str) -> (TestPipeline, TestPipeline, Gate) {
    let publisher = test.pipeline(&format!(
        "{} {before} ! cuframessink name=pub key=a policy=wait wait-timeout=3600000000000",
        source(1_000_000)
    ));
    let subscriber =
        test.pipeline("cuframessrc name=src key=a mode=strict ! fakesink name=out sync=false");
    let closed = subscriber.hold("out");
    subscriber.play();
    publisher.play();
    publisher.wait_blocked("pub");
    (publisher, subscriber, closed)
}

#[test]
fn waiting_sink_can_be_flushed() {
    let test = TestDir::new("flush");
    // The subscriber takes nothing, so the publisher waits, for longer than the watchdog does.
    let publisher = test.pipeline(&format!(
        "{} ! cuframessink name=pub key=a policy=wait wait-timeout=3600000000000",
        source(1_000_000)
    ));
    let subscriber =
        test.pipeline("cuframessrc name=src key=a mode=strict ! fakesink name=out sync=false");
    let closed = subscriber.hold("out");
    publisher.play();
    subscriber.play();
    until(|| subscriber.stat("src", "received") > 0);
    // It stops when the subscriber's share and the window are full.
    publisher.wait_blocked("pub");
    publisher.set_state(gst::State::Ready).unwrap();
    drop(closed);
}

/// Upstream may wait for a slot in the pool that it was offered: a seek of it is over at once all the same.
#[test]
fn waiting_upstream_can_seek() {
    let test = TestDir::new("seek-waits");
    let (publisher, _subscriber, closed) =
        waiting(&test, "! videoconvert ! video/x-raw,format=I420");
    publisher.seek_simple(gst::SeekFlags::FLUSH, gst::ClockTime::ZERO).unwrap();
    publisher.set_state(gst::State::Paused).unwrap();
    publisher.play();
    let before = publisher.stat("pub", "published");
    drop(closed);
    until(|| publisher.stat("pub", "published") > before + 20);
}

/// A publisher that waits for a subscriber pauses and plays again, and the stream goes on.
#[test]
fn waiting_sink_can_be_paused() {
    let test = TestDir::new("pause");
    // Copied frames, so that the wait is in the sink and not upstream.
    let (publisher, _subscriber, closed) = waiting(&test, "! identity drop-allocation=true");
    publisher.set_state(gst::State::Paused).unwrap();
    publisher.state(gst::ClockTime::NONE).0.unwrap();
    publisher.play();
    let before = publisher.stat("pub", "published");
    drop(closed);
    until(|| publisher.stat("pub", "published") > before + 20);
}

/// Upstream of an element that has the pool may be waiting for a slot when the pipeline ends.
#[test]
fn waiting_sink_can_be_stopped() {
    let test = TestDir::new("stop");
    let (publisher, _subscriber, closed) =
        waiting(&test, "! videoconvert ! video/x-raw,format=I420");
    // Longer than the watchdog lives, if it had to wait for the subscriber.
    publisher.set_state(gst::State::Null).unwrap();
    drop(closed);
}
