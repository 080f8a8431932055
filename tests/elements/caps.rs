// SPDX-License-Identifier: LGPL-2.1-or-later
//! Caps, properties and messages of the elements.

use gst::prelude::*;
use std::collections::BTreeSet;
use testing::{TestDir, until};
use testing_gst::TestPipelineExt;

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
