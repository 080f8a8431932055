//! The elements in pipelines of one process. Frames carry their numbers in their pixels.

use std::collections::BTreeSet;
use std::path::Path;

use gst::prelude::*;

use pipeline::{Gate, Pipeline, Setup, until};

#[path = "support/pipeline.rs"]
mod pipeline;
#[path = "../examples/support/stamp.rs"]
mod stamp;

const WIDTH: usize = 320;
const HEIGHT: usize = 240;

fn frame_number(buffer: &gst::Buffer) -> u32 {
    let map = buffer.map_readable().unwrap();
    stamp::read(&map, WIDTH, WIDTH, HEIGHT).expect("a whole picture with one number")
}

fn source(frames: u32) -> String {
    format!(
        "videotestsrc name=camera is-live=true num-buffers={frames} pattern=ball \
         ! video/x-raw,format=NV12,width={WIDTH},height={HEIGHT},framerate=100/1"
    )
}

#[test]
fn frames_cross_without_a_copy() {
    let setup = Setup::new("no-copy");
    let publisher =
        setup.pipeline(&format!("{} ! cuframessink name=pub key=a policy=wait", source(100)));
    let subscriber =
        setup.pipeline("cuframessrc name=src key=a mode=strict ! fakesink name=out sync=false");
    publisher.stamp("camera", (WIDTH, HEIGHT));
    let seen = subscriber.collect("out", "sink", |b, pad| {
        let meta = b.meta::<gst_video::VideoMeta>().expect("the slot's strides");
        assert_eq!(meta.stride(), [WIDTH as i32, WIDTH as i32]);
        assert!(b.peek_memory(0).flags().contains(gst::MemoryFlags::READONLY));
        (frame_number(b), b.offset(), b.pts().unwrap(), pad.current_caps().unwrap())
    });
    subscriber.play();
    publisher.play();
    subscriber.wait_eos();

    let seen = seen.lock().unwrap();
    assert!(seen.len() > 50, "only {} frames", seen.len());
    for pair in seen.windows(2) {
        assert_eq!(pair[1].0, pair[0].0 + 1);
        assert!(pair[1].2 > pair[0].2);
    }
    for (number, seq, ..) in seen.iter() {
        assert_eq!(u64::from(*number), *seq);
    }
    let info = gst_video::VideoInfo::from_caps(&seen[0].3).unwrap();
    assert_eq!((info.format(), info.width()), (gst_video::VideoFormat::Nv12, WIDTH as u32));
    assert_eq!(publisher.stat("pub", "copied"), 0);
    assert_eq!(publisher.stat("pub", "dropped"), 0);
    assert_eq!(subscriber.stat("src", "copied"), 0);
    assert_eq!(subscriber.stat("src", "received"), seen.len() as u64);
    assert_eq!(subscriber.stat("src", "skipped"), 0);
}

#[test]
fn other_memory_is_copied_once_and_counted() {
    let setup = Setup::new("copy");
    let publisher = setup.pipeline(&format!(
        "{} ! identity name=id drop-allocation=true ! cuframessink name=pub key=a policy=wait",
        source(20)
    ));
    let subscriber =
        setup.pipeline("cuframessrc name=src key=a mode=strict ! fakesink name=out sync=false");
    publisher.stamp("camera", (WIDTH, HEIGHT));
    let seen = subscriber.collect("out", "sink", |b, _| frame_number(b));
    subscriber.play();
    publisher.play();
    subscriber.wait_eos();
    assert_eq!(publisher.stat("pub", "copied"), 20);
    assert!(seen.lock().unwrap().windows(2).all(|pair| pair[1] == pair[0] + 1));
}

