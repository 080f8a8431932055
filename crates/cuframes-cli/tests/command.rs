// SPDX-License-Identifier: LGPL-2.1-or-later
//! The command `cuframes`, as users and scripts run it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use cuframes::memory::host::HostBackend;
use cuframes::{PacketInfo, Publisher, PublisherConfig, TrackConfig};
use testing::{SIZE, TestDir, TestSubscriber, fill, publish};

const CAPS: &str = "video/x-raw, format=(string)NV12, width=(int)320, height=(int)240";

/// The command, which make test builds first.
fn built() -> std::path::PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("cuframes")
}

fn cuframes(test: &TestDir, args: &str) -> Command {
    let mut command = Command::new(built());
    command.arg("--runtime-dir").arg(&test.dir).args(args.split_whitespace());
    command.stdin(Stdio::null());
    command
}

struct Said {
    out: String,
    err: String,
    code: Option<i32>,
}

fn said(output: Output) -> Said {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { out: text(output.stdout), err: text(output.stderr), code: output.status.code() }
}

fn run(test: &TestDir, args: &str) -> Said {
    said(cuframes(test, args).output().unwrap())
}

/// A publisher of frames and packets, and a subscriber that holds a frame.
struct Camera {
    publisher: Publisher,
    viewer: TestSubscriber,
    _held: cuframes::Frame,
}

fn camera(test: &TestDir) -> Camera {
    let config = PublisherConfig { name: "front door".into(), ..test.config() };
    let publisher = Publisher::open(config, Arc::new(HostBackend), |_| {}).unwrap();
    publisher.set_format(CAPS, SIZE).unwrap();
    let track = publisher.add_track(0, "video/x-h264", TrackConfig::default()).unwrap();
    track.push(PacketInfo { keyframe: true, ..Default::default() }, b"key").unwrap();
    // A subscriber chooses its own name.
    let mut viewer = test.subscriber(|c| c.name = "detector\u{1b}[2J \"1\"".into());
    publish(&publisher, 1, |loan, n| fill(loan.bytes_mut(), n));
    let held = viewer.frame();
    publish(&publisher, 2, |loan, n| fill(loan.bytes_mut(), n));
    Camera { publisher, viewer, _held: held }
}

/// Returns the words of the line that begins with this word.
#[track_caller]
fn line<'a>(text: &'a str, first: &str) -> Vec<&'a str> {
    let mut lines = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    lines.find(|l| l.first() == Some(&first)).unwrap_or_else(|| panic!("no {first} in {text}"))
}

#[test]
fn list_shows_each_key() {
    let test = TestDir::new("list");
    let camera = camera(&test);
    let said = run(&test, "list");
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let pid = format!("{})", std::process::id());
    let expected = "cam NV12 320x240 0.0 host h264 1 of 32 front door (pid";
    assert_eq!(line(&said.out, "cam").join(" "), format!("{expected} {pid}"));

    drop(camera);
    let said = run(&test, "list");
    assert_eq!((said.code, said.out.as_str()), (Some(0), ""));
    assert!(said.err.contains(test.dir.to_str().unwrap()), "{}", said.err);
}

#[test]
fn top_shows_keys_tracks_and_subscribers() {
    let test = TestDir::new("top");
    let camera = camera(&test);
    let said = run(&test, "top --interval 0.1 --count 2");
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let pictures: Vec<_> = said.out.split("\n\n").filter(|p| !p.is_empty()).collect();
    assert_eq!(pictures.len(), 2, "{}", said.out);
    let pid = std::process::id().to_string();
    for picture in pictures {
        assert_eq!(line(picture, "cam")[..5], ["cam", &pid, "NV12", "320x240", "0.0"]);
        assert_eq!(line(picture, "packets_0")[1..4], ["h264", "0.0", "0"]);
        // Name, pid, mode, rate, latency and its unit, lag, held, skipped, memory and its unit.
        let subscriber = line(picture, "detector\u{fffd}[2J");
        assert_eq!(subscriber[2..5], [&pid, "newest", "0.0"]);
        assert_eq!(subscriber[6..10], ["ms", "1", "1/2", "0"]);
        assert_eq!(subscriber[11..], ["KiB"]);
    }
    assert_eq!(camera.viewer.subscriber.counters(), cuframes::Counters { received: 1, skipped: 0 });
    assert_eq!(camera.publisher.stats().subscribers.len(), 1, "no place is taken");
}

#[test]
fn inspect_shows_one_publisher() {
    let test = TestDir::new("inspect");
    let _camera = camera(&test);
    let said = run(&test, "inspect cam");
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert!(said.out.contains(CAPS) && said.out.contains("front door"), "{}", said.out);
    assert_eq!(line(&said.out, "published"), ["published", "2"]);
    assert_eq!(line(&said.out, "subscribers")[..4], ["subscribers", "1", "of", "32,"]);
    assert!(!said.out.contains('\u{1b}'), "{}", said.out);

    let said = run(&test, "inspect nobody");
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""));
    assert!(said.err.starts_with("cuframes: No publisher of 'nobody' in "), "{}", said.err);
}

