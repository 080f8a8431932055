// SPDX-License-Identifier: LGPL-2.1-or-later
//! The setup of docs/frigate.md, with the command lines that Frigate derives from that configuration.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use testing::{Camera, ChildGroup, TestDir, built, has, skip, stamp, until};

/// Frame sizes of the camera and of the detector.
const WHOLE: (usize, usize) = (640, 480);
const SMALL: (usize, usize) = (320, 240);
/// The options that Frigate begins every command line with.
const GLOBAL: &str = "-hide_banner -loglevel warning -threads 2";

fn ffmpeg(test: &TestDir, arguments: &str) -> Command {
    let mut command = test.command("ffmpeg");
    command.args(arguments.split_whitespace());
    command
}

/// Starts a camera, its publisher with a second size, and an RTSP server for its packets.
fn published(test: &TestDir) -> (Camera, [ChildGroup; 2], String) {
    let camera = Camera::start(&format!("--fps 30 --gop 15 --size {}x{}", WHOLE.0, WHOLE.1));
    let scaled = format!("{}x{}", SMALL.0, SMALL.1);
    let options = ["--codec", "h264", "--scaled", &scaled, &camera.url, "cam1"];
    let publisher = ChildGroup::start(test.script("publish-rtsp.sh").args(options));
    let live = |key| cuframes::status(key, Some(&test.dir)).is_ok_and(|s| s.published > 0);
    until(|| live("cam1") && live("cam1.sub"));
    let options = ["--listen", "127.0.0.1:0", "cam1"];
    let mut restream = test.command(built("restream"));
    let (restream, url) = ChildGroup::start_server(restream.args(options));
    (camera, [publisher, restream], url)
}

/// Returns the complete segments: all except the one that is being written.
fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == "mp4")).collect();
    files.sort();
    files.pop();
    files
}

/// The role `record`: preset-rtsp-restream, preset-record-generic with shorter segments.
fn start_recorder(test: &TestDir, url: &str) -> ChildGroup {
    ChildGroup::start(&mut ffmpeg(
        test,
        &format!(
            "{GLOBAL} -user_agent Frigate -rtsp_transport tcp -timeout 10000000 -i {url} -f segment -segment_time 2 \
             -segment_format mp4 -reset_timestamps 1 -strftime 1 -c copy -an {}/cam1@%Y%m%d%H%M%S.mp4",
            test.dir.display()
        ),
    ))
}

/// The role `detect`, with frames of the size `SMALL`.
fn start_detector(test: &TestDir, port: u16) -> ChildGroup {
    let (width, height) = SMALL;
    let mut detector = ffmpeg(
        test,
        &format!(
            "{GLOBAL} -f rawvideo -pixel_format yuv420p -video_size {width}x{height} -framerate 30 \
             -i tcp://127.0.0.1:{port} -r 30 -vf fps=30,scale={width}:{height} -threads 2 -f rawvideo \
             -pix_fmt yuv420p pipe:"
        ),
    );
    ChildGroup::start(detector.stdout(Stdio::piped()))
}

/// Returns the numbers in the frames of a segment. All frames have to be whole.
fn recorded(test: &TestDir, file: &Path) -> Vec<u32> {
    let decode =
        format!("-v fatal -i {} -vf format=gray -f rawvideo -vsync 0 pipe:", file.display());
    let decoded = ffmpeg(test, &decode).output().unwrap();
    assert!(decoded.status.success());
    let frames = decoded.stdout.chunks_exact(WHOLE.0 * WHOLE.1);
    frames.map(|f| stamp::read(f, WHOLE.0, WHOLE.0, WHOLE.1).expect("a whole frame")).collect()
}

/// Returns a port that was bound and closed again, so that no other program takes it at once.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn frigate_records_packets_and_detects_in_frames() {
    if !has("ffmpeg") {
        return skip("there is no ffmpeg");
    }
    let test = TestDir::slow("frigate");
    let (_camera, _running, url) = published(&test);
    let port = free_port();
    let arguments = ["cam1.sub", &port.to_string(), &format!("{}x{}", SMALL.0, SMALL.1), "30"];
    let _frames = ChildGroup::start(test.script("serve-frames.sh").args(arguments));
    let recorder = start_recorder(&test, &url);
    // Frigate starts a detector again until it can connect.
    until(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
    let mut detector = start_detector(&test, port);
    let mut pipe = detector.stdout();
    let mut frame = vec![0; SMALL.0 * SMALL.1 * 3 / 2];
    let mut next = || {
        pipe.read_exact(&mut frame).unwrap();
        stamp::read(&frame, SMALL.0, SMALL.0, SMALL.1).expect("a whole frame")
    };
    let mut detected: Vec<_> = (0..30).map(|_| next()).collect();
    // The detector is stopped until buffers overflow. It misses frames, and all others are whole.
    detector.signal(Signal::SIGSTOP);
    until(|| segments(&test.dir).len() >= 2);
    detector.signal(Signal::SIGCONT);
    let lost = |numbers: &[u32]| numbers.windows(2).any(|pair| pair[1] > pair[0] + 20);
    while !lost(&detected) {
        detected.push(next());
    }
    detected.extend((0..10).map(|_| next()));
    // A frame may arrive twice, because ffmpeg derives times from the number of frames.
    assert!(detected.windows(2).all(|pair| pair[1] >= pair[0]), "{detected:?}");

    let files = segments(&test.dir);
    drop(recorder);
    let recorded: Vec<_> = files.iter().flat_map(|file| recorded(&test, file)).collect();
    assert!(recorded.len() >= 60, "{recorded:?}");
    assert!(recorded.windows(2).all(|pair| pair[1] == pair[0] + 1), "{recorded:?}");
}

/// Cameras that are slower than the requested rate, and cameras without a rate in their caps.
#[test]
fn frames_of_any_rate_are_served() {
    for rate in ["4/1", "0/1"] {
        let test = TestDir::new("rate");
        let launch = format!(
            "-q videotestsrc is-live=true ! video/x-raw,width=160,height=120,framerate=30/1 ! videorate \
             ! video/x-raw,framerate=4/1 ! capssetter join=true caps=video/x-raw,framerate={rate} ! cuframessink key=slow"
        );
        let publisher = &mut test.command("gst-launch-1.0");
        let _publisher = ChildGroup::start(publisher.args(launch.split_whitespace()));
        until(|| cuframes::status("slow", Some(&test.dir)).is_ok_and(|s| s.published > 0));
        let port = free_port();
        let arguments = ["slow", &port.to_string(), "160x120", "5"];
        let _frames = ChildGroup::start(test.script("serve-frames.sh").args(arguments));
        let mut reader = None;
        until(|| {
            reader = TcpStream::connect(("127.0.0.1", port)).ok();
            reader.is_some()
        });
        let mut frames = vec![0; 4 * 160 * 120 * 3 / 2];
        reader.unwrap().read_exact(&mut frames).unwrap();
    }
}
