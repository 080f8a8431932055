// SPDX-License-Identifier: LGPL-2.1-or-later
//! Audio of cameras: published beside the video if its codec is supported, and recorded with it.

use std::io::BufRead;
use std::process::{Command, Stdio};

use testing::{Camera, ChildGroup, TestDir, output, until};

/// Starts a camera on a port, 0 for any.
fn camera(port: &str, options: &str) -> Camera {
    Camera::start(&format!("--port {port} --size 320x240 --fps 30 --gop 15 {options}"))
}

fn publish(test: &TestDir, url: &str) -> Command {
    let mut command = test.script("publish-rtsp.sh");
    command.args(["--sound", url, "cam1"]);
    command
}

/// Starts a camera and publish-rtsp.sh --sound, and waits for frames.
fn published(test: &TestDir, options: &str) -> (Camera, ChildGroup) {
    let camera = camera("0", options);
    let publisher = ChildGroup::start(&mut publish(test, &camera.url));
    until(|| cuframes::status("cam1", Some(&test.dir)).is_ok_and(|s| s.published > 30));
    (camera, publisher)
}

/// Returns the caps of the tracks, up to their first comma.
fn tracks(test: &TestDir) -> Vec<String> {
    let status = cuframes::status("cam1", Some(&test.dir)).unwrap();
    status.tracks.iter().map(|t| t.caps.split(',').next().unwrap().to_owned()).collect()
}

/// Counts the buffers of video and audio in a recording.
fn buffers(test: &TestDir, file: &str, demuxer: &str) -> [usize; 2] {
    ["video_0", "audio_0"].map(|pad| {
        let launch = format!(
            "-v filesrc location={} ! {demuxer} name=d d.{pad} ! queue ! fakesink silent=false",
            test.dir.join(file).display()
        );
        // Without -q, which hides the buffers.
        let mut play = test.command("gst-launch-1.0");
        output(play.args(launch.split_whitespace())).matches(" chain ").count()
    })
}

fn recorded(test: &TestDir, file: &str, demuxer: &str) {
    let path = test.dir.join(file);
    output(test.script("record.sh").args(["--sound", "cam1", path.to_str().unwrap(), "4"]));
    let [video, audio] = buffers(test, file, demuxer);
    // A busy machine uses a part of the four seconds to start.
    assert!(video >= 15 && audio >= 10, "{video} and {audio}");
}

#[test]
fn aac_is_published_and_recorded() {
    let test = TestDir::slow("aac");
    let _running = published(&test, "--audio");
    until(|| tracks(&test) == ["video/x-h264", "audio/mpeg"]);
    recorded(&test, "sound.mp4", "qtdemux");
}

#[test]
fn g711_is_published_and_recorded() {
    let test = TestDir::slow("g711");
    // The script detects the codec of the video as well.
    let _running = published(&test, "--audio-codec pcmu --codec h265");
    until(|| tracks(&test) == ["video/x-h265", "audio/x-mulaw"]);
    recorded(&test, "sound.mkv", "matroskademux");
}

/// After a power cut, camera and host start together. The script waits for the camera to detect its audio.
#[test]
fn late_camera_has_its_sound() {
    let test = TestDir::slow("late-sound");
    let url = camera("0", "").url.clone();
    let mut publisher = ChildGroup::start(publish(&test, &url).stderr(Stdio::piped()));
    let mut said = publisher.stderr().lines();
    assert!(said.any(|line| line.unwrap().contains("trying again")));
    std::thread::spawn(move || said.for_each(drop));
    let port = url.rsplit(':').next().unwrap().split('/').next().unwrap().to_owned();
    let _camera = camera(&port, "--audio");
    until(|| cuframes::status("cam1", Some(&test.dir)).is_ok_and(|s| s.published > 0));
    until(|| tracks(&test) == ["video/x-h264", "audio/mpeg"]);
}

#[test]
fn unknown_sound_leaves_the_picture() {
    for options in ["", "--audio-codec l16"] {
        let test = TestDir::slow("silent");
        let _running = published(&test, options);
        assert_eq!(tracks(&test), ["video/x-h264"]);
    }
}
