//! The sound of cameras: published beside the picture where subscribers know its codec, and recorded with it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use programs::{Running, command, example, output, root, start};
use support::{Site, until};

#[path = "support/programs.rs"]
mod programs;
mod support;

/// A camera, and where it is.
fn camera(site: &Site, port: &str, options: &str) -> (Running, String) {
    let common = format!("--port {port} --size 320x240 --fps 30 --gop 15 {options}");
    let mut camera = command(&site.dir, example("camera"));
    // gst-rtsp-server 1.22 warns when clients of different transports meet.
    let camera = camera.args(common.split_whitespace()).env_remove("G_DEBUG");
    let mut camera = start(camera.stdout(Stdio::piped()));
    let mut lines = BufReader::new(camera.0.stdout.take().unwrap()).lines();
    let url = lines.next().unwrap().unwrap().strip_prefix("ready ").unwrap().to_owned();
    // Read on, so that it never blocks.
    std::thread::spawn(move || lines.for_each(drop));
    (camera, url)
}

fn publish(site: &Site, url: &str) -> Command {
    let mut command = command(&site.dir, root().join("pipelines/publish-rtsp.sh"));
    command.args(["--sound", url, "cam1"]);
    command
}

/// A camera, and what publish-rtsp.sh --sound makes of it.
fn published(site: &Site, options: &str) -> [Running; 2] {
    let (camera, url) = camera(site, "0", options);
    let publisher = start(&mut publish(site, &url));
    until(|| cuframes::status("cam1", Some(&site.dir)).is_ok_and(|s| s.published > 30));
    [camera, publisher]
}

/// The caps of the tracks, as far as their first comma.
fn tracks(site: &Site) -> Vec<String> {
    let status = cuframes::status("cam1", Some(&site.dir)).unwrap();
    status.tracks.iter().map(|t| t.caps.split(',').next().unwrap().to_owned()).collect()
}

/// Buffers of picture and sound in a recording, by the pads of its demuxer.
fn buffers(site: &Site, file: &str, demuxer: &str) -> [usize; 2] {
    ["video_0", "audio_0"].map(|pad| {
        let launch = format!(
            "-v filesrc location={} ! {demuxer} name=d d.{pad} ! queue ! fakesink silent=false",
            site.dir.join(file).display()
        );
        let mut play = command(&site.dir, "gst-launch-1.0");
        output(play.args(launch.split_whitespace())).matches(" chain ").count()
    })
}

fn recorded(site: &Site, file: &str, demuxer: &str) {
    let path = site.dir.join(file);
    let script = root().join("pipelines/record.sh");
    output(command(&site.dir, script).args(["--sound", "cam1", path.to_str().unwrap(), "4"]));
    let [video, audio] = buffers(site, file, demuxer);
    // A busy machine takes a part of the four seconds.
    assert!(video >= 15 && audio >= 10, "{video} and {audio}");
}

#[test]
fn aac_is_published_and_recorded() {
    let site = Site::new("aac");
    let _running = published(&site, "--audio");
    until(|| tracks(&site) == ["video/x-h264", "audio/mpeg"]);
    recorded(&site, "sound.mp4", "qtdemux");
}

#[test]
fn g711_is_published_and_recorded() {
    let site = Site::new("g711");
    // The codec of the picture is learned as well.
    let _running = published(&site, "--audio-codec pcmu --codec h265");
    until(|| tracks(&site) == ["video/x-h265", "audio/x-mulaw"]);
    recorded(&site, "sound.mkv", "matroskademux");
}

/// Camera and host come back together after a power cut: the sound is not forgotten for that.
#[test]
fn a_camera_that_comes_late_has_its_sound() {
    let site = Site::new("late-sound");
    let (first, url) = camera(&site, "0", "");
    drop(first);
    let mut publisher = start(publish(&site, &url).stderr(Stdio::piped()));
    let mut said = BufReader::new(publisher.0.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("trying again")));
    std::thread::spawn(move || said.for_each(drop));
    let port = url.rsplit(':').next().unwrap().split('/').next().unwrap().to_owned();
    let _camera = camera(&site, &port, "--audio");
    until(|| cuframes::status("cam1", Some(&site.dir)).is_ok_and(|s| s.published > 0));
    until(|| tracks(&site) == ["video/x-h264", "audio/mpeg"]);
}

#[test]
fn without_sound_that_is_known_there_is_the_picture() {
    for options in ["", "--audio-codec l16"] {
        let site = Site::new("silent");
        let _running = published(&site, options);
        assert_eq!(tracks(&site), ["video/x-h264"]);
    }
}
