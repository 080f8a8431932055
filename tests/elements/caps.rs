// SPDX-License-Identifier: LGPL-2.1-or-later
//! Caps, properties and messages of the elements.

use cuframes::protocol::wire::MAX_CAPS;
use gst::prelude::*;
use std::collections::BTreeSet;
use testing::{TestDir, until};
use testing_gst::{TestPipeline, TestPipelineExt};

use crate::packets::play_for;
use crate::source;

#[test]
fn caps_arrive_with_their_first_frame() {
    let test = TestDir::new("caps");
    let publisher = test.pipeline(
        "videotestsrc is-live=true name=camera ! capsfilter name=filter \
         caps=video/x-raw,format=NV12,width=320,height=240,framerate=100/1 ! cuframessink name=pub key=a",
    );
    let subscriber = test.pipeline("cuframessrc key=a mode=strict ! fakesink name=out sync=false");
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
fn unsupported_format_is_explained() {
    let test = TestDir::new("refused");
    let publisher = test.pipeline(&format!("{} ! cuframessink key=a", source(1_000_000)));
    publisher.play();
    let subscriber =
        test.pipeline("cuframessrc key=a ! capsfilter caps=video/x-raw,format=RGB ! fakesink");
    subscriber.play();
    let error = subscriber.message(|m| match m {
        gst::MessageView::Error(e) => Some(e.error().message().to_owned()),
        _ => None,
    });
    assert!(error.contains("Downstream does not take what is published"), "{error}");
}

#[test]
fn wrong_settings_are_explained() {
    let test = TestDir::new("mistakes");
    let fails = |description: &str, kind: gst::ResourceError, text: &str| {
        let pipeline = test.pipeline(description);
        let _ = pipeline.set_state(gst::State::Playing);
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
    let publisher = test.pipeline(&format!("{} ! cuframessink key=a", source(1_000_000)));
    publisher.play();
    until(|| test.dir.join("a.sock").exists());
    fails("videotestsrc ! cuframessink key=a", R::Busy, &format!("pid {}", std::process::id()));
    fails("cuframessrc key=a max-frames=21 ! fakesink", R::Failed, "asks for 21 frames");
    fails("videotestsrc ! cuframessink key=b socket-group=nobody-s", R::Settings, "nobody-s");
}

#[test]
fn sink_serves_allowed_users() {
    let test = TestDir::new("allowed");
    let own = nix::unistd::getuid().as_raw();
    let publish = |allowed: &str| {
        let publisher = test.pipeline(&format!(
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
    let socket = std::fs::metadata(test.dir.join("a.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let subscriber = test.pipeline("cuframessrc name=src key=a ! fakesink sync=false");
    subscriber.play();
    let error = subscriber.error();
    assert!(error.matches(gst::ResourceError::NotAuthorized), "{error}");
    assert!(error.message().contains("allowed-uids"), "{error}");
    drop((publisher, subscriber));

    let _publisher = publish(&format!("<{own}>"));
    let subscriber = test.pipeline("cuframessrc name=src key=a ! fakesink sync=false");
    subscriber.play();
    until(|| subscriber.stat("src", "received") > 0);
}

/// Every element has the metadata that gst-inspect-1.0 shows.
#[test]
fn plugin_is_inspectable() {
    let _setup = TestDir::new("inspect");
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
    assert!(testing::root().join("docs").is_dir());
}

#[test]
fn subscribers_are_announced_and_listed() {
    let test = TestDir::new("listed");
    let publisher = test.pipeline(&format!("{} ! cuframessink name=pub key=a", source(1_000_000)));
    publisher.play();
    let subscriber =
        test.pipeline("cuframessrc name=detector key=a max-frames=3 ! fakesink sync=false");
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

/// Maximum number of opening brackets in the caps that a source parses.
const MAX_BRACKETS: usize = 64;

/// Returns caps with one more field, whose value is a list in a list, and so on.
fn nested(caps: &str, depth: usize) -> gst::Caps {
    format!("{caps}, list={}1{}", "<".repeat(depth), ">".repeat(depth)).parse().unwrap()
}

/// Returns caps with one more field, whose text has `len` bytes.
fn padded(caps: &str, len: usize) -> gst::Caps {
    let with = |len| format!("{caps}, pad={}", "p".repeat(len)).parse::<gst::Caps>().unwrap();
    let shortest = with(1).to_string().len();
    let caps = with(len - shortest + 1);
    assert_eq!(caps.to_string().len(), len);
    caps
}

/// Pushes a buffer of these bytes from the appsrc `in`.
fn push(pipeline: &TestPipeline, caps: &gst::Caps, flags: gst::BufferFlags, bytes: Vec<u8>) {
    let mut buffer = gst::Buffer::from_mut_slice(bytes);
    buffer.get_mut().unwrap().set_flags(flags);
    let sample = gst::Sample::builder().buffer(&buffer).caps(caps).build();
    pipeline.get("in").downcast::<gst_app::AppSrc>().unwrap().push_sample(&sample).unwrap();
}

#[test]
fn packets_with_rejected_caps_are_left_out() {
    const OPUS: &str = "audio/x-opus, channel-mapping-family=(int)0";
    let test = TestDir::new("packet-caps");
    let publisher = test.pipeline(&format!(
        "{} ! cuframessink name=pub key=a appsrc name=in is-live=true format=time ! pub.packets_3",
        source(1_000_000)
    ));
    let frames = test.pipeline("cuframessrc name=src key=a ! fakesink sync=false").playing();
    let packets = test.pipeline(
        "cuframespacketsrc name=src key=a track=3 start=oldest-keyframe ! fakesink name=out sync=false",
    );
    let got = packets.collect("out", "sink", |b, pad| {
        let discont = b.flags().contains(gst::BufferFlags::DISCONT);
        (b.map_readable().unwrap()[0], discont, pad.current_caps().unwrap())
    });
    packets.play();
    let (keyframe, delta) = (gst::BufferFlags::empty(), gst::BufferFlags::DELTA_UNIT);
    let push = |number, caps: &gst::Caps, flags| push(&publisher, caps, flags, vec![number]);
    let warning = |problem: &str| {
        let text = publisher.message(|m| match m {
            gst::MessageView::Warning(w) => Some(w.error().message().to_owned()),
            _ => None,
        });
        assert!(text.contains("pad packets_3 of 'a'") && text.contains(problem), "{text}");
    };
    publisher.play();

    // Opus from a file with a cover picture has such a header.
    let header = "aa".repeat(70_000);
    let cover = format!("{OPUS}, streamheader=(buffer)<{header}>").parse::<gst::Caps>().unwrap();
    push(0, &cover, keyframe);
    push(1, &padded(OPUS, MAX_CAPS + 1), keyframe);
    warning(&format!("have {} bytes", cover.to_string().len()));
    let plain: gst::Caps = OPUS.parse().unwrap();
    // It depends on a packet that was left out.
    push(2, &plain, delta);
    push(3, &plain, keyframe);
    push(4, &plain, delta);
    until(|| got.lock().unwrap().len() == 2);
    // The second problem in a row is not reported.
    assert!(publisher.bus().unwrap().pop_filtered(&[gst::MessageType::Warning]).is_none());

    push(5, &nested(OPUS, MAX_BRACKETS + 1), keyframe);
    warning("65 opening brackets");
    let longest = padded(OPUS, MAX_CAPS);
    push(6, &longest, delta);
    push(7, &longest, keyframe);
    let object = gst::Caps::builder("audio/x-opus").field("object", publisher.get("in")).build();
    push(8, &object, keyframe);
    warning("such as an object");
    let deepest = nested(OPUS, MAX_BRACKETS);
    push(9, &deepest, keyframe);
    until(|| got.lock().unwrap().len() == 4);
    let expected =
        [(3, true, plain.clone()), (4, false, plain), (7, true, longest), (9, true, deepest)];
    assert_eq!(*got.lock().unwrap(), expected);

    // All the time, frames flowed.
    let received = frames.stat("src", "received");
    until(|| frames.stat("src", "received") > received + 10);
    assert_eq!(frames.stat("src", "reconnects"), 0);
}

#[test]
fn rejected_caps_of_frames_are_explained() {
    const GRAY: &str = "video/x-raw, format=GRAY8, width=4, height=1, framerate=30/1";
    testing_gst::init();
    let test = TestDir::new("frame-caps");
    let sink =
        || test.pipeline("appsrc name=in is-live=true format=time ! cuframessink name=pub key=a");
    let push = |pipeline: &TestPipeline, caps: &gst::Caps| {
        push(pipeline, caps, gst::BufferFlags::empty(), vec![0; 4]);
    };
    for (caps, problem) in [
        (padded(GRAY, MAX_CAPS + 1), "61441 bytes"),
        (nested(GRAY, MAX_BRACKETS + 1), "65 opening brackets"),
    ] {
        let publisher = sink().playing();
        push(&publisher, &caps);
        let error = publisher.error();
        assert!(error.matches(gst::CoreError::Negotiation), "{error}");
        let text = error.message();
        assert!(text.contains("pad sink of 'a'") && text.contains(problem), "{text}");
    }
    let publisher = sink();
    let subscriber = test.pipeline("cuframessrc key=a mode=strict ! fakesink name=out sync=false");
    let got = subscriber.collect("out", "sink", |_, pad| pad.current_caps().unwrap());
    subscriber.play();
    play_for(&publisher, 1);
    let limits = [padded(GRAY, MAX_CAPS), nested(GRAY, MAX_BRACKETS)];
    for (n, caps) in limits.iter().enumerate() {
        push(&publisher, caps);
        until(|| got.lock().unwrap().len() == n + 1);
    }
    assert_eq!(*got.lock().unwrap(), limits);
}
