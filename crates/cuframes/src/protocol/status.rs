// SPDX-License-Identifier: LGPL-2.1-or-later
//! Status of a publisher, and its encoding in messages.

use super::wire::{MAX_MESSAGE, MAX_NAME, Malformed, Reader, Writer};
use crate::memory::Kind;
use crate::types::mode::Mode;

/// Maximum number of tracks of a publisher.
pub(crate) const MAX_TRACKS: usize = 256;
/// Maximum size of a text with caps, in bytes; longer caps are omitted. The limit guarantees that a message has
/// room for the publisher's fields and one entry.
const MAX_STATUS_CAPS: usize = 16 << 10;
/// Upper bound of the size of the publisher's fields, and of an entry, without their texts, in bytes.
const MAX_FIXED: usize = 256;

/// Status of a publisher at one moment, as the publisher sees itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublisherStatus {
    /// The key that it publishes.
    pub key: String,
    /// Name of the publisher, from its configuration.
    pub name: String,
    /// Process id in the observer's PID namespace; 0 if the process is not visible there.
    pub pid: i32,
    /// User id of the publisher.
    pub uid: u32,
    /// Number of this run of the publisher; it differs after a restart.
    pub epoch: u64,
    /// Time of this status, in ns of CLOCK_MONOTONIC.
    pub time_ns: i64,
    /// Caps of the newest frame format; empty before the first, for a publisher of packets only, and if they
    /// are longer than 16 KiB.
    pub caps: String,
    /// Kind of memory that the frames are in.
    pub memory: Kind,
    /// Number of slots.
    pub slots: u32,
    /// Number of chunks that contain these slots.
    pub chunks: u32,
    /// Size of these chunks, in bytes.
    pub bytes: u64,
    /// Number of frames published so far.
    pub published: u64,
    /// Number of frames dropped because no slot was free.
    pub dropped: u64,
    /// Publication time of the newest frame, in ns of CLOCK_MONOTONIC; `None` before the first.
    pub last_frame_ns: Option<i64>,
    /// Maximum time from a frame's timestamp to its publication, in ns.
    pub latency_ns: u64,
    /// Maximum number of subscribers.
    pub max_subscribers: u32,
    /// Maximum number of frames that one subscriber may hold.
    pub max_frames_per_subscriber: u32,
    /// The tracks, by number.
    pub tracks: Vec<TrackStatus>,
    /// The connected subscribers.
    pub subscribers: Vec<SubscriberStatus>,
}

/// Status of a track of packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackStatus {
    /// Number of the track.
    pub track: u32,
    /// Caps of the newest packet format; empty if they are longer than 16 KiB.
    pub caps: String,
    /// Number of packets published so far.
    pub published: u64,
    /// Number of packets in the ring.
    pub buffered: u64,
    /// Number of packets rejected because they are larger than the ring.
    pub oversized: u64,
    /// Size of the ring, in bytes.
    pub bytes: u64,
}

/// Status of a subscriber, as its publisher sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriberStatus {
    /// Number of the subscriber, unique in a run of the publisher.
    pub id: u32,
    /// Name of the subscriber, from its configuration.
    pub name: String,
    /// Process id in the publisher's PID namespace; 0 if the process is not visible there.
    pub pid: i32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Which frames it takes.
    pub mode: Mode,
    /// Maximum number of frames that it may hold; 0 for a subscriber of packets only.
    pub max_frames: u32,
    /// Number of frames that it holds.
    pub held: u32,
    /// Number of frames that are newer than the last one that it took; 0 for a subscriber of packets only.
    pub lag: u64,
    /// Number of frames that it took. The subscriber counts this and the next two values.
    pub received: u64,
    /// Number of frames that it skipped.
    pub skipped: u64,
    /// Number of frames that it copied instead of holding them.
    pub copied: u64,
    /// Time from the publication of the last frame that it took until it took it, in ns. `None` if the
    /// publication time is no longer known.
    pub latency_ns: Option<u64>,
}

impl PublisherStatus {
    /// Returns the frames per second between an earlier status and this one. Uses the publication times of
    /// the newest frames, which makes it exact over short intervals as well. `None` if the publisher was
    /// restarted in between, or no time has passed.
    pub fn fps_since(&self, earlier: &Self) -> Option<f64> {
        let frames = self.since(earlier)?.published.checked_sub(earlier.published)?;
        if frames == 0 {
            return Some(0.0);
        }
        let (from, to) = match (earlier.last_frame_ns, self.last_frame_ns) {
            (Some(from), Some(to)) if to > from => (from, to),
            _ => (earlier.time_ns, self.time_ns),
        };
        rate(frames, to.wrapping_sub(from))
    }

    /// Returns the packets per second of a track between an earlier status and this one. `None` if one of
    /// them lacks the track, the publisher was restarted in between, or no time has passed.
    pub fn packet_rate_since(&self, earlier: &Self, track: u32) -> Option<f64> {
        let of = |s: &Self| s.tracks.iter().find(|t| t.track == track).map(|t| t.published);
        let packets = of(self.since(earlier)?)?.checked_sub(of(earlier)?)?;
        rate(packets, self.time_ns.wrapping_sub(earlier.time_ns))
    }

    /// Returns the frames per second that subscriber `id` took between an earlier status and this one. `None`
    /// if one of them lacks the subscriber, the publisher was restarted in between, or no time has passed.
    pub fn taken_since(&self, earlier: &Self, id: u32) -> Option<f64> {
        let of = |s: &Self| s.subscribers.iter().find(|s| s.id == id).map(|s| s.received);
        let frames = of(self.since(earlier)?)?.checked_sub(of(earlier)?)?;
        rate(frames, self.time_ns.wrapping_sub(earlier.time_ns))
    }

