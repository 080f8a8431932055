// SPDX-License-Identifier: LGPL-2.1-or-later
//! Live keys as devices, for applications that list cameras.

use std::sync::Arc;

use cuframes::memory::host::HostBackend;
use cuframes::{Publisher, PublisherConfig, TrackConfig};
use gst::prelude::*;
use nix::sys::signal::Signal;
use testing::{Child, ChildGroup, SIZE, TestDir};

const CAPS: &str =
    "video/x-raw, format=(string)NV12, width=(int)320, height=(int)240, framerate=(fraction)30/1";

/// Runs a role in a process of its own, because a provider searches the default runtime directory only, and
/// all monitors of a process share one provider.
fn run(role: &str) {
    let test = TestDir::new(&format!("devices-{role}"));
    let mut command = Child::command(module_path!(), role, &test.dir);
    Child::spawn(command.env("CUFRAMES_RUNTIME_DIR", &test.dir)).finish();
}

/// Plays the role of a child.
#[test]
fn child() {
    let Some((role, dir)) = testing::role() else { return };
    testing_gst::init();
    let test = TestDir::at(&dir, &role);
    match &*role {
        "follow" => follow(&test),
        "probe" => probe(&test),
        "element" => element(&test),
        "killed" => killed(&test),
        other => panic!("{other}?"),
    }
}

fn publisher(test: &TestDir, key: &str) -> Publisher {
    let config = PublisherConfig { key: key.into(), ..test.config() };
    Publisher::open(config, Arc::new(HostBackend), |_| {}).unwrap()
}

fn monitor() -> gst::DeviceMonitor {
    let monitor = gst::DeviceMonitor::new();
    monitor.add_filter(Some("Source/Video"), None).unwrap();
    monitor
}

/// Returns the key and the track of a device.
fn target(device: &gst::Device) -> (String, Option<u32>) {
    let properties = device.properties().unwrap();
    let key = properties.get::<String>("cuframes.key").unwrap_or_default();
    (key, properties.get("cuframes.track").ok())
}

/// Waits for the next message of the monitor about a key: added, changed or removed.
fn next(bus: &gst::Bus, key: &str) -> (&'static str, gst::Device) {
    for message in bus.iter_timed(gst::ClockTime::NONE) {
        let said = match message.view() {
            gst::MessageView::DeviceAdded(m) => ("added", m.device()),
            gst::MessageView::DeviceChanged(m) => ("changed", m.device_changed().0),
            gst::MessageView::DeviceRemoved(m) => ("removed", m.device()),
            _ => continue,
        };
        if target(&said.1).0 == key {
            return said;
        }
    }
    unreachable!("the iterator ends with the bus only")
}

#[test]
fn devices_follow_keys() {
    run("follow");
}

fn follow(test: &TestDir) {
    let monitor = monitor();
    let bus = monitor.bus();
    monitor.start().unwrap();

    // A device appears once its caps are known.
    let publisher = publisher(test, "follow");
    publisher.set_format(CAPS, SIZE).unwrap();
    let (what, device) = next(&bus, "follow");
    assert_eq!((what, device.display_name().as_str()), ("added", "follow"));
    assert_eq!(device.device_class(), "Source/Video");
    assert_eq!(device.caps().unwrap().to_string(), CAPS);

    let smaller = CAPS.replace("320", "160");
    publisher.set_format(&smaller, SIZE / 2).unwrap();
    let (what, device) = next(&bus, "follow");
    assert_eq!((what, device.caps().unwrap().to_string()), ("changed", smaller));

    let h264 = "video/x-h264, stream-format=(string)avc";
    let track = publisher.add_track(1, h264, TrackConfig::default()).unwrap();
    let (what, device) = next(&bus, "follow");
    assert_eq!((what, device.display_name().as_str()), ("added", "follow (packets_1)"));
    assert_eq!(device.caps().unwrap().to_string(), h264);

    drop((track, publisher));
    assert_eq!([next(&bus, "follow").0, next(&bus, "follow").0], ["removed"; 2]);
    monitor.stop();
}

#[test]
fn devices_of_live_keys_are_listed_at_once() {
    run("probe");
}

fn probe(test: &TestDir) {
    let publisher = publisher(test, "probe");
    publisher.set_format(CAPS, SIZE).unwrap();
    let monitor = monitor();
    let listed = || monitor.devices().iter().any(|d| target(d) == ("probe".into(), None));
    assert!(listed(), "without starting the monitor");
    monitor.start().unwrap();
    assert!(listed());
    monitor.stop();
}

#[test]
fn device_creates_its_element() {
    run("element");
}

fn element(test: &TestDir) {
    let publisher = publisher(test, "element");
    publisher.set_format(CAPS, SIZE).unwrap();
    let _track = publisher.add_track(2, "video/x-h264", TrackConfig::default()).unwrap();
    let devices = monitor().devices();
    let device = |track| devices.iter().find(|d| target(d) == ("element".into(), track)).unwrap();
    let check = |element: &gst::Element, factory: &str| {
        assert_eq!(element.factory().unwrap().name(), factory);
        assert_eq!(element.property::<String>("key"), "element");
        assert_eq!(element.property::<String>("runtime-dir"), test.dir.to_str().unwrap());
    };
    let source = device(None).create_element(Some("camera")).unwrap();
    check(&source, "cuframessrc");
    assert_eq!(source.name(), "camera");
    let packets = device(Some(2)).create_element(None).unwrap();
    check(&packets, "cuframespacketsrc");
    assert_eq!(packets.property::<u32>("track"), 2);

    let other = gst::ElementFactory::make("cuframessrc").property("key", "other").build().unwrap();
    device(None).reconfigure_element(&other).unwrap();
    check(&other, "cuframessrc");
    device(Some(2)).reconfigure_element(&other).unwrap_err();
}

/// A killed publisher leaves its files. Its device disappears nevertheless.
#[test]
fn device_of_killed_publisher_is_removed() {
    run("killed");
}

fn killed(test: &TestDir) {
    let monitor = monitor();
    let bus = monitor.bus();
    monitor.start().unwrap();
    let publisher =
        ChildGroup::start(&mut test.launch("videotestsrc is-live=true ! cuframessink key=killed"));
    let (what, device) = next(&bus, "killed");
    assert_eq!(what, "added");
    let properties = device.properties().unwrap();
    assert_eq!(properties.get::<i32>("cuframes.pid").unwrap() as u32, publisher.id());
    publisher.signal(Signal::SIGKILL);
    drop(publisher);
    assert_eq!(next(&bus, "killed").0, "removed");
    assert!(test.files().contains(&"killed.sock".to_owned()));
    monitor.stop();
}
