//! Looks at all publishers at once, and how what they say is put for people.

use std::time::Duration;

use cuframes::runtime_dirs;
use cuframes::{Error, LiveKey, PublisherStatus};

use crate::Options;

/// A live key, and what its publisher says.
pub struct Look {
    pub key: LiveKey,
    pub status: Result<PublisherStatus, Error>,
}

/// Asks all publishers; one that hangs holds up none of the others.
pub fn all(options: &Options) -> Vec<Look> {
    let keys = cuframes::keys(options.runtime_dir.as_deref());
    let ask = |key: &LiveKey| cuframes::status(&key.key, Some(&key.dir));
    let answers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = keys.iter().map(|key| scope.spawn(move || ask(key))).collect();
        threads.into_iter().map(|t| t.join().expect("asking does not panic")).collect()
    });
    let looks = keys.into_iter().zip(answers).map(|(key, status)| Look { key, status });
    // One that ended between the two is no error.
    looks.filter(|l| !matches!(l.status, Err(Error::NoPublisher { .. })) || is_live(l)).collect()
}

fn is_live(look: &Look) -> bool {
    cuframes::keys(Some(&look.key.dir)).contains(&look.key)
}

/// What the publisher of the same key and life said before.
pub fn before<'a>(earlier: &'a [Look], look: &Look) -> Option<&'a PublisherStatus> {
    earlier.iter().find(|e| e.key == look.key).and_then(|e| e.status.as_ref().ok())
}

/// What to say where there are no keys.
pub fn no_keys(options: &Options) -> String {
    let dirs: Vec<_> = runtime_dirs(options.runtime_dir.as_deref())
        .iter()
        .map(|dir| dir.display().to_string())
        .collect();
    format!(
        "Nothing is published in {}: start a publisher with cuframessink, or look elsewhere with --runtime-dir\n",
        dirs.join(" ")
    )
}

/// A field of caps; the texts that GStreamer writes for them are regular enough.
pub fn field<'a>(caps: &'a str, name: &str) -> Option<&'a str> {
    caps.split(',').find_map(|part| {
        let (key, value) = part.trim().split_once('=')?;
        let value = value.strip_prefix('(').and_then(|v| v.split_once(')')).map_or(value, |v| v.1);
        (key == name).then_some(value.trim_matches(|c| c == '"' || c == ';'))
    })
}

/// Caps of frames in short, such as "NV12 1280x720".
pub fn frames(caps: &str) -> String {
    match (field(caps, "format"), field(caps, "width"), field(caps, "height")) {
        (Some(format), Some(width), Some(height)) => format!("{format} {width}x{height}"),
        _ if caps.is_empty() => "-".into(),
        _ => caps.into(),
    }
}

/// Caps of packets in short, such as "h264".
pub fn packets(caps: &str) -> &str {
    let name = caps.split(',').next().unwrap_or_default();
    let short = name.split_once("/x-").or_else(|| name.split_once('/')).map_or(name, |n| n.1);
    if short.is_empty() { "-" } else { short }
}

pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

/// A process of another PID namespace has no number here.
pub fn pid(pid: i32) -> String {
    if pid == 0 { "-".into() } else { pid.to_string() }
}

/// A number that may not be known.
pub fn rate(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".into(), |r| format!("{r:.1}"))
}

pub fn latency(ns: Option<u64>) -> String {
    ns.map_or_else(
        || "-".into(),
        |ns| format!("{:.2} ms", Duration::from_nanos(ns).as_secs_f64() * 1e3),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caps_are_put_in_short() {
        let caps = "video/x-raw(memory:CUDAMemory), format=(string)NV12, width=(int)1280, height=(int)720, framerate=(fraction)30/1";
        assert_eq!(frames(caps), "NV12 1280x720");
        assert_eq!(field(caps, "framerate"), Some("30/1"));
        assert_eq!((frames(""), frames("video/x-raw")), ("-".into(), "video/x-raw".into()));
        assert_eq!(packets("video/x-h264, stream-format=(string)avc"), "h264");
        assert_eq!((packets("audio/mpeg"), packets("")), ("mpeg", "-"));
    }

    #[test]
    fn numbers_have_units() {
        assert_eq!(
            (bytes(7), bytes(1536), bytes(3 << 20)),
            ("7 B".into(), "1.5 KiB".into(), "3.0 MiB".into())
        );
        assert_eq!((rate(None), rate(Some(29.97))), ("-".into(), "30.0".into()));
        assert_eq!(latency(Some(123_456)), "0.12 ms");
    }
}