/// Every sample is a line that Prometheus can parse, below the description of its metric.
fn check_metrics(text: &str) {
    let mut family = "";
    for line in text.lines() {
        if let Some(about) = line.strip_prefix("# ") {
            let mut words = about.split(' ');
            assert!(["HELP", "TYPE"].contains(&words.next().unwrap()), "{line}");
            family = words.next().unwrap();
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap();
        assert_eq!(name, family);
        assert!(labels.starts_with("key=\"cam\"") && labels.ends_with("\"}"), "{line}");
        value.parse::<f64>().unwrap();
    }
    for sample in [
        "cuframes_up{key=\"cam\"} 1",
        "cuframes_frames_published_total{key=\"cam\"} 2",
        "cuframes_packets_published_total{key=\"cam\",track=\"0\",codec=\"h264\"} 1",
    ] {
        assert!(text.lines().any(|l| l == sample), "{sample} in {text}");
    }
    let held = text.lines().find(|l| l.starts_with("cuframes_subscriber_held_frames{")).unwrap();
    assert!(held.ends_with(" 1") && held.contains("\\\"1\\\""), "{held}");
}

#[test]
fn metrics_are_printed_once() {
    let test = TestDir::new("metrics");
    let _camera = camera(&test);
    let said = run(&test, "metrics");
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    check_metrics(&said.out);
}

#[test]
fn metrics_are_served() {
    let test = TestDir::new("served");
    let _camera = camera(&test);
    let mut command = cuframes(&test, "metrics --listen 127.0.0.1:0");
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut url = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let address = url.trim().strip_prefix("http://").and_then(|u| u.strip_suffix("/metrics"));
    let address = address.expect(&url).to_owned();
    let get = |request: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
        (head.to_owned(), body.to_owned())
    };
    // A silent client and one that disconnects do not delay others for long.
    let silent = TcpStream::connect(&address).unwrap();
    drop(TcpStream::connect(&address).unwrap());
    let (head, body) = get("GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    check_metrics(&body);
    let (head, body) = get("HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && body.is_empty(), "{head}");
    assert!(get("GET /other HTTP/1.1\r\n\r\n").0.starts_with("HTTP/1.1 404 "));
    assert!(get("POST /metrics HTTP/1.1\r\n\r\n").0.starts_with("HTTP/1.1 405 "));
    drop(silent);

    let taken = run(&test, &format!("metrics --listen {address}"));
    assert_eq!(taken.code, Some(1));
    assert!(taken.err.contains(&address) && taken.err.contains("free port"), "{}", taken.err);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn doctor_finds_plugin_or_advises() {
    let test = TestDir::new("doctor");
    let _camera = camera(&test);
    let doctor = |plugins: &std::path::Path| {
        let mut command = cuframes(&test, "doctor");
        // Without other plugins, because a scan of all of them takes time.
        command.env("GST_PLUGIN_SYSTEM_PATH", &test.dir).env("GST_PLUGIN_PATH", plugins);
        said(command.env("GST_REGISTRY", test.dir.join("registry")).output().unwrap())
    };
    let built = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let well = doctor(&built);
    assert_eq!((well.code, well.err.as_str()), (Some(0), ""), "{}", well.out);
    for what in ["kernel", "shared memory", "GStreamer", "plugin", "publishing", "key cam"] {
        assert!(well.out.contains(&format!("ok    {what}: ")), "{what} in {}", well.out);
    }
    let lacking = doctor(&test.dir);
    assert_eq!(lacking.code, Some(1), "{}", lacking.out);
    assert!(lacking.out.contains("BAD   plugin: "), "{}", lacking.out);
    assert!(lacking.out.contains("GST_PLUGIN_PATH"), "{}", lacking.out);
}

#[test]
fn wrong_commands_get_usage() {
    let test = TestDir::new("wrong");
    for (args, says) in [
        ("", "list, top, inspect, doctor or metrics"),
        ("lost", "'lost'"),
        ("list more", "more"),
        ("inspect", "a key"),
        ("top --interval 0", "0.1 to 86400"),
        ("top --count many", "many"),
        ("list --listen 1", "--listen"),
    ] {
        let said = run(&test, args);
        assert_eq!((said.code, said.out.as_str()), (Some(2), ""), "{args}");
        assert!(said.err.contains(says) && said.err.contains("--help"), "{args}: {}", said.err);
    }
    for args in ["--help", "list --help", "help"] {
        let said = run(&test, args);
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{args}");
        assert!(said.out.contains("usage: cuframes"), "{}", said.out);
    }
}
