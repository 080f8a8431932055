//! `cuframes metrics`: Prometheus' text format, printed once or served by HTTP.
//!
//! The format is a few lines of text and the server answers one kind of request, so neither takes a
//! library: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cuframes::{Mode, PublisherStatus, SubscriberStatus};

use crate::look::{self, Look};
use crate::{Options, print};

/// Who asks has this long to say so, and this long to take the answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of a request at most.
const MAX_REQUEST: usize = 8 << 10;

pub fn run(options: &Options, listen: Option<&str>) -> io::Result<bool> {
    let Some(address) = listen else {
        return print(&text(&look::all(options))).map(|()| true);
    };
    let refused = |e: io::Error| {
        io::Error::new(
            e.kind(),
            format!(
                "Can't listen on {address} ({e}): name a free port, such as --listen 127.0.0.1:9469"
            ),
        )
    };
    let listener = TcpListener::bind(address).map_err(refused)?;
    print(&format!("http://{}/metrics\n", listener.local_addr()?))?;
    loop {
        // One after the other: a scrape takes milliseconds, and who dawdles is cut off.
        match listener.accept() {
            Ok((peer, _)) => {
                // Who hangs up does not get its answer, and nobody else minds.
                let _ = serve(peer, options);
            }
            // Out of fds, for one.
            Err(_) => std::thread::sleep(PATIENCE),
        }
    }
}

