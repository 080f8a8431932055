// SPDX-License-Identifier: LGPL-2.1-or-later
//! Runs every command in the `sh` blocks of README and docs/ as a reader would, beside the scripts and with a
//! camera under `cam1`. Commands that cannot run here are listed with the reason.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testing::{Camera, ChildGroup, TestDir, built, command, has, output, root, skip, until};

/// What the test does with a command. Commands that are not in [`EXCEPTIONS`] have to succeed.
#[derive(Clone, Copy)]
enum Run {
    /// Runs until this key is published, in a runtime directory of its own.
    Publishes(&'static str),
    /// Runs beside the camera until this key is published.
    Relays(&'static str),
    /// Runs until it has printed a line with this text.
    Prints(&'static str),
    /// Runs until this file exists.
    Writes(&'static str),
    /// Needs this program.
    With(&'static str),
    /// Another test runs it: a file in tests/, and the name of the test.
    By(&'static str, &'static str),
    /// Cannot run here, for this reason.
    Not(&'static str),
}
use Run::*;

const BUILDS: Run = Not("builds, and was built to run this test");
const CHECKS: Run = Not("runs tests or benchmarks for minutes or hours");
const INSTALLS: Run = Not("changes the system, some as root");
const GPU: Run = Not("needs an NVIDIA GPU: docs/gpu.md says what ran");
const DISPLAY: Run = Not("needs a display");
const ENGINE: Run = Not("needs a container engine, and none was there");
const DEEPSTREAM: Run = Not("needs DeepStream, and the page says so");

const MOSAIC: Run = By("pipelines/serving.rs", "list_of_cameras_makes_mosaic");
const FRIGATE: Run = By("pipelines/frigate.rs", "frigate_records_packets_and_detects_in_frames");
const SOUND: Run = By("pipelines/recording.rs", "picture_and_sound_are_recorded_together");
const MOTION: Run = By("pipelines/recording.rs", "motion_starts_recording_of_its_past");
const HOSTS: Run = By("pipelines/network.rs", "camera_is_published_on_another_host");

/// For each page, the beginnings of commands.
const EXCEPTIONS: &[(&str, &[(&str, Run)])] = &[
    (
        "README.md",
        &[
            ("make demo", Not("builds a release, then runs the scripts below for 15 s")),
            ("make build", BUILDS),
            ("make install", INSTALLS),
            ("make ", CHECKS),
            ("pipelines/publish-test.sh", Publishes("cam1")),
            ("gst-launch-1.0 playbin3", By("elements/uris.rs", "playbin3_plays_uris")),
            ("target/release/cuframes top", Prints("cam1")),
        ],
    ),
    (
        "install.md",
        &[
            ("make build", BUILDS),
            ("make ", INSTALLS),
            ("sudo ", INSTALLS),
            ("cargo cinstall", INSTALLS),
            ("echo 'URL", INSTALLS),
            // On a machine where something is missing it does not end well, and is right.
            ("cuframes doctor", Prints("ok")),
        ],
    ),
    (
        "publish-a-camera.md",
        &[
            ("pipelines/publish-rtsp.sh", Publishes("cam1")),
            ("pipelines/publish-many.sh", MOSAIC),
            ("pipelines/publish-test.sh", Publishes("cam1")),
            ("pipelines/publish-file.sh", Publishes("clip")),
            ("gst-launch-1.0 cuframessink", Publishes("cam1")),
        ],
    ),
    (
        "consume-frames.md",
        &[
            ("gst-launch-1.0 cuframessrc key=cam1 ! video/x-raw ! videoconvert", DISPLAY),
            ("gst-launch-1.0 playbin3", By("elements/uris.rs", "playbin3_plays_uris")),
            ("pipelines/fps.sh", Prints("rendered")),
            ("gst-device-monitor-1.0", Prints("cam1")),
            ("pipelines/mosaic.sh", MOSAIC),
        ],
    ),
    (
        "record.md",
        &[
            ("gst-launch-1.0 -e mp4mux", SOUND),
            ("cargo run --release --example event-recorder", MOTION),
            ("pipelines/hls.sh", Writes("live/live.m3u8")),
        ],
    ),
    (
        "frigate.md",
        &[
            ("pipelines/publish-rtsp.sh", Publishes("cam1.sub")),
            ("cargo run --release --example restream", FRIGATE),
            ("pipelines/serve-frames.sh", FRIGATE),
            ("pipelines/stdout.sh", With("ffmpeg")),
            ("docker ", ENGINE),
            ("CAMERA=", ENGINE),
        ],
    ),
    (
        "deepstream.md",
        &[
            ("gst-launch-1.0 nvstreammux", DEEPSTREAM),
            ("gst-inspect-1.0 nvvideoconvert", DEEPSTREAM),
            ("gst-launch-1.0 cuframessrc key=cam1 ! cudaconvertscale", GPU),
        ],
    ),
    (
        "python.md",
        &[
            (
                "python3 examples/python/numpy_frames.py",
                By("pipelines/examples.rs", "python_with_numpy"),
            ),
            (
                "python3 examples/python/detection.py",
                By("pipelines/examples.rs", "detections_and_their_packets"),
            ),
            ("python3 examples/python/tensor.py", GPU),
        ],
    ),
    ("containers.md", &[("docker ", ENGINE), ("CAMERA=", ENGINE), ("kubectl ", ENGINE)]),
    (
        "many-hosts.md",
        &[
            ("pipelines/send.sh", HOSTS),
            ("pipelines/receive.sh", HOSTS),
            (
                "cargo run --release --example restream",
                By("pipelines/serving.rs", "packets_are_served_by_rtsp"),
            ),
        ],
    ),
    (
        "security.md",
        &[
            ("install -d", INSTALLS),
            ("gst-launch-1.0 …", Not("shows a property, and no whole pipeline")),
            (
                "gst-launch-1.0 cuframessrc key=cam1 ! cuframessink key=cam1-guest",
                Relays("cam1-guest"),
            ),
            (
                "gst-launch-1.0 cuframessrc key=cam1 ! cuframessink key=cam1-host",
                Relays("cam1-host"),
            ),
        ],
    ),
    ("benchmarks.md", &[("", CHECKS)]),
    ("gpu.md", &[("", GPU)]),
];

/// Returns the pages with the commands of their `sh` blocks. A continued line is part of its command.
fn manual() -> Vec<(String, Vec<String>)> {
    let mut pages = vec![root().join("README.md")];
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|e| e.unwrap().path());
    pages.extend(docs.filter(|p| p.extension().is_some_and(|e| e == "md")));
    pages.sort();
    let read = |page: PathBuf| {
        let text = std::fs::read_to_string(&page).unwrap();
        let blocks = text.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap());
        let lines = blocks.flat_map(|block| {
            let joined = block.replace("\\\n", "\u{0}");
            let lines: Vec<_> = joined.lines().map(|l| l.replace('\u{0}', "\\\n")).collect();
            lines
        });
        let commands = lines.filter(|l| !l.trim().is_empty() && !l.starts_with('#')).collect();
        (page.file_name().unwrap().to_str().unwrap().to_owned(), commands)
    };
    pages.into_iter().map(read).collect()
}

/// Returns the first exception of a page that the line begins with.
fn exception(page: &str, line: &str) -> Option<(&'static str, Run)> {
    let (_, lines) = EXCEPTIONS.iter().find(|(on, _)| *on == page)?;
    lines.iter().find(|(begins, _)| line.starts_with(begins)).copied()
}

#[test]
fn exceptions_match_manual() {
    let manual = manual();
    for (page, lines) in EXCEPTIONS {
        let (_, commands) = manual.iter().find(|(name, _)| name == page).expect(page);
        for (begins, run) in *lines {
            let found = |line: &String| exception(page, line).is_some_and(|(b, _)| b == *begins);
            assert!(commands.iter().any(found), "{page} has no command '{begins}' any more");
            match run {
                By(file, test) => {
                    let source = std::fs::read_to_string(root().join("tests").join(file)).unwrap();
                    assert!(source.contains(&format!("fn {test}()")), "{file} has no test {test}");
                }
                Not(why) => assert!(!why.is_empty(), "{page}: {begins}"),
                _ => {}
            }
        }
    }
}

/// A folder with the content of a clone that was built.
struct Clone<'a> {
    test: &'a TestDir,
    dir: PathBuf,
    /// Replaces the addresses of cameras in the manual.
    url: String,
}

impl<'a> Clone<'a> {
    fn new(test: &'a TestDir, url: &str) -> Self {
        let dir = test.dir.join("clone");
        std::fs::create_dir_all(dir.join("target/release")).unwrap();
        for name in ["pipelines", "examples"] {
            std::os::unix::fs::symlink(root().join(name), dir.join(name)).unwrap();
        }
        let cuframes = dir.join("target/release/cuframes");
        std::os::unix::fs::symlink(built("cuframes"), cuframes).unwrap();
        let clone = Self { test, dir, url: url.to_owned() };
        let video = "gst-launch-1.0 -q videotestsrc num-buffers=30 ! video/x-raw,width=160,height=120 \
                     ! x264enc ! h264parse ! mp4mux ! filesink location=video.mp4";
        output(&mut clone.bash(video, &test.dir));
        clone
    }

    /// Returns a command that runs a line of the manual in a shell.
    fn bash(&self, line: &str, runtime_dir: &Path) -> Command {
        let mut line = line.to_owned();
        for address in ["rtsp://user:password@10.0.0.5/stream", "rtsp://127.0.0.1:8554/cam"] {
            line = line.replace(address, &self.url);
        }
        let mut command = command(runtime_dir, "bash");
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", self.dir.join("target/release").display());
        command.args(["-euc", &line]).current_dir(&self.dir).env("PATH", path);
        // Some programs of others in the manual warn.
        command.env_remove("G_DEBUG");
        command
    }

    fn run(&self, page: &str, number: usize, line: &str) {
        match exception(page, line).map(|(_, run)| run) {
            Some(Not(_) | By(..)) => {}
            Some(With(program)) if !has(program) => skip(&format!("there is no {program}: {line}")),
            None | Some(With(_)) => {
                let status =
                    self.bash(line, &self.test.dir).stdout(Stdio::null()).status().unwrap();
                assert!(status.success(), "{page}: {status}: {line}");
            }
            Some(Publishes(key)) => {
                let dir = self.test.dir.join(format!("{page}-{number}"));
                std::fs::create_dir(&dir).unwrap();
                let _publisher = ChildGroup::start(self.bash(line, &dir).stdout(Stdio::null()));
                until(|| cuframes::status(key, Some(&dir)).is_ok_and(|s| s.published > 0));
            }
            Some(Relays(key)) => {
                let dir = &self.test.dir;
                let _relay = ChildGroup::start(self.bash(line, dir).stdout(Stdio::null()));
                until(|| cuframes::status(key, Some(dir)).is_ok_and(|s| s.published > 0));
            }
            Some(Prints(text)) => {
                let mut running =
                    ChildGroup::start(self.bash(line, &self.test.dir).stdout(Stdio::piped()));
                let mut lines = running.stdout().lines();
                let found = lines.any(|l| l.is_ok_and(|l| l.contains(text)));
                assert!(found, "{page}: it does not print '{text}': {line}");
            }
            Some(Writes(file)) => {
                let _running =
                    ChildGroup::start(self.bash(line, &self.test.dir).stdout(Stdio::null()));
                until(|| self.dir.join(file).exists());
            }
        }
    }
}

/// Publishes a camera with audio as `cam1`, and smaller as `cam1.sub`.
fn published(test: &TestDir) -> (Camera, ChildGroup) {
    let camera = Camera::start("--size 320x240 --fps 30 --gop 15 --audio");
    let options = ["--sound", "--scaled", "160x120", &camera.url, "cam1"];
    let publisher = ChildGroup::start(test.script("publish-rtsp.sh").args(options));
    let live = |key| cuframes::status(key, Some(&test.dir)).is_ok_and(|s| s.published > 0);
    until(|| live("cam1") && live("cam1.sub"));
    (camera, publisher)
}

#[test]
fn every_command_works() {
    let test = TestDir::slow("manual");
    let (camera, _publisher) = published(&test);
    let clone = Clone::new(&test, &camera.url);
    // Pages run at the same time, because most of the time is spent waiting for frames.
    std::thread::scope(|scope| {
        for (page, lines) in manual() {
            let clone = &clone;
            scope.spawn(move || {
                for (number, line) in lines.iter().enumerate() {
                    clone.run(&page, number, line);
                }
            });
        }
    });
}
