// SPDX-License-Identifier: LGPL-2.1-or-later
//! `cuframes metrics`: all counters in the Prometheus text format, printed once or served over HTTP.
//!
//! The format is a few lines of text and the server handles one kind of request, so neither needs a
//! library: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::{self, Write as _};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cuframes::info::{PublisherStatus, SubscriberStatus, TrackStatus};

use crate::poll::{self, Snapshot};
use crate::{Options, format, print};

/// Time that a client has to send its request, and again to read each part of the response.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failed accept, for example while the process has too many open files.
const ACCEPT_BACKOFF: Duration = Duration::from_secs(1);
/// Largest request, in bytes.
const MAX_REQUEST: usize = 8 << 10;

/// Prints the metrics once, or serves them at the address `listen` until the process is ended.
pub(crate) fn run(options: &Options, listen: Option<&str>) -> io::Result<bool> {
    let Some(address) = listen else {
        return print(&render(&poll::poll_all(options))).map(|()| true);
    };
    let explain = |e: io::Error| {
        io::Error::new(
            e.kind(),
            format!(
                "Can't listen on {address} ({e}): name a free port, such as --listen 127.0.0.1:9469"
            ),
        )
    };
    let listener = TcpListener::bind(address).map_err(explain)?;
    print(&format!("http://{}/metrics\n", listener.local_addr()?))?;
    loop {
        // One client at a time is enough: a scrape takes milliseconds, and CLIENT_TIMEOUT bounds it.
        match listener.accept() {
            Ok((client, _)) => {
                // An error concerns this client only, such as a closed connection.
                let _ = serve(client, options);
            }
            Err(_) => std::thread::sleep(ACCEPT_BACKOFF),
        }
    }
}

