// SPDX-License-Identifier: LGPL-2.1-or-later
//! A sink that waits for a subscriber, and is paused, stopped or flushed meanwhile.

use gst::prelude::*;
use testing::{TestDir, until};
use testing_gst::{Gate, TestPipeline, TestPipelineExt};

use crate::source;

/// Returns a publisher that waits because its subscriber takes nothing, for longer than the watchdog allows,
/// and the gate that lets the subscriber continue. `before` is in front of the sink.
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
    // The subscriber takes nothing, so that the publisher waits for longer than the watchdog allows.
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
    // It stops when the subscriber's credit and the window are used up.
    publisher.wait_blocked("pub");
    publisher.set_state(gst::State::Ready).unwrap();
    drop(closed);
}

/// Upstream may wait for a slot of the offered pool. A flushing seek ends nevertheless at once.
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

/// A publisher that waits for a subscriber can be paused. The stream continues when it plays again.
#[test]
fn waiting_sink_can_be_paused() {
    let test = TestDir::new("pause");
    // Frames are copied, so that the sink waits and not upstream.
    let (publisher, _subscriber, closed) = waiting(&test, "! identity drop-allocation=true");
    publisher.set_state(gst::State::Paused).unwrap();
    publisher.state(gst::ClockTime::NONE).0.unwrap();
    publisher.play();
    let before = publisher.stat("pub", "published");
    drop(closed);
    until(|| publisher.stat("pub", "published") > before + 20);
}

/// Upstream may wait for a slot of the pool when the pipeline is stopped.
#[test]
fn waiting_sink_can_be_stopped() {
    let test = TestDir::new("stop");
    let (publisher, _subscriber, closed) =
        waiting(&test, "! videoconvert ! video/x-raw,format=I420");
    // If this waited for the subscriber, it would exceed the limit of the watchdog.
    publisher.set_state(gst::State::Null).unwrap();
    drop(closed);
}
