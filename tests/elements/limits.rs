// SPDX-License-Identifier: LGPL-2.1-or-later
//! Elements in a process that is out of file descriptors.

use std::sync::Arc;

use cuframes::memory::host::HostBackend;
use cuframes::{FrameInfo, Planes, Publisher};
use gst::prelude::*;
use nix::sys::resource::Resource;
use testing::{Child, FullTable, Resources, SIZE, TestDir, info, limit, until};
use testing_gst::{TestPipeline, TestPipelineExt};

/// The limit applies to a process, so that the test has one of its own.
#[test]
fn elements_without_fds() {
    let test = TestDir::new("limits-elements");
    Child::start(module_path!(), "elements", &test.dir).finish();
}

/// Plays the role of a child.
#[test]
fn child() {
    let Some((role, dir)) = testing::role() else { return };
    assert_eq!(role, "elements");
    let test = TestDir::at(&dir, &role);
    let publisher = test.publisher(Arc::new(HostBackend), |_| {});
    let caps = "video/x-raw, format=GRAY8, width=100, height=60, framerate=30/1";
    publisher.set_format(caps, SIZE).unwrap();
    let source = "cuframessrc name=src key=cam ! fakesink sync=false";
    // GStreamer itself needs fds for its first bus and clock.
    test.pipeline(source).set_state(gst::State::Paused).unwrap();
    let subscriber = test.pipeline(source);
    let sink = test.pipeline("videotestsrc ! cuframessink key=other");
    limit(Resource::RLIMIT_NOFILE, Resources::now().fds as u64 + 40);
    let full = FullTable::with_room_for(0);
    // Elements can be created nevertheless.
    let _another = gst::ElementFactory::make("cuframespacketsrc").build().unwrap();
    assert!(sink.set_state(gst::State::Paused).is_err());
    assert!(sink.error().message().contains("Too many open files"));
    check_source(&publisher, &subscriber, full);
}

/// The source reports that fds are missing, and continues once there are some.
fn check_source(publisher: &Publisher, subscriber: &TestPipeline, full: FullTable) {
    subscriber.play();
    let warning = subscriber.message(|m| match m {
        gst::MessageView::Warning(w) => Some(w.error()),
        _ => None,
    });
    assert!(warning.message().contains("Too many open files"), "{warning}");
    drop(full);
    until(|| {
        let loan = publisher.loan(SIZE).unwrap().expect("a free slot");
        let planes = Planes::new(&[0], &[100]);
        publisher.publish(loan, &FrameInfo { planes, ..info(0, SIZE) });
        subscriber.stat("src", "received") > 0
    });
}
