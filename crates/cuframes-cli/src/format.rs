// SPDX-License-Identifier: LGPL-2.1-or-later
//! Formats values of a status for people. An unknown value is shown as `-`.

use std::time::Duration;

use cuframes::Mode;
use cuframes::info::SubscriberStatus;

/// Returns a field of caps in the text format that GStreamer writes. A quoted value must not contain a
/// comma.
pub(crate) fn caps_field<'a>(caps: &'a str, name: &str) -> Option<&'a str> {
    caps.split(',').find_map(|part| {
        let (key, value) = part.trim().split_once('=')?;
        let value = value.strip_prefix('(').and_then(|v| v.split_once(')')).map_or(value, |v| v.1);
        (key == name).then_some(value.trim_matches(|c| c == '"' || c == ';'))
    })
}

/// Returns a short form of frame caps, such as "NV12 1280x720".
pub(crate) fn frame_caps(caps: &str) -> String {
    let field = |name| caps_field(caps, name);
    match (field("format"), field("width"), field("height")) {
        (Some(format), Some(width), Some(height)) => format!("{format} {width}x{height}"),
        _ if caps.is_empty() => "-".into(),
        _ => caps.into(),
    }
}

/// Returns a short form of packet caps, such as "h264".
pub(crate) fn codec(caps: &str) -> &str {
    let name = caps.split(',').next().unwrap_or_default();
    let short = name.split_once("/x-").or_else(|| name.split_once('/')).map_or(name, |n| n.1);
    if short.is_empty() { "-" } else { short }
}

/// Returns a delivery mode as the property `mode` of a source spells it.
pub(crate) fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Newest => "newest",
        Mode::Strict => "strict",
    }
}

/// Returns what a subscriber takes: "newest" or "strict" for frames, else "packets".
pub(crate) fn takes(subscriber: &SubscriberStatus) -> &'static str {
    if subscriber.max_frames == 0 { "packets" } else { mode(subscriber.mode) }
}

/// Returns a size in bytes with a binary unit.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

/// Returns a process ID. Zero stands for a process of a PID namespace that is not visible here.
pub(crate) fn pid(pid: i32) -> String {
    if pid == 0 { "-".into() } else { pid.to_string() }
}

/// Returns a rate per second.
pub(crate) fn rate(per_second: Option<f64>) -> String {
    per_second.map_or_else(|| "-".into(), |r| format!("{r:.1}"))
}

/// Returns a duration in milliseconds.
pub(crate) fn latency(ns: Option<u64>) -> String {
    ns.map_or_else(
        || "-".into(),
        |ns| format!("{:.2} ms", Duration::from_nanos(ns).as_secs_f64() * 1e3),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caps_have_a_short_form() {
        let caps = "video/x-raw(memory:CUDAMemory), format=(string)NV12, width=(int)1280, height=(int)720, framerate=(fraction)30/1";
        assert_eq!(frame_caps(caps), "NV12 1280x720");
        assert_eq!(caps_field(caps, "framerate"), Some("30/1"));
        assert_eq!((frame_caps(""), frame_caps("video/x-raw")), ("-".into(), "video/x-raw".into()));
        assert_eq!(codec("video/x-h264, stream-format=(string)avc"), "h264");
        assert_eq!((codec("audio/mpeg"), codec("")), ("mpeg", "-"));
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
