// SPDX-License-Identifier: LGPL-2.1-or-later
//! Publishers and subscribers that violate the protocol, with an element at the other end.

use cuframes::protocol::message::Message;
use gst::prelude::*;
use testing::TestDir;
use testing::raw::{FakePublisher, FakeStream, RawPeer, at, hello};
use testing_gst::TestPipelineExt;

/// Plays a stream to its end, and returns the error if there was one.
fn play(test: &TestDir, element: &str, stream: FakeStream) -> Option<String> {
    let publisher = FakePublisher::new(&test.dir);
    publisher.serve(stream);
    let pipeline = test.pipeline(&format!("{element} key=cam on-lost=eos ! fakesink sync=false"));
    pipeline.play();
    let ends = [gst::MessageType::Error, gst::MessageType::Eos];
    let bus = pipeline.bus().unwrap();
    let message = bus.timed_pop_filtered(gst::ClockTime::NONE, &ends).unwrap();
    match message.view() {
        gst::MessageView::Error(e) => Some(e.error().message().to_owned()),
        _ => None,
    }
}

#[test]
fn frames_that_do_not_fit_their_caps_are_refused() {
    let test = TestDir::new("hostile-frames");
    let check = |caps: &str, record: &[(usize, u64)], expected: Option<&str>| {
        let mut stream = FakeStream::new();
        if !caps.is_empty() {
            let message = Message::Format { generation: 1, caps: caps.into() };
            stream.script[1].bytes = message.encode();
        }
        for (word, value) in record {
            stream.control.set(at::RECORD + word * 8, &[*value]);
        }
        let error = play(&test, "cuframessrc", stream);
        match (expected, &error) {
            (None, None) => {}
            (Some(expected), Some(error)) => assert!(error.contains(expected), "{error}"),
            _ => panic!("{caps} {record:?}: {error:?}"),
        }
    };
    check("", &[], None);
    let (unknown, small) = (Some("not supported by cuframessrc"), Some("does not fit"));
    // The bytes of a v210 line do not follow from its components.
    let packed = "video/x-raw, format=v210, width=48, height=1, framerate=30/1";
    for caps in ["<", "video/x-raw", "audio/x-raw, rate=1", packed] {
        check(caps, &[], unknown);
    }
    // Nested as deeply as a message has room for.
    for bracket in ["{", "<", "[", "[video/x-raw,a="] {
        let deep = bracket.repeat(60_000 / bracket.len());
        check(&format!("video/x-raw, format=GRAY8, a={deep}"), &[], unknown);
    }
    check("video/x-raw, format=GRAY8, width=64, height=33, framerate=30/1", &[], small);
    check("video/x-raw, format=GRAY8, width=2147483647, height=2147483647", &[], unknown);
    check("video/x-raw, format=I420, width=64, height=16, framerate=30/1", &[], small);
    // The colours of a palette are in a plane of their own, after the pixels.
    let palette = "video/x-raw, format=RGB8P, width=32, height=32, framerate=30/1";
    check(palette, &[(9, 2), (10, 32), (11, 1024 << 32 | 4)], None);
    check(palette, &[(9, 2), (10, 32), (11, 1025 << 32 | 4)], small);
    // Strides that are negative, and too long.
    check("", &[(10, u64::from(-64i32 as u32))], small);
    check("", &[(10, i32::MAX as u64)], small);
    // The crop has to be within the picture.
    check("", &[(9, 1 << 32 | 1), (14, 0), (15, 64 << 32 | 32)], None);
    check("", &[(9, 1 << 32 | 1), (14, 1 << 32), (15, 64 << 32 | 32)], small);
    check("", &[(9, 1 << 32 | 1), (14, u64::MAX), (15, u64::MAX)], small);
    // Every value of a time is valid.
    for time in [0, 1, i64::MAX as u64, (i64::MIN + 1) as u64, i64::MIN as u64] {
        check("", &[(3, time)], None);
        check("", &[(7, time)], None);
        check("", &[(3, time), (7, !time), (6, time)], None);
    }
    check("", &[(2, u64::from(u32::MAX)), (5, u64::MAX - 1)], None);
}

#[test]
fn packets_of_any_time_are_accepted() {
    let test = TestDir::new("hostile-packets");
    let entry = |word: usize, value: u64| {
        let stream = FakeStream::new();
        stream.track.set(at::PACKETS + word * 8, &[value]);
        play(&test, "cuframespacketsrc", stream)
    };
    for word in 3..9 {
        for value in [0, 1, u64::MAX, i64::MAX as u64, i64::MIN as u64, (i64::MIN + 1) as u64] {
            assert_eq!(entry(word, value), None, "{word} {value:x}");
        }
    }
    let mut stream = FakeStream::new();
    stream.control.set(272, &[u64::MAX]);
    assert_eq!(play(&test, "cuframespacketsrc", stream), None);
    let deep = format!("video/x-h264, a={}", "{".repeat(60_000));
    for caps in
        ["<", &deep, "audio/x-raw", "video/x-h264, alignment=au", "audio/x-opus, rate=[1,2]"]
    {
        stream = FakeStream::new();
        let message = Message::TrackFormat { track: 0, generation: 1, caps: caps.into() };
        stream.script[4].bytes = message.encode();
        let error = play(&test, "cuframespacketsrc", stream).unwrap();
        assert!(error.contains("not supported by cuframespacketsrc"), "{error}");
    }
}

/// Names of subscribers may have any characters, and are not C strings.
#[test]
fn any_subscriber_name_is_shown() {
    let test = TestDir::new("hostile-names");
    let pipeline = test.pipeline("videotestsrc is-live=true ! cuframessink name=pub key=cam");
    pipeline.play();
    let bus = pipeline.bus().unwrap();
    for name in ["", "\u{202e}gnp.exe", "</\"'{}%n%s", &"ü".repeat(127)] {
        let peer = RawPeer::connect(&test.dir);
        peer.send(&hello(1, name), &[]);
        let added = std::iter::from_fn(|| bus.timed_pop(gst::ClockTime::NONE))
            .find_map(|m| Some(m.structure()?.to_owned()).filter(|s| s.name().ends_with("added")))
            .unwrap();
        assert_eq!(added.get::<&str>("name").unwrap(), name);
        assert_eq!(added.get::<u32>("uid").unwrap(), nix::unistd::getuid().as_raw());
        assert!(pipeline.stats("pub").to_string().contains("subscriber"));
    }
}
