//! The examples in other languages and without GStreamer, run as their heads say.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use support::Site;

mod support;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// A program with the site's environment, which ends with the test.
fn command(site: &Site, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env("CUFRAMES_RUNTIME_DIR", &site.dir)
        // Where cargo leaves the plugin for tests: among the test programs.
        .env("GST_PLUGIN_PATH", std::env::current_exe().unwrap().parent().unwrap())
        .env("GST_REGISTRY", std::env::temp_dir().join("cuframes-test-registry.bin"))
        .stdin(Stdio::null());
    // SAFETY: prctl is async-signal-safe.
    unsafe {
        command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).map_err(Into::into))
    };
    command
}

/// A program that ends with its scope.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A camera that sees nothing but orange.
fn orange(site: &Site) -> Running {
    let mut launch = command(site, "gst-launch-1.0");
    launch.arg("-q").args(
        "videotestsrc is-live=true pattern=solid-color foreground-color=0xffff8000 \
         ! video/x-raw,format=RGB,width=162,height=120,framerate=30/1 ! cuframessink key=cam1"
            .split_whitespace(),
    );
    Running(launch.spawn().unwrap())
}

#[track_caller]
fn output(command: &mut Command) -> String {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}: {text}", output.status);
    text
}

/// Says so where it is seen: the harness keeps what a test that passes prints.
fn skip(what: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

#[test]
fn rust_without_gstreamer() {
    let site = Site::new("plain");
    let built = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/plain");
    let mut publish = command(&site, &built);
    let _publisher = Running(publish.args(["publish", "cam1"]).spawn().unwrap());
    let text = output(command(&site, &built).args(["watch", "cam1", "5"]));
    let frames: Vec<_> = text.lines().filter(|l| l.starts_with("frame ")).collect();
    assert_eq!(frames.len(), 5, "{text}");
    assert!(frames.iter().all(|f| f.contains("format=(string)GRAY8") && f.contains(": grey ")));
    assert!(text.lines().any(|l| l.starts_with("packet ") && l.contains(": frame ")), "{text}");
}

/// A Python that can do this.
fn python(what: &str) -> Option<&'static str> {
    let can = |python: &&str| {
        let mut tried = Command::new(python);
        tried.args(["-c", what]).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    // A second Python may hide the system's, which is the one that packages are for.
    ["python3", "/usr/bin/python3"].into_iter().find(can)
}

/// A camera with its packets.
fn encoded(site: &Site) -> Running {
    let mut launch = command(site, "gst-launch-1.0");
    launch.arg("-q").args(
        "videotestsrc is-live=true ! video/x-raw,width=160,height=120,framerate=120/1 \
         ! x264enc bframes=2 key-int-max=30 ! h264parse ! tee name=t \
         t. ! pub.packets_0 t. ! queue ! avdec_h264 ! pub.sink cuframessink name=pub key=cam1"
            .split_whitespace(),
    );
    Running(launch.spawn().unwrap())
}

/// Three lines, each with a frame and its packet.
#[track_caller]
fn detections(text: &str) {
    let frames: Vec<_> = text.lines().map(|l| l.split(' ').nth(1).unwrap()).collect();
    assert_eq!(frames.len(), 3, "{text}");
    assert!(frames.iter().all(|n| n.parse::<u32>().unwrap() % 30 == 0), "{text}");
    assert!(text.lines().all(|l| l.contains(" of track 0: ") && l.ends_with(" bytes")), "{text}");
}

#[test]
fn detections_and_their_packets() {
    let site = Site::new("detection");
    let _camera = encoded(&site);
    let own = std::env::current_exe().unwrap();
    let built = own.ancestors().nth(2).unwrap().join("examples/detection");
    detections(&output(command(&site, &built).args(["cam1", "3"])));
    match python("import gi; gi.require_version('GstApp', '1.0')") {
        Some(python) => {
            let script = examples().join("python/detection.py");
            detections(&output(command(&site, python).arg(script).args(["cam1", "3"])));
        }
        None => skip("no Python has PyGObject and GStreamer's introspection data"),
    }
}

#[test]
fn python_with_numpy() {
    let site = Site::new("numpy");
    let Some(python) = python("import gi, numpy; gi.require_version('GstVideo', '1.0')") else {
        return skip("no Python has PyGObject, NumPy and GStreamer's introspection data");
    };
    let _camera = orange(&site);
    let script = examples().join("python/numpy_frames.py");
    let text = output(command(&site, python).arg(script).args(["cam1", "3"]));
    let expected: Vec<_> =
        (1..=3).map(|n| format!("frame {n}: (120, 162, 3), mean 255 128 0")).collect();
    assert!(text.lines().eq(expected), "{text}");
}

#[test]
fn c_with_an_appsink() {
    let site = Site::new("appsink");
    let libraries = "--cflags --libs gstreamer-app-1.0 gstreamer-video-1.0".split(' ');
    let flags = Command::new("pkg-config").args(libraries).output();
    let Some(flags) = flags.ok().filter(|f| f.status.success()) else {
        return skip("pkg-config does not find gstreamer-app-1.0");
    };
    let built = site.dir.join("appsink");
    let compiled = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-o"])
        .args([&built, &examples().join("c/appsink.c")])
        .args(String::from_utf8(flags.stdout).unwrap().split_whitespace())
        .status();
    match compiled {
        Err(_) => return skip("there is no C compiler"),
        Ok(status) => assert!(status.success()),
    }
    let _camera = orange(&site);
    let text = output(command(&site, &built).args(["cam1", "3"]));
    let expected: Vec<_> =
        (1..=3).map(|n| format!("frame {n}: RGB 162x120, first byte 255")).collect();
    assert!(text.lines().eq(expected), "{text}");
}