/// Responds to one HTTP request.
fn serve(mut client: TcpStream, options: &Options) -> io::Result<()> {
    let request = read_head(&mut client)?;
    let mut words = request.split_ascii_whitespace();
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = path.split('?').next().unwrap_or("");
    let (status, content_type, body) = match (method, path) {
        ("GET" | "HEAD", "/metrics") => {
            ("200 OK", "text/plain; version=0.0.4; charset=utf-8", render(&poll::poll_all(options)))
        }
        ("GET" | "HEAD", "/") => ("200 OK", "text/plain", "The metrics are at /metrics\n".into()),
        ("GET" | "HEAD", _) => {
            ("404 Not Found", "text/plain", "The metrics are at /metrics\n".into())
        }
        _ => ("405 Method Not Allowed", "text/plain", "GET /metrics\n".into()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    client.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    client.write_all(head.as_bytes())?;
    if method != "HEAD" {
        client.write_all(body.as_bytes())?;
    }
    Ok(())
}

/// Reads a request up to the empty line that ends its header.
fn read_head(client: &mut TcpStream) -> io::Result<String> {
    let deadline = Instant::now() + CLIENT_TIMEOUT;
    let mut bytes = Vec::new();
    let mut part = [0; 1024];
    while !bytes.windows(4).any(|w| w == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || bytes.len() > MAX_REQUEST {
            return Err(io::ErrorKind::TimedOut.into());
        }
        client.set_read_timeout(Some(left))?;
        match client.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => bytes.extend(&part[..n]),
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// One metric of objects of type `T`.
struct Metric<T> {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&T) -> Value,
}

/// The type of a metric.
#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}
use Kind::{Counter, Gauge};

/// The value of a sample. `Unknown` omits the sample.
enum Value {
    Count(u64),
    /// A duration in ns, written in seconds.
    Seconds(u64),
    /// Seconds since 1970, written with milliseconds.
    UnixTime(f64),
    Unknown,
}
use Value::{Count, Seconds, UnixTime, Unknown};

/// Creates a row of a table of metrics.
const fn metric<T>(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&T) -> Value,
) -> Metric<T> {
    Metric { name, kind, help, value }
}

#[rustfmt::skip] // one row for each metric
const LIVE_KEY: [Metric<Snapshot>; 1] = [
    metric("cuframes_up", Gauge, "Whether the publisher of a live key responds.",
        |s| Count(s.status.is_ok().into())),
];

#[rustfmt::skip]
const PUBLISHER_INFO: [Metric<PublisherStatus>; 1] = [
    metric("cuframes_publisher_info", Gauge, "Name, process, memory and caps of a publisher. The value is always 1.",
        |_| Count(1)),
];

#[rustfmt::skip]
const PUBLISHER: [Metric<PublisherStatus>; 9] = [
    metric("cuframes_frames_published_total", Counter, "Frames published.",
        |s| Count(s.published)),
    metric("cuframes_frames_dropped_total", Counter, "Frames dropped because no slot was free.",
        |s| Count(s.dropped)),
    metric("cuframes_publish_latency_seconds", Gauge, "Largest delay of a published frame behind its timestamp.",
        |s| Seconds(s.latency_ns)),
    metric("cuframes_frame_slots", Gauge, "Frame slots.",
        |s| Count(s.slots.into())),
    metric("cuframes_frame_memory_bytes", Gauge, "Size of the frame memory.",
        |s| Count(s.bytes)),
    metric("cuframes_subscribers", Gauge, "Connected subscribers.",
        |s| Count(s.subscribers.len() as u64)),
    metric("cuframes_max_subscribers", Gauge, "Largest number of subscribers.",
        |s| Count(s.max_subscribers.into())),
    metric("cuframes_max_credit_frames", Gauge, "Largest number of frames that one subscriber may hold.",
        |s| Count(s.max_frames_per_subscriber.into())),
    metric("cuframes_last_frame_timestamp_seconds", Gauge, "Time at which the newest frame was published.",
        |s| last_frame_time(s).map_or(Unknown, UnixTime)),
];

#[rustfmt::skip]
const TRACK: [Metric<TrackStatus>; 4] = [
    metric("cuframes_packets_published_total", Counter, "Packets published.",
        |t| Count(t.published)),
    metric("cuframes_packets_too_big_total", Counter, "Packets dropped because they are larger than the ring.",
        |t| Count(t.oversized)),
    metric("cuframes_packets_kept", Gauge, "Packets in the ring.",
        |t| Count(t.buffered)),
    metric("cuframes_packet_memory_bytes", Gauge, "Size of the packet ring.",
        |t| Count(t.bytes)),
];

#[rustfmt::skip]
const SUBSCRIBER: [Metric<SubscriberStatus>; 7] = [
    metric("cuframes_subscriber_received_frames_total", Counter, "Frames that a subscriber received.",
        |s| Count(s.received)),
    metric("cuframes_subscriber_skipped_frames_total", Counter, "Frames that a subscriber skipped.",
        |s| Count(s.skipped)),
    metric("cuframes_subscriber_copied_frames_total", Counter, "Frames that a subscriber copied because it held its full credit.",
        |s| Count(s.copied)),
    metric("cuframes_subscriber_held_frames", Gauge, "Frames that a subscriber holds.",
        |s| Count(s.held.into())),
    metric("cuframes_subscriber_credit_frames", Gauge, "Frames that a subscriber may hold, 0 if it takes packets only.",
        |s| Count(s.max_frames.into())),
    metric("cuframes_subscriber_lag_frames", Gauge, "Frames published after the one that a subscriber took last.",
        |s| Count(s.lag)),
    metric("cuframes_subscriber_latency_seconds", Gauge, "Time from publication to receipt of the frame that a subscriber took last.",
        |s| s.latency_ns.map_or(Unknown, Seconds)),
];

/// Returns the time at which the newest frame was published, in seconds since 1970. The status has the
/// monotonic time, which other hosts can't compare with theirs.
fn last_frame_time(s: &PublisherStatus) -> Option<f64> {
    let age_ns = u64::try_from(s.time_ns - s.last_frame_ns?).ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(now.as_secs_f64() - seconds(age_ns))
}

/// Returns all metrics of these snapshots in the text format.
fn render(snapshots: &[Snapshot]) -> String {
    let publishers = || snapshots.iter().filter_map(|s| s.status.as_ref().ok());
    let tracks = || publishers().flat_map(|s| s.tracks.iter().map(move |t| (s, t)));
    let subscribers = || publishers().flat_map(|s| s.subscribers.iter().map(move |p| (s, p)));

    let mut text = String::new();
    let keys = snapshots.iter().map(|s| (labels(&[("key", &s.key.key)]), s));
    append(&mut text, &LIVE_KEY, keys);
    append(&mut text, &PUBLISHER_INFO, publishers().map(|s| (info_labels(s), s)));
    append(&mut text, &PUBLISHER, publishers().map(|s| (labels(&[("key", &s.key)]), s)));
    append(&mut text, &TRACK, tracks().map(|(s, t)| (track_labels(s, t), t)));
    append(&mut text, &SUBSCRIBER, subscribers().map(|(s, p)| (subscriber_labels(s, p), p)));
    text
}

/// Appends each metric of a table: its heading, then a sample for each object with its labels.
fn append<'a, T: 'a>(
    text: &mut String,
    metrics: &[Metric<T>],
    objects: impl Iterator<Item = (String, &'a T)>,
) {
    let objects: Vec<_> = objects.collect();
    for Metric { name, kind, help, value } in metrics {
        let mut samples = objects
            .iter()
            .map(|(labels, object)| (labels, value(object)))
            .filter(|(_, value)| !matches!(value, Unknown))
            .peekable();
        // Writing to a String never fails.
        if samples.peek().is_some() {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        }
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        }
    }
}

fn info_labels(s: &PublisherStatus) -> String {
    labels(&[
        ("key", &s.key),
        ("name", &s.name),
        ("pid", &s.pid.to_string()),
        ("memory", &s.memory.to_string()),
        ("caps", &s.caps),
    ])
}

fn track_labels(s: &PublisherStatus, t: &TrackStatus) -> String {
    labels(&[("key", &s.key), ("track", &t.track.to_string()), ("codec", format::codec(&t.caps))])
}

fn subscriber_labels(s: &PublisherStatus, p: &SubscriberStatus) -> String {
    labels(&[
        ("key", &s.key),
        ("id", &p.id.to_string()),
        ("name", &p.name),
        ("pid", &p.pid.to_string()),
        ("mode", format::mode(p.mode)),
    ])
}

/// Returns labels in the text format, such as `key="cam1",track="0"`.
fn labels(labels: &[(&str, &str)]) -> String {
    let labels: Vec<_> =
        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
    labels.join(",")
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Counter => "counter",
            Gauge => "gauge",
        })
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Count(count) => write!(f, "{count}"),
            Seconds(ns) => write!(f, "{}", seconds(ns)),
            UnixTime(time) => write!(f, "{time:.3}"),
            Unknown => f.write_str("NaN"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(
            labels(&[("key", "cam1"), ("name", "a\"b\\c\nd")]),
            "key=\"cam1\",name=\"a\\\"b\\\\c\\nd\""
        );
    }

    #[test]
    fn metric_without_samples_has_no_heading() {
        let metrics = [
            metric("known", Counter, "Known.", |n: &u64| Count(*n)),
            metric("unknown", Gauge, "Unknown.", |_: &u64| Unknown),
        ];
        let mut text = String::new();
        append(&mut text, &metrics, [("a=\"1\"".to_owned(), &7)].into_iter());
        assert_eq!(text, "# HELP known Known.\n# TYPE known counter\nknown{a=\"1\"} 7\n");
    }
}
