// SPDX-License-Identifier: LGPL-2.1-or-later
//! State changes, pads and seeks of the elements.

use gst::prelude::*;
use testing::{TestDir, until};
use testing_gst::TestPipelineExt;

use crate::source;

/// The publisher is closed with PAUSED. The sinks have to forget it as well.
#[test]
fn sink_publishes_again_after_ready() {
    let test = TestDir::new("again");
    let publisher = test.pipeline(&format!(
        "{} ! tee name=t t. ! queue ! x264enc tune=zerolatency ! h264parse ! pub.packets_0 \
         t. ! queue ! pub.sink cuframessink name=pub key=a",
        source(100_000)
    ));
    for state in [gst::State::Ready, gst::State::Null, gst::State::Ready] {
        publisher.play();
        let subscriber = test.pipeline(
            "cuframessrc name=src key=a ! fakesink sync=false \
             cuframespacketsrc name=packets key=a ! fakesink sync=false",
        );
        subscriber.play();
        until(|| subscriber.stat("src", "received") >= 3);
        until(|| subscriber.stat("packets", "received") >= 3);
        publisher.set_state(state).unwrap();
    }
}

/// The pad's thread waits for PLAYING meanwhile.
#[test]
fn pad_is_released_while_buffer_waits() {
    let test = TestDir::new("released");
    let publisher =
        test.pipeline(&format!("{} ! cuframessink name=pub key=a sync=true", source(100)));
    publisher.set_state(gst::State::Paused).unwrap();
    let sink = publisher.get("pub");
    let pad = sink.static_pad("sink").unwrap();
    sink.release_request_pad(&pad);
    assert!(sink.static_pad("sink").is_none());
}

#[test]
fn source_refuses_to_seek() {
    let test = TestDir::new("seek");
    let publisher = test.pipeline(&format!("{} ! cuframessink key=a", source(1_000_000)));
    let subscriber = test.pipeline("cuframessrc name=src key=a ! fakesink name=out sync=false");
    publisher.play();
    subscriber.play();
    until(|| subscriber.stat("src", "received") > 0);
    let flags = gst::SeekFlags::FLUSH;
    assert!(subscriber.seek_simple(flags, gst::ClockTime::ZERO).is_err());
    let mut query = gst::query::Seeking::new(gst::Format::Time);
    subscriber.get("src").query(&mut query);
    assert!(!query.result().0);
}

/// The sequence of GStreamer's generic state tests, with and without a publisher.
#[test]
fn states_change_in_any_order() {
    let test = TestDir::new("states");
    let publisher = test.pipeline(&format!(
        "{} ! tee name=t t. ! queue ! cuframessink name=pub key=a \
         t. ! queue ! x264enc tune=zerolatency ! h264parse ! pub.",
        source(1_000_000)
    ));
    let frames = test.pipeline("cuframessrc key=a ! fakesink sync=false async=false");
    let packets = test.pipeline("cuframespacketsrc key=a ! fakesink sync=false async=false");
    use gst::State::*;
    let orders = [
        [Ready, Null, Ready, Null],
        [Ready, Paused, Ready, Null],
        [Paused, Playing, Paused, Null],
        [Playing, Ready, Playing, Null],
        [Paused, Ready, Paused, Null],
        [Playing, Paused, Playing, Null],
    ];
    for alone in [true, false] {
        for order in orders.iter().chain(&orders) {
            if !alone {
                publisher.play();
            }
            for state in order {
                for pipeline in [&frames, &packets] {
                    pipeline.set_state(*state).unwrap();
                    let (changed, current, _) = pipeline.state(gst::ClockTime::NONE);
                    changed.unwrap();
                    assert_eq!(current, *state);
                }
            }
            for state in if alone { &[Null][..] } else { &order[..] } {
                publisher.set_state(*state).unwrap();
                publisher.state(gst::ClockTime::NONE).0.unwrap();
            }
        }
    }
}

#[test]
fn pads_are_requested_and_released() {
    let test = TestDir::new("pads");
    let pipeline = test.pipeline("cuframessink name=pub key=a");
    let sink = pipeline.get("pub");
    let frames = sink.request_pad_simple("sink").unwrap();
    let first = sink.request_pad_simple("packets_%u").unwrap();
    let third = sink.request_pad_simple("packets_3").unwrap();
    let next = sink.request_pad_simple("packets_%u").unwrap();
    let names = [&frames, &first, &third, &next].map(|pad| pad.name().to_string());
    assert_eq!(names, ["sink", "packets_0", "packets_3", "packets_1"]);
    pipeline.play();
    for pad in [frames, first, third, next] {
        sink.release_request_pad(&pad);
    }
    assert_eq!(sink.pads().len(), 0);
    assert_eq!(sink.downcast_ref::<gst::Bin>().unwrap().children().len(), 0);
    assert!(sink.request_pad_simple("sink").is_some());
}

/// A track continues for its readers when its pad is released and requested again.
#[test]
fn track_continues_on_new_pad() {
    let test = TestDir::new("again");
    let publisher = test.pipeline(
        "videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=60/1 \
         ! x264enc tune=zerolatency key-int-max=10 ! h264parse ! tee name=t ! queue ! fakesink async=false \
         cuframessink name=pub key=a",
    );
    let connect = || {
        let pad = publisher.get("t").request_pad_simple("src_%u").unwrap();
        let track = publisher.get("pub").request_pad_simple("packets_0").unwrap();
        pad.link(&track).unwrap();
        (pad, track)
    };
    let (pad, track) = connect();
    let subscriber = test.pipeline("cuframespacketsrc name=src key=a ! fakesink sync=false");
    publisher.play();
    subscriber.play();
    until(|| subscriber.stat("src", "received") > 10);
    pad.unlink(&track).unwrap();
    publisher.get("t").release_request_pad(&pad);
    publisher.get("pub").release_request_pad(&track);
    connect();
    let before = subscriber.stat("src", "received");
    until(|| subscriber.stat("src", "received") > before + 20);
    assert_eq!(publisher.stats("pub").get::<gst::Array>("tracks").unwrap().len(), 1);
}