/// A decoder puts its finished pictures into the slots by itself.
#[test]
fn a_decoder_publishes_without_a_copy() {
    let setup = Setup::new("decoder");
    let publisher = setup.pipeline(&format!(
        "videotestsrc name=camera num-buffers=60 pattern=ball \
         ! video/x-raw,format=I420,width={WIDTH},height={HEIGHT},framerate=30/1 \
         ! x264enc bframes=2 key-int-max=30 bitrate=2000 ! h264parse ! avdec_h264 max-threads=1 \
         ! cuframessink name=pub key=a policy=wait"
    ));
    publisher.stamp("camera", (WIDTH, HEIGHT));
    let subscriber =
        setup.pipeline("cuframessrc name=src key=a mode=strict ! fakesink name=out sync=false");
    let seen = subscriber.collect("out", "sink", |b, _| {
        let meta = b.meta::<gst_video::VideoMeta>().unwrap();
        let (offset, stride) = (meta.offset()[0], meta.stride()[0] as usize);
        let map = b.map_readable().unwrap();
        stamp::read(&map[offset..], stride, WIDTH, HEIGHT).expect("a whole picture")
    });
    subscriber.play();
    publisher.play();
    subscriber.wait_eos();
    let seen = seen.lock().unwrap();
    assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seen:?}");
    assert_eq!(publisher.stat("pub", "published"), 60);
    assert_eq!(publisher.stat("pub", "copied"), 0);
}

#[test]
fn downstream_that_keeps_frames_gets_copies() {
    let setup = Setup::new("keep");
    let publisher =
        setup.pipeline(&format!("{} ! cuframessink name=pub key=a policy=wait", source(40)));
    publisher.stamp("camera", (WIDTH, HEIGHT));
    let subscriber = setup.pipeline(
        "cuframessrc name=src key=a mode=strict max-frames=4 ! fakesink name=out sync=false",
    );
    let kept = subscriber.collect("out", "sink", |b, _| b.clone());
    subscriber.play();
    publisher.play();
    subscriber.wait_eos();
    let kept = kept.lock().unwrap();
    let numbers: Vec<_> = kept.iter().map(frame_number).collect();
    assert!(numbers.len() > 20 && numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
    assert_eq!(subscriber.stat("src", "copied"), kept.len() as u64 - 3);
    assert_eq!(publisher.stat("pub", "dropped"), 0);
}

#[test]
fn running_times_of_two_pipelines_agree() {
    let setup = Setup::new("time");
    let publisher = setup.pipeline(&format!("{} ! cuframessink name=pub key=a", source(60)));
    let subscriber = setup.pipeline("cuframessrc name=src key=a ! fakesink name=out sync=false");
    let absolute = |b: &gst::Buffer, pad: &gst::Pad| {
        let base = pad.parent_element().unwrap().base_time().unwrap();
        let number = b.offset();
        (number, base + b.pts().unwrap(), b.duration().unwrap())
    };
    let sent = publisher.collect("camera", "src", absolute);
    let got = subscriber.collect("out", "sink", absolute);
    publisher.play();
    subscriber.play();
    subscriber.wait_eos();
    let (sent, got) = (sent.lock().unwrap(), got.lock().unwrap());
    let mut compared = 0;
    // The first may be older than the subscriber's pipeline, whose time begins at 0.
    for (seq, time, duration) in got.iter().skip(1) {
        let (_, expected, of) = sent[*seq as usize - 1];
        assert_eq!((*time, *duration), (expected, of), "frame {seq}");
        compared += 1;
    }
    assert!(compared > 10);
}

/// The publisher goes with PAUSED, and what the sinks know of it has to go with it.
#[test]
fn a_sink_that_was_ready_publishes_again() {
    let setup = Setup::new("again");
    let publisher = setup.pipeline(&format!(
        "{} ! tee name=t t. ! queue ! x264enc tune=zerolatency ! h264parse ! pub.packets_0 \
         t. ! queue ! pub.sink cuframessink name=pub key=a",
        source(100_000)
    ));
    for state in [gst::State::Ready, gst::State::Null, gst::State::Ready] {
        publisher.play();
        let subscriber = setup.pipeline(
            "cuframessrc name=src key=a ! fakesink sync=false \
             cuframespacketsrc name=packets key=a ! fakesink sync=false",
        );
        subscriber.play();
        until(|| subscriber.stat("src", "received") >= 3);
        until(|| subscriber.stat("packets", "received") >= 3);
        publisher.0.set_state(state).unwrap();
    }
}

/// Its pad's thread waits for PLAYING then.
#[test]
fn a_pad_is_released_while_a_buffer_waits() {
    let setup = Setup::new("released");
    let publisher =
        setup.pipeline(&format!("{} ! cuframessink name=pub key=a sync=true", source(100)));
    publisher.0.set_state(gst::State::Paused).unwrap();
    let sink = publisher.get("pub");
    let pad = sink.static_pad("sink").unwrap();
    sink.release_request_pad(&pad);
    assert!(sink.static_pad("sink").is_none());
}

/// Its latency makes a camera's frames older than a pipeline that starts with them.
#[test]
fn strict_sources_keep_what_is_older_than_their_pipeline() {
    let setup = Setup::new("older");
    let publisher =
        setup.pipeline(&format!("{} ! cuframessink name=pub key=a policy=wait", source(40)));
    let subscriber = setup.pipeline(
        "cuframessrc name=all key=a mode=strict ! fakesink name=x sync=false \
         cuframessrc name=some key=a ! fakesink name=y sync=false",
    );
    let times = |b: &gst::Buffer, _: &gst::Pad| (b.offset(), b.pts().unwrap());
    let (all, some) =
        (subscriber.collect("x", "sink", times), subscriber.collect("y", "sink", times));
    // Its time begins in an hour.
    let clock = gst::SystemClock::obtain();
    subscriber.0.use_clock(Some(&clock));
    subscriber.0.set_start_time(gst::ClockTime::NONE);
    subscriber.0.set_base_time(clock.time() + gst::ClockTime::from_seconds(3600));
    publisher.0.set_state(gst::State::Paused).unwrap();
    subscriber.play();
    (0..2).for_each(|_| drop(publisher.wait_for("cuframes-subscriber-added")));
    publisher.play();
    subscriber.wait_eos();
    let all = all.lock().unwrap();
    assert_eq!((all.len(), all[0].1), (40, gst::ClockTime::ZERO));
    assert!(all.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1 && pair[1].1 > pair[0].1));
    assert_eq!(some.lock().unwrap().len(), 1);
}