    /// Returns this status if both are of the same run of a publisher.
    fn since(&self, earlier: &Self) -> Option<&Self> {
        (self.epoch == earlier.epoch).then_some(self)
    }

    /// Returns the part of the status that fits into one message, from entry `from` on (0 for the first), and
    /// the entry that the next part starts with (0 after the last).
    pub(crate) fn part(&self, from: u64) -> (Self, u64) {
        let mut part = Self { tracks: Vec::new(), subscribers: Vec::new(), ..self.clone() };
        omit_long(&mut part.caps);
        truncate(&mut part.name);
        let mut left = MAX_MESSAGE - MAX_FIXED - part.caps.len() - part.name.len() - part.key.len();
        let mut take = |text: &str| {
            let room = left.checked_sub(MAX_FIXED + text.len());
            left = room.unwrap_or(0);
            room.is_some()
        };
        for track in self.tracks.iter().filter(|t| t.entry() >= from) {
            let mut track = track.clone();
            omit_long(&mut track.caps);
            if !take(&track.caps) {
                return (part, track.entry());
            }
            part.tracks.push(track);
        }
        for subscriber in self.subscribers.iter().filter(|s| s.entry() >= from) {
            if !take(&subscriber.name) {
                return (part, subscriber.entry());
            }
            part.subscribers.push(subscriber.clone());
        }
        (part, 0)
    }

    pub(super) fn encode(&self, w: Writer) -> Writer {
        let w = w.text(&self.key).text(&self.name).u32(self.pid as u32).u32(self.uid);
        let w = w.u64(self.epoch).u64(self.time_ns as u64).text(&self.caps);
        let w = w.u32(self.memory as u32).u32(self.slots).u32(self.chunks).u64(self.bytes);
        let w = w.u64(self.published).u64(self.dropped);
        let w = w.u64(self.last_frame_ns.unwrap_or(NO_TIME) as u64).u64(self.latency_ns);
        let mut w = w
            .u32(self.max_subscribers)
            .u32(self.max_frames_per_subscriber)
            .u32(self.tracks.len() as u32);
        for t in &self.tracks {
            w = w.u32(t.track).text(&t.caps).u64(t.published).u64(t.buffered);
            w = w.u64(t.oversized).u64(t.bytes);
        }
        w = w.u32(self.subscribers.len() as u32);
        for s in &self.subscribers {
            w = w.u32(s.id).text(&s.name).u32(s.pid as u32).u32(s.uid).u32(s.gid);
            w = w.u32(s.mode as u32).u32(s.max_frames).u32(s.held).u64(s.lag);
            w = w.u64(s.received).u64(s.skipped).u64(s.copied);
            w = w.u64(s.latency_ns.unwrap_or(NO_LATENCY));
        }
        w
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut status = Self {
            key: r.text(MAX_NAME)?,
            name: r.text(MAX_NAME)?,
            pid: r.u32()? as i32,
            uid: r.u32()?,
            epoch: r.u64()?,
            time_ns: r.u64()? as i64,
            caps: r.text(MAX_STATUS_CAPS)?,
            memory: Kind::try_from(r.u32()?).map_err(Malformed::Kind)?,
            slots: r.u32()?,
            chunks: r.u32()?,
            bytes: r.u64()?,
            published: r.u64()?,
            dropped: r.u64()?,
            last_frame_ns: Some(r.u64()? as i64).filter(|t| *t != NO_TIME),
            latency_ns: r.u64()?,
            max_subscribers: r.u32()?,
            max_frames_per_subscriber: r.u32()?,
            tracks: Vec::new(),
            subscribers: Vec::new(),
        };
        // The counts are not trusted: each entry is allocated only after its bytes were read.
        for _ in 0..r.u32()? {
            status.tracks.push(TrackStatus {
                track: r.u32()?,
                caps: r.text(MAX_STATUS_CAPS)?,
                published: r.u64()?,
                buffered: r.u64()?,
                oversized: r.u64()?,
                bytes: r.u64()?,
            });
        }
        for _ in 0..r.u32()? {
            status.subscribers.push(SubscriberStatus {
                id: r.u32()?,
                name: r.text(MAX_NAME)?,
                pid: r.u32()? as i32,
                uid: r.u32()?,
                gid: r.u32()?,
                mode: r.mode()?,
                max_frames: r.u32()?,
                held: r.u32()?,
                lag: r.u64()?,
                received: r.u64()?,
                skipped: r.u64()?,
                copied: r.u64()?,
                latency_ns: Some(r.u64()?).filter(|l| *l != NO_LATENCY),
            });
        }
        Ok(status)
    }
}

/// Encoding of `None` in `last_frame_ns`.
const NO_TIME: i64 = i64::MIN;
/// Encoding of `None` in `latency_ns`.
const NO_LATENCY: u64 = u64::MAX;
/// First entry number of the subscribers. Those of the tracks are below it.
const SUBSCRIBERS: u64 = 1 << 32;

impl TrackStatus {
    /// Number of this entry, see [`PublisherStatus::part`].
    fn entry(&self) -> u64 {
        self.track.into()
    }
}

impl SubscriberStatus {
    /// Number of this entry, see [`PublisherStatus::part`].
    fn entry(&self) -> u64 {
        SUBSCRIBERS | u64::from(self.id)
    }
}

fn rate(count: u64, ns: i64) -> Option<f64> {
    (ns > 0).then(|| count as f64 * 1e9 / ns as f64)
}

fn omit_long(caps: &mut String) {
    if caps.len() > MAX_STATUS_CAPS {
        caps.clear();
    }
}

fn truncate(name: &mut String) {
    while name.len() > MAX_NAME {
        name.pop();
    }
}