fn serve(mut peer: TcpStream, options: &Options) -> io::Result<()> {
    let request = read_head(&mut peer)?;
    let mut words = request.split_ascii_whitespace();
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = path.split('?').next().unwrap_or("");
    let (status, kind, body) = match (method, path) {
        ("GET" | "HEAD", "/metrics") => {
            ("200 OK", "text/plain; version=0.0.4; charset=utf-8", text(&look::all(options)))
        }
        ("GET" | "HEAD", "/") => ("200 OK", "text/plain", "The metrics are at /metrics\n".into()),
        ("GET" | "HEAD", _) => {
            ("404 Not Found", "text/plain", "The metrics are at /metrics\n".into())
        }
        _ => ("405 Method Not Allowed", "text/plain", "GET /metrics\n".into()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    peer.set_write_timeout(Some(PATIENCE))?;
    peer.write_all(head.as_bytes())?;
    if method != "HEAD" {
        peer.write_all(body.as_bytes())?;
    }
    Ok(())
}

/// What comes before the empty line.
fn read_head(peer: &mut TcpStream) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = Vec::new();
    let mut part = [0; 1024];
    while !bytes.windows(4).any(|w| w == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || bytes.len() > MAX_REQUEST {
            return Err(io::ErrorKind::TimedOut.into());
        }
        peer.set_read_timeout(Some(left))?;
        match peer.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => bytes.extend(&part[..n]),
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A metric: its name, its type, what it says.
type Metric = (&'static str, &'static str, &'static str);

/// The values of one metric, under its heading.
struct Family<'a>(&'a mut String, Metric, bool);

impl Family<'_> {
    fn value(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let (name, kind, help) = self.1;
        // Writing to a string can't fail.
        if !std::mem::replace(&mut self.2, true) {
            let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        }
        let labels: Vec<_> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        let _ = writeln!(self.0, "{name}{{{}}} {value}", labels.join(","));
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// When the newest frame was published, in seconds since 1970: what monotonic times can't be compared with.
fn wall_time(s: &PublisherStatus) -> Option<f64> {
    let age = u64::try_from(s.time_ns - s.last_frame_ns?).ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(now.as_secs_f64() - seconds(age))
}

fn text(looks: &[Look]) -> String {
    let mut text = String::new();
    let mut family = |metric: Metric, values: &dyn Fn(&mut Family<'_>)| {
        values(&mut Family(&mut text, metric, false));
    };
    family(("cuframes_up", "gauge", "Whether the publisher of a live key answers."), &|f| {
        for look in looks {
            f.value(&[("key", &look.key.key)], u8::from(look.status.is_ok()));
        }
    });
    let all: Vec<&PublisherStatus> = looks.iter().filter_map(|l| l.status.as_ref().ok()).collect();
    family(("cuframes_publisher_info", "gauge", "Who publishes a key, and what."), &|f| {
        for s in &all {
            let (pid, memory) = (s.pid.to_string(), s.memory.to_string());
            let labels = [
                ("key", &*s.key),
                ("name", &s.name),
                ("pid", &pid),
                ("memory", &memory),
                ("caps", &s.caps),
            ];
            f.value(&labels, 1);
        }
    });
    type Of<T> = fn(&T) -> f64;
    let of_publisher: [(Metric, Of<PublisherStatus>); 8] = [
        (("cuframes_frames_published_total", "counter", "Frames published."), |s| {
            s.published as f64
        }),
        (
            ("cuframes_frames_dropped_total", "counter", "Frames for which there was no slot."),
            |s| s.dropped as f64,
        ),
        (
            (
                "cuframes_publish_latency_seconds",
                "gauge",
                "How far behind their timestamps frames are published at most.",
            ),
            |s| seconds(s.latency_ns),
        ),
        (("cuframes_frame_slots", "gauge", "Slots for frames."), |s| s.slots.into()),
        (("cuframes_frame_memory_bytes", "gauge", "Memory of the frames."), |s| s.bytes as f64),
        (("cuframes_subscribers", "gauge", "Subscribers."), |s| s.subscribers.len() as f64),
        (("cuframes_max_subscribers", "gauge", "Subscribers that there may be."), |s| {
            s.max_subscribers.into()
        }),
        (
            ("cuframes_max_credit_frames", "gauge", "Frames that one subscriber may hold at most."),
            |s| s.max_frames_per_subscriber.into(),
        ),
    ];
    for (metric, of) in of_publisher {
        family(metric, &|f| all.iter().for_each(|s| f.value(&[("key", &s.key)], of(s))));
    }
    family(
        ("cuframes_last_frame_timestamp_seconds", "gauge", "When the newest frame was published."),
        &|f| {
            for (s, time) in all.iter().filter_map(|s| Some((s, wall_time(s)?))) {
                f.value(&[("key", &s.key)], format_args!("{time:.3}"));
            }
        },
    );
    let of_track: [(Metric, Of<cuframes::TrackStatus>); 4] = [
        (("cuframes_packets_published_total", "counter", "Packets published."), |t| {
            t.published as f64
        }),
        (
            (
                "cuframes_packets_too_big_total",
                "counter",
                "Packets with more bytes than their ring.",
            ),
            |t| t.too_big as f64,
        ),
        (("cuframes_packets_kept", "gauge", "Packets in the ring."), |t| t.in_ring as f64),
        (("cuframes_packet_memory_bytes", "gauge", "Memory of the packets."), |t| t.bytes as f64),
    ];
    for (metric, of) in of_track {
        family(metric, &|f| {
            for (s, t) in all.iter().flat_map(|s| s.tracks.iter().map(move |t| (s, t))) {
                let track = t.track.to_string();
                let codec = look::packets(&t.caps);
                f.value(&[("key", &s.key), ("track", &track), ("codec", codec)], of(t));
            }
        });
    }
    let of_subscriber: [(Metric, Of<SubscriberStatus>); 6] = [
        (
            (
                "cuframes_subscriber_received_frames_total",
                "counter",
                "Frames that a subscriber took.",
            ),
            |s| s.received as f64,
        ),
        (
            (
                "cuframes_subscriber_skipped_frames_total",
                "counter",
                "Frames that a subscriber missed.",
            ),
            |s| s.skipped as f64,
        ),
        (
            (
                "cuframes_subscriber_copied_frames_total",
                "counter",
                "Frames that a subscriber copied, since it held as many as it may.",
            ),
            |s| s.copied as f64,
        ),
        (("cuframes_subscriber_held_frames", "gauge", "Frames that a subscriber holds."), |s| {
            s.held.into()
        }),
        (
            (
                "cuframes_subscriber_credit_frames",
                "gauge",
                "Frames that a subscriber may hold; 0 for one of packets only.",
            ),
            |s| s.max_frames.into(),
        ),
        (
            (
                "cuframes_subscriber_lag_frames",
                "gauge",
                "Frames that are newer than what a subscriber took last.",
            ),
            |s| s.lag as f64,
        ),
    ];
    let subscribers = || all.iter().flat_map(|s| s.subscribers.iter().map(move |p| (s, p)));
    let labelled = |f: &mut Family<'_>, s: &PublisherStatus, p: &SubscriberStatus, value: f64| {
        let (id, pid) = (p.id.to_string(), p.pid.to_string());
        let mode = match p.mode {
            Mode::Newest => "newest",
            Mode::Strict => "strict",
        };
        let labels =
            [("key", &*s.key), ("id", &id), ("name", &p.name), ("pid", &pid), ("mode", mode)];
        f.value(&labels, value);
    };
    for (metric, of) in of_subscriber {
        family(metric, &|f| subscribers().for_each(|(s, p)| labelled(f, s, p, of(p))));
    }
    family(
        (
            "cuframes_subscriber_latency_seconds",
            "gauge",
            "From publication until a subscriber had the frame that it took last.",
        ),
        &|f| {
            for (s, p) in subscribers() {
                if let Some(ns) = p.latency_ns {
                    labelled(f, s, p, seconds(ns));
                }
            }
        },
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_stay_within_their_quotes() {
        let mut text = String::new();
        Family(&mut text, ("m", "gauge", "Help."), false).value(&[("name", "a\"b\\c\nd")], 1);
        assert_eq!(text, "# HELP m Help.\n# TYPE m gauge\nm{name=\"a\\\"b\\\\c\\nd\"} 1\n");
    }
}