#[test]
fn new_caps_arrive_with_their_first_frame() {
    let setup = Setup::new("caps");
    let publisher = setup.pipeline(
        "videotestsrc is-live=true name=camera ! capsfilter name=filter \
         caps=video/x-raw,format=NV12,width=320,height=240,framerate=100/1 ! cuframessink name=pub key=a",
    );
    let subscriber = setup.pipeline("cuframessrc key=a mode=strict ! fakesink name=out sync=false");
    let seen = subscriber.collect("out", "sink", |b, pad| {
        let info = gst_video::VideoInfo::from_caps(&pad.current_caps().unwrap()).unwrap();
        let meta = b.meta::<gst_video::VideoMeta>().unwrap();
        assert_eq!((meta.width(), meta.height()), (info.width(), info.height()));
        info.width()
    });
    subscriber.play();
    publisher.play();
    for width in [320, 640, 160] {
        let caps = format!("video/x-raw,format=NV12,width={width},height=240,framerate=100/1");
        let caps: gst::Caps = caps.parse().unwrap();
        publisher.get("filter").set_property("caps", caps);
        until(|| seen.lock().unwrap().last() == Some(&width));
    }
    let widths: BTreeSet<_> = seen.lock().unwrap().iter().copied().collect();
    assert_eq!(widths, BTreeSet::from([160, 320, 640]));
}

#[test]
fn a_format_that_nobody_takes_gets_a_sentence() {
    let setup = Setup::new("refused");
    let publisher = setup.pipeline(&format!("{} ! cuframessink key=a", source(1_000_000)));
    publisher.play();
    let subscriber =
        setup.pipeline("cuframessrc key=a ! capsfilter caps=video/x-raw,format=RGB ! fakesink");
    subscriber.play();
    let error = subscriber.message(|m| match m {
        gst::MessageView::Error(e) => Some(e.error().message().to_owned()),
        _ => None,
    });
    assert!(error.contains("Downstream does not take what is published"), "{error}");
}

