// SPDX-License-Identifier: LGPL-2.1-or-later
//! Examples in other languages and without GStreamer, run as their introductions show.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use testing::{ChildGroup, TestDir, built, output, root, skip};

fn examples() -> PathBuf {
    root().join("examples")
}

/// Starts a camera whose frames are orange.
fn orange(test: &TestDir) -> ChildGroup {
    let mut launch = test.command("gst-launch-1.0");
    launch.arg("-q").args(
        "videotestsrc is-live=true pattern=solid-color foreground-color=0xffff8000 \
         ! video/x-raw,format=RGB,width=162,height=120,framerate=30/1 ! cuframessink key=cam1"
            .split_whitespace(),
    );
    ChildGroup::start(&mut launch)
}

#[test]
fn rust_without_gstreamer() {
    let test = TestDir::new("plain");
    let example = built("plain");
    let mut publish = test.command(&example);
    let _publisher = ChildGroup::start(publish.args(["publish", "cam1"]));
    let text = output(test.command(&example).args(["watch", "cam1", "5"]));
    let frames: Vec<_> = text.lines().filter(|l| l.starts_with("frame ")).collect();
    assert_eq!(frames.len(), 5, "{text}");
    assert!(frames.iter().all(|f| f.contains("format=(string)GRAY8") && f.contains(": grey ")));
    assert!(text.lines().any(|l| l.starts_with("packet ") && l.contains(": frame ")), "{text}");
}

/// Returns a Python interpreter that can run this code.
fn python(what: &str) -> Option<&'static str> {
    let can = |python: &&str| {
        let mut tried = Command::new(python);
        tried.args(["-c", what]).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    // A second Python may hide that of the system, for which packages are installed.
    ["python3", "/usr/bin/python3"].into_iter().find(can)
}

/// Starts a camera with packets.
fn encoded(test: &TestDir) -> ChildGroup {
    let mut launch = test.command("gst-launch-1.0");
    launch.arg("-q").args(
        "videotestsrc is-live=true ! video/x-raw,width=160,height=120,framerate=120/1 \
         ! x264enc bframes=2 key-int-max=30 ! h264parse ! tee name=t \
         t. ! pub.packets_0 t. ! queue ! avdec_h264 ! pub.sink cuframessink name=pub key=cam1"
            .split_whitespace(),
    );
    ChildGroup::start(&mut launch)
}

/// Checks three lines, each with a frame and its packet.
#[track_caller]
fn detections(text: &str) {
    let frames: Vec<_> = text.lines().map(|l| l.split(' ').nth(1).unwrap()).collect();
    assert_eq!(frames.len(), 3, "{text}");
    assert!(frames.iter().all(|n| n.parse::<u32>().unwrap() % 30 == 0), "{text}");
    assert!(text.lines().all(|l| l.contains(" of track 0: ") && l.ends_with(" bytes")), "{text}");
}

#[test]
fn detections_and_their_packets() {
    let test = TestDir::new("detection");
    let _camera = encoded(&test);
    let example = built("detection");
    detections(&output(test.command(&example).args(["cam1", "3"])));
    match python("import gi; gi.require_version('GstApp', '1.0')") {
        Some(python) => {
            let script = examples().join("python/detection.py");
            detections(&output(test.command(python).arg(script).args(["cam1", "3"])));
        }
        None => skip("no Python has PyGObject and GStreamer's introspection data"),
    }
}

#[test]
fn python_with_numpy() {
    let test = TestDir::new("numpy");
    let Some(python) = python("import gi, numpy; gi.require_version('GstVideo', '1.0')") else {
        return skip("no Python has PyGObject, NumPy and GStreamer's introspection data");
    };
    let _camera = orange(&test);
    let script = examples().join("python/numpy_frames.py");
    let text = output(test.command(python).arg(script).args(["cam1", "3"]));
    let expected: Vec<_> =
        (1..=3).map(|n| format!("frame {n}: (120, 162, 3), mean 255 128 0")).collect();
    assert!(text.lines().eq(expected), "{text}");
}

#[test]
fn c_with_appsink() {
    let test = TestDir::new("appsink");
    let libraries = "--cflags --libs gstreamer-app-1.0 gstreamer-video-1.0".split(' ');
    let flags = Command::new("pkg-config").args(libraries).output();
    let Some(flags) = flags.ok().filter(|f| f.status.success()) else {
        return skip("pkg-config does not find gstreamer-app-1.0");
    };
    let built = test.dir.join("appsink");
    let compiled = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-o"])
        .args([&built, &examples().join("c/appsink.c")])
        .args(String::from_utf8(flags.stdout).unwrap().split_whitespace())
        .status();
    match compiled {
        Err(_) => return skip("there is no C compiler"),
        Ok(status) => assert!(status.success()),
    }
    let _camera = orange(&test);
    let text = output(test.command(&built).args(["cam1", "3"]));
    let expected: Vec<_> =
        (1..=3).map(|n| format!("frame {n}: RGB 162x120, first byte 255")).collect();
    assert!(text.lines().eq(expected), "{text}");
}
