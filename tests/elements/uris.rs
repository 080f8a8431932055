// SPDX-License-Identifier: LGPL-2.1-or-later
//! URIs, for applications that have no other place for a key.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use gst::glib;
use gst::prelude::*;
use testing::{TestDir, until};
use testing_gst::{TestPipeline, TestPipelineExt, init};

fn make(uri: &str) -> Result<gst::Element, glib::Error> {
    gst::Element::make_from_uri(gst::URIType::Src, uri, None)
}

#[test]
fn uri_creates_element() {
    init();
    let source = make("cuframes://cam1.sub?mode=strict&max-frames=3&connect-timeout=5&").unwrap();
    assert_eq!(source.factory().unwrap().name(), "cuframessrc");
    assert_eq!(source.property::<String>("key"), "cam1.sub");
    assert_eq!(source.property::<u32>("max-frames"), 3);
    assert_eq!(source.property::<u64>("connect-timeout"), 5);
    assert_eq!(source.property_value("mode").serialize().unwrap(), "strict");

    let source = make("cuframes-packets://cam1/?track=2&start=oldest-keyframe").unwrap();
    assert_eq!(source.factory().unwrap().name(), "cuframespacketsrc");
    assert_eq!(source.property::<String>("key"), "cam1");
    assert_eq!(source.property::<u32>("track"), 2);
}

#[test]
fn element_reports_its_uri() {
    init();
    for uri in [
        "cuframes://cam1",
        "cuframes://cam1?on-lost=error&mode=strict",
        "cuframes://cam1?runtime-dir=%2Fsrv%2Fone%20%26%20all",
        "cuframes-packets://cam1?track=1",
    ] {
        let source = make(uri).unwrap().dynamic_cast::<gst::URIHandler>().unwrap();
        assert_eq!(source.uri().unwrap(), uri);
        assert_eq!(source.uri_type(), gst::URIType::Src);
    }
    let source = gst::ElementFactory::make("cuframessrc").build().unwrap();
    let source = source.dynamic_cast::<gst::URIHandler>().unwrap();
    assert_eq!(source.uri(), None);
    let dir = "/a dir";
    source.set_property("runtime-dir", dir);
    source.set_uri("cuframes://cam2").unwrap();
    assert_eq!(source.property::<String>("runtime-dir"), dir, "what is not named stays");
}

#[test]
fn wrong_uri_is_refused_with_advice() {
    init();
    for (uri, says) in [
        ("cuframes://", "The key '' is empty: use 1 to 63"),
        ("cuframes://.cam", "starts with a dot"),
        ("cuframes://a/b", "not allowed"),
        ("cuframes://%zz", "escaped"),
        ("cuframes://cam?mode", "'mode' in 'cuframes://cam?mode' has no value: use cuframes://KEY"),
        ("cuframes://cam?mode=sloppy", "mode can't be 'sloppy'"),
        ("cuframes://cam?mode=sloppy", "it takes newest, strict"),
        ("cuframes://cam?max-frames=65", "it takes 1 to 64"),
        ("cuframes://cam?max-frames=x", "max-frames can't be 'x'"),
        ("cuframes://cam?speed=2", "'speed' in 'cuframes://cam?speed=2' can't be set by a URI"),
        ("cuframes://cam?speed=2", "max-frames"),
        ("cuframes://cam?key=other", "'key'"),
        ("cuframes://cam?stats=x", "'stats'"),
        ("cuframes://cam?name=x", "'name'"),
        ("cuframes-packets://cam?mode=strict", "it takes live, lossless"),
    ] {
        let error = make(uri).unwrap_err();
        assert!(error.matches(gst::URIError::BadUri), "{uri}: {error:?}");
        assert!(error.message().contains(says), "{uri}: {error}");
    }
}

#[test]
fn refused_uri_sets_nothing() {
    init();
    let source = make("cuframes://cam?max-frames=2").unwrap();
    let handler = source.dynamic_cast_ref::<gst::URIHandler>().unwrap();
    handler.set_uri("cuframes://other?max-frames=3&mode=sloppy").unwrap_err();
    assert_eq!(handler.uri().unwrap(), "cuframes://cam?max-frames=2");
}

/// Waits for so many buffers at the element `out`. Fails if the pipeline fails.
fn wait_buffers(pipeline: &TestPipeline, buffers: u32) {
    // A player contains its sink only while it plays.
    let out = pipeline.by_name("out").unwrap_or_else(|| pipeline.property("video-sink"));
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    out.static_pad("sink").unwrap().add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        gst::PadProbeReturn::Ok
    });
    let bus = pipeline.bus().unwrap();
    until(|| {
        if let Some(failed) = bus.pop_filtered(&[gst::MessageType::Error]) {
            panic!("{failed:?}");
        }
        count.load(Ordering::Relaxed) >= buffers
    });
}

/// Checks that a player of URIs plays frames and packets.
fn plays(key: &str, player: &str, rest: &str) {
    let test = TestDir::new(&format!("uri-{key}"));
    let _publisher = test
        .pipeline(&format!(
            "videotestsrc is-live=true ! video/x-raw,format=NV12,width=160,height=120,framerate=60/1 \
             ! tee name=t t. ! queue ! cuframessink name=pub key={key} \
             t. ! queue ! x264enc tune=zerolatency key-int-max=15 ! h264parse ! pub.packets_0"
        ))
        .playing();
    let escaped = glib::uri_escape_string(test.dir.to_str().unwrap(), glib::GStr::NONE, false);
    for scheme in ["cuframes", "cuframes-packets"] {
        let uri = format!("{scheme}://{key}?runtime-dir={escaped}");
        let player = TestPipeline::parse(&format!("{player} uri={uri} {rest}")).playing();
        wait_buffers(&player, 10);
    }
}

#[test]
fn uridecodebin_plays_uris() {
    plays("decode", "uridecodebin", "! fakesink name=out");
}

#[test]
fn uridecodebin3_plays_uris() {
    plays("decode3", "uridecodebin3", "! fakesink name=out");
}

#[test]
fn playbin_plays_uris() {
    plays("play", "playbin", "video-sink=\"fakesink name=out\"");
}

#[test]
fn playbin3_plays_uris() {
    plays("play3", "playbin3", "video-sink=\"fakesink name=out\"");
}