#[test]
fn sources_wait_and_survive_their_publisher() {
    let setup = Setup::new("restart");
    let subscriber = setup.pipeline("cuframessrc name=src key=a ! fakesink name=out sync=false");
    let seen = subscriber.collect("out", "sink", |b, _| {
        (b.pts().unwrap(), b.flags().contains(gst::BufferFlags::DISCONT))
    });
    subscriber.play();
    for round in 0..3 {
        let before = seen.lock().unwrap().len();
        let publisher = setup.pipeline(&format!("{} ! cuframessink key=a", source(1_000_000)));
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
fn the_end_of_the_stream_ends_sources_or_not() {
    let setup = Setup::new("eos");
    let ends = setup.pipeline("cuframessrc key=a ! fakesink sync=false");
    let waits = setup.pipeline("cuframessrc key=a on-eos=wait ! fakesink name=out sync=false");
    let seen = waits.collect("out", "sink", |_, _| ());
    ends.play();
    waits.play();
    let publisher = setup.pipeline(&format!("{} ! cuframessink key=a", source(10)));
    publisher.play();
    ends.wait_eos();
    publisher.wait_eos();
    drop(publisher);
    let before = seen.lock().unwrap().len();
    let publisher = setup.pipeline(&format!("{} ! cuframessink key=a", source(10)));
    publisher.play();
    until(|| seen.lock().unwrap().len() > before);
}

/// A camera that drops has its publisher's pipeline end, and come back.
#[test]
fn an_end_that_is_not_forwarded_is_a_pause() {
    let setup = Setup::new("no-eos");
    let subscriber = setup.pipeline("cuframessrc name=src key=a ! fakesink sync=false");
    subscriber.play();
    for _ in 0..2 {
        let publisher =
            setup.pipeline(&format!("{} ! cuframessink key=a forward-eos=false", source(10)));
        publisher.play();
        publisher.wait_eos();
        drop(publisher);
        subscriber.wait_for("cuframes-lost");
    }
    assert_eq!(subscriber.stat("src", "reconnects"), 1);
}

#[test]
fn a_lost_publisher_can_be_an_end_or_an_error() {
    let setup = Setup::new("on-lost");
    let ends = setup.pipeline("cuframessrc name=src key=a on-lost=eos ! fakesink sync=false");
    let fails = setup.pipeline("cuframessrc name=src key=a on-lost=error ! fakesink sync=false");
    let publisher = setup.pipeline(&format!("{} ! cuframessink key=a", source(1_000_000)));
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

#[test]
fn mistakes_get_a_sentence() {
    let setup = Setup::new("mistakes");
    let fails = |description: &str, kind: gst::ResourceError, text: &str| {
        let pipeline = setup.pipeline(description);
        let _ = pipeline.0.set_state(gst::State::Playing);
        let error = pipeline.error();
        assert!(error.matches(kind), "{description}: {error}");
        assert!(error.message().contains(text), "{description}: {error}");
    };
    use gst::ResourceError as R;
    for element in ["cuframessrc", "cuframespacketsrc"] {
        fails(&format!("{element} ! fakesink"), R::Settings, "key=cam1");
        fails(&format!("{element} key=.hidden ! fakesink"), R::Settings, "starts with a dot");
        fails(
            &format!("{element} key=a connect-timeout=1000000 ! fakesink"),
            R::NotFound,
            "cuframessink",
        );
    }
    fails("videotestsrc ! cuframessink", R::Settings, "key=cam1");
    fails("videotestsrc ! cuframessink key=a/b", R::Settings, "not allowed");
    fails(
        "videotestsrc ! cuframessink key=a max-subscribers=1000 max-frames-per-subscriber=64",
        R::Settings,
        "max-frames-per-subscriber",
    );
    let publisher = setup.pipeline(&format!("{} ! cuframessink key=a", source(1_000_000)));
    publisher.play();
    until(|| setup.dir.join("a.sock").exists());
    fails("videotestsrc ! cuframessink key=a", R::Busy, &format!("pid {}", std::process::id()));
    fails("cuframessrc key=a max-frames=21 ! fakesink", R::Failed, "asks for 21 frames");
    fails("videotestsrc ! cuframessink key=b socket-group=nobody-s", R::Settings, "nobody-s");
}

#[test]
fn a_sink_serves_whom_it_is_told_to() {
    let setup = Setup::new("allowed");
    let own = nix::unistd::getuid().as_raw();
    let publish = |allowed: &str| {
        let publisher = setup.pipeline(&format!(
            "{} ! cuframessink name=pub key=a socket-mode=0600 allowed-uids=\"{allowed}\"",
            source(1_000_000)
        ));
        publisher.play();
        publisher
    };
    let publisher = publish(&format!("<{}, {}>", own + 1, own + 2));
    let allowed = publisher.get("pub").property::<gst::Array>("allowed-uids");
    assert_eq!(allowed.len(), 2);
    use std::os::unix::fs::PermissionsExt;
    let socket = std::fs::metadata(setup.dir.join("a.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let subscriber = setup.pipeline("cuframessrc name=src key=a ! fakesink sync=false");
    subscriber.play();
    let error = subscriber.error();
    assert!(error.matches(gst::ResourceError::NotAuthorized), "{error}");
    assert!(error.message().contains("allowed-uids"), "{error}");
    drop((publisher, subscriber));

    let _publisher = publish(&format!("<{own}>"));
    let subscriber = setup.pipeline("cuframessrc name=src key=a ! fakesink sync=false");
    subscriber.play();
    until(|| subscriber.stat("src", "received") > 0);
}

#[test]
fn a_source_refuses_to_seek() {
    let setup = Setup::new("seek");
    let publisher = setup.pipeline(&format!("{} ! cuframessink key=a", source(1_000_000)));
    let subscriber = setup.pipeline("cuframessrc name=src key=a ! fakesink name=out sync=false");
    publisher.play();
    subscriber.play();
    until(|| subscriber.stat("src", "received") > 0);
    let flags = gst::SeekFlags::FLUSH;
    assert!(subscriber.0.seek_simple(flags, gst::ClockTime::ZERO).is_err());
    let mut query = gst::query::Seeking::new(gst::Format::Time);
    subscriber.get("src").query(&mut query);
    assert!(!query.result().0);
}

/// As GStreamer's own generic state test does it, with and without a publisher.
#[test]
fn states_change_in_any_order() {
    let setup = Setup::new("states");
    let publisher = setup.pipeline(&format!(
        "{} ! tee name=t t. ! queue ! cuframessink name=pub key=a \
         t. ! queue ! x264enc tune=zerolatency ! h264parse ! pub.",
        source(1_000_000)
    ));
    let frames = setup.pipeline("cuframessrc key=a ! fakesink sync=false async=false");
    let packets = setup.pipeline("cuframespacketsrc key=a ! fakesink sync=false async=false");
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
                    pipeline.0.set_state(*state).unwrap();
                    let (changed, current, _) = pipeline.0.state(gst::ClockTime::NONE);
                    changed.unwrap();
                    assert_eq!(current, *state);
                }
            }
            for state in if alone { &[Null][..] } else { &order[..] } {
                publisher.0.set_state(*state).unwrap();
                publisher.0.state(gst::ClockTime::NONE).0.unwrap();
            }
        }
    }
}

#[test]
fn pads_come_and_go() {
    let setup = Setup::new("pads");
    let pipeline = setup.pipeline("cuframessink name=pub key=a");
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

/// A publisher that waits, for longer than the watchdog does, since its subscriber takes nothing; and what
/// has the subscriber go on. `before` stands in front of the sink.
fn waiting(setup: &Setup, before: &str) -> (Pipeline, Pipeline, Gate) {
    let publisher = setup.pipeline(&format!(
        "{} {before} ! cuframessink name=pub key=a policy=wait wait-timeout=3600000000000",
        source(1_000_000)
    ));
    let subscriber =
        setup.pipeline("cuframessrc name=src key=a mode=strict ! fakesink name=out sync=false");
    let closed = subscriber.hold("out");
    subscriber.play();
    publisher.play();
    publisher.until_it_stands("pub");
    (publisher, subscriber, closed)
}

#[test]
fn flushing_upstream_passes_a_sink_that_waits() {
    let setup = Setup::new("flush");
    // The subscriber takes nothing, so the publisher waits, for longer than the watchdog does.
    let publisher = setup.pipeline(&format!(
        "{} ! cuframessink name=pub key=a policy=wait wait-timeout=3600000000000",
        source(1_000_000)
    ));
    let subscriber =
        setup.pipeline("cuframessrc name=src key=a mode=strict ! fakesink name=out sync=false");
    let closed = subscriber.hold("out");
    publisher.play();
    subscriber.play();
    until(|| subscriber.stat("src", "received") > 0);
    // It stops when the subscriber's share and the window are full.
    publisher.until_it_stands("pub");
    publisher.0.set_state(gst::State::Ready).unwrap();
    drop(closed);
}

/// Upstream may wait for a slot in the pool that it was offered: a seek of it is over at once all the same.
#[test]
fn upstream_that_waits_can_seek() {
    let setup = Setup::new("seek-waits");
    let (publisher, _subscriber, closed) =
        waiting(&setup, "! videoconvert ! video/x-raw,format=I420");
    publisher.0.seek_simple(gst::SeekFlags::FLUSH, gst::ClockTime::ZERO).unwrap();
    publisher.0.set_state(gst::State::Paused).unwrap();
    publisher.play();
    let before = publisher.stat("pub", "published");
    drop(closed);
    until(|| publisher.stat("pub", "published") > before + 20);
}

/// A publisher that waits for a subscriber pauses and plays again, and the stream goes on.
#[test]
fn a_sink_that_waits_can_be_paused() {
    let setup = Setup::new("pause");
    // Copied frames, so that the wait is in the sink and not upstream.
    let (publisher, _subscriber, closed) = waiting(&setup, "! identity drop-allocation=true");
    publisher.0.set_state(gst::State::Paused).unwrap();
    publisher.0.state(gst::ClockTime::NONE).0.unwrap();
    publisher.play();
    let before = publisher.stat("pub", "published");
    drop(closed);
    until(|| publisher.stat("pub", "published") > before + 20);
}

/// Upstream of an element that has the pool may be waiting for a slot when the pipeline ends.
#[test]
fn a_sink_that_waits_can_be_stopped() {
    let setup = Setup::new("stop");
    let (publisher, _subscriber, closed) =
        waiting(&setup, "! videoconvert ! video/x-raw,format=I420");
    // Longer than the watchdog lives, if it had to wait for the subscriber.
    publisher.0.set_state(gst::State::Null).unwrap();
    drop(closed);
}

/// A track whose pad is released and requested again goes on for those who read it.
#[test]
fn a_track_comes_again() {
    let setup = Setup::new("again");
    let publisher = setup.pipeline(
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
    let subscriber = setup.pipeline("cuframespacketsrc name=src key=a ! fakesink sync=false");
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

/// A source is as late as its publisher says to be, also if that is known after it joined.
#[test]
fn the_publishers_latency_is_the_sources() {
    let setup = Setup::new("latency");
    let publisher = setup.pipeline(&format!(
        "{} ! queue min-threshold-time=150000000 ! cuframessink key=a",
        source(1_000_000)
    ));
    let subscriber = setup.pipeline("cuframessrc name=src key=a ! fakesink sync=false");
    subscriber.play();
    publisher.play();
    until(|| {
        let mut query = gst::query::Latency::new();
        subscriber.get("src").query(&mut query);
        let (live, min, _) = query.result();
        live && min >= gst::ClockTime::from_mseconds(150)
    });
}

/// Packets arrive byte for byte as the parser gave them, with caps, times and flags.
#[test]
fn packets_cross_byte_for_byte() {
    for (codec, encoder, parser, format) in [
        ("video/x-h264", "x264enc key-int-max=10 bframes=2", "h264parse", "byte-stream"),
        ("video/x-h264", "x264enc key-int-max=10 bframes=2", "h264parse", "avc"),
        ("video/x-h265", "x265enc key-int-max=10", "h265parse", "byte-stream"),
        ("video/x-h265", "x265enc key-int-max=10", "h265parse", "hvc1"),
    ] {
        let setup = Setup::new("packets");
        let publisher = setup.pipeline(&format!(
            "videotestsrc name=camera num-buffers=60 pattern=ball \
             ! video/x-raw,format=I420,width={WIDTH},height={HEIGHT},framerate=30/1 \
             ! {encoder} ! {parser} name=parser ! {codec},stream-format={format},alignment=au \
             ! cuframessink name=pub key=a"
        ));
        let subscriber = setup.pipeline(
            "cuframespacketsrc name=src key=a start=oldest-keyframe ! fakesink name=out sync=false",
        );
        let of = |b: &gst::Buffer, pad: &gst::Pad| {
            let delta = b.flags().contains(gst::BufferFlags::DELTA_UNIT);
            let bytes = b.map_readable().unwrap().to_vec();
            (bytes, b.pts(), b.dts(), b.duration(), delta, pad.current_caps().unwrap())
        };
        let sent = publisher.collect("parser", "src", of);
        let got = subscriber.collect("out", "sink", of);
        publisher.play();
        publisher.wait_eos();
        // The publisher still has all of it.
        subscriber.play();
        subscriber.wait_eos();
        let (sent, got) = (sent.lock().unwrap(), got.lock().unwrap());
        assert_eq!(sent.len(), 60);
        assert_eq!(got.len(), sent.len());
        assert!(!got[0].4, "the first is a keyframe");
        let ns = |t: Option<gst::ClockTime>| t.map(|t| t.nseconds() as i64);
        let distance = |a: Option<_>, b: Option<_>| Some(ns(a)? - ns(b)?);
        for (s, g) in sent.iter().zip(got.iter()) {
            assert_eq!(s.0, g.0);
            assert_eq!((s.3, s.4), (g.3, g.4));
            assert!(g.5.can_intersect(&s.5) && g.5 == s.5);
            assert_eq!(distance(g.1, s.1), distance(got[0].1, sent[0].1));
            assert_eq!(distance(g.2, s.2), distance(got[0].2, sent[0].2));
        }
    }
}

#[test]
fn a_late_reader_begins_at_the_last_keyframe() {
    let setup = Setup::new("late");
    let publisher = setup.pipeline(&format!(
        "videotestsrc name=camera num-buffers=25 \
         ! video/x-raw,format=I420,width={WIDTH},height={HEIGHT},framerate=30/1 \
         ! x264enc key-int-max=10 tune=zerolatency ! h264parse ! cuframessink name=pub key=a"
    ));
    publisher.play();
    publisher.wait_eos();
    let subscriber = setup.pipeline("cuframespacketsrc key=a ! fakesink name=out sync=false");
    let got = subscriber.collect("out", "sink", |b, _| {
        (b.offset(), b.flags().contains(gst::BufferFlags::DELTA_UNIT))
    });
    subscriber.play();
    subscriber.wait_eos();
    let got = got.lock().unwrap();
    assert_eq!(got.first(), Some(&(20, false)));
    assert_eq!(got.last(), Some(&(24, true)));
}

#[test]
fn subscribers_are_announced_and_listed() {
    let setup = Setup::new("listed");
    let publisher = setup.pipeline(&format!("{} ! cuframessink name=pub key=a", source(1_000_000)));
    publisher.play();
    let subscriber =
        setup.pipeline("cuframessrc name=detector key=a max-frames=3 ! fakesink sync=false");
    subscriber.play();
    let added = publisher.wait_for("cuframes-subscriber-added");
    assert_eq!(added.get::<&str>("name").unwrap(), "detector");
    assert_eq!(added.get::<i32>("pid").unwrap(), std::process::id() as i32);
    until(|| subscriber.stat("detector", "received") > 10);
    let stats = publisher.stats("pub");
    let listed = stats.get::<gst::Array>("subscribers").unwrap();
    let listed = listed[0].get::<gst::Structure>().unwrap();
    assert_eq!(listed.get::<u32>("max-frames").unwrap(), 3);
    assert!(listed.get::<u64>("received").unwrap() >= 10);
    drop(subscriber);
    publisher.wait_for("cuframes-subscriber-removed");
    assert_eq!(publisher.stats("pub").get::<gst::Array>("subscribers").unwrap().len(), 0);
}

/// Every element is found with what a user looks up.
#[test]
fn the_plugin_is_inspectable() {
    let _setup = Setup::new("inspect");
    for name in ["cuframessink", "cuframessrc", "cuframespacketsrc"] {
        let factory = gst::ElementFactory::find(name).unwrap();
        for key in ["long-name", "klass", "description", "author"] {
            assert!(factory.metadata(key).is_some_and(|text| !text.is_empty()), "{name}: {key}");
        }
        let element = factory.create().build().unwrap();
        for property in
            element.list_properties().iter().filter(|p| p.owner_type() == element.type_())
        {
            assert!(property.blurb().is_some_and(|b| b.len() > 5), "{name}.{}", property.name());
        }
    }
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").is_dir());
}
