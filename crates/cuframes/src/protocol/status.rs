//! What a publisher tells of itself to whoever asks, and how that becomes messages.

use super::wire::{MAX_MESSAGE, MAX_NAME, Malformed, Reader, Writer};
use crate::memory::Kind;
use crate::types::code::Mode;

/// Bytes of a text with caps at most; longer ones are left out. So a message always has room for the
/// publisher itself and for one entry.
/// Tracks that a publisher may have.
pub(crate) const MAX_TRACKS: usize = 256;
const MAX_CAPS: usize = 16 << 10;
/// Bytes of a publisher and of an entry without their texts, generously.
const MAX_FIXED: usize = 256;

/// A publisher at a moment, as it sees itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublisherStatus {
    pub key: String,
    /// What the publisher calls itself.
    pub name: String,
    /// As seen from here, if it is visible here.
    pub pid: i32,
    pub uid: u32,
    /// Tells one life of a publisher from the next.
    pub epoch: u64,
    /// When this was looked at, in ns of CLOCK_MONOTONIC.
    pub time_ns: i64,
    /// Caps of the frames; empty before the first, and where there are packets only.
    pub caps: String,
    pub memory: Kind,
    pub slots: u32,
    pub chunks: u32,
    /// Memory of the frames.
    pub bytes: u64,
    /// Frames so far.
    pub published: u64,
    /// Frames for which there was no slot.
    pub dropped: u64,
    /// When the newest frame was published, in ns of CLOCK_MONOTONIC.
    pub last_frame_ns: Option<i64>,
    /// How far behind its timestamps frames are published at most.
    pub latency_ns: u64,
    pub max_subscribers: u32,
    pub max_frames_per_subscriber: u32,
    pub tracks: Vec<TrackStatus>,
    pub subscribers: Vec<SubscriberStatus>,
}

/// A track of packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackStatus {
    pub track: u32,
    pub caps: String,
    /// Packets so far, and those that are still there.
    pub published: u64,
    pub in_ring: u64,
    /// Packets that had more bytes than the ring.
    pub too_big: u64,
    /// Memory of the packets.
    pub bytes: u64,
}

/// A subscriber, in the publisher's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriberStatus {
    pub id: u32,
    pub name: String,
    /// As seen from the publisher's PID namespace; 0 where it is not visible there.
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
    pub mode: Mode,
    /// Frames that it may hold, 0 where it takes packets only; and those that it holds.
    pub max_frames: u32,
    pub held: u32,
    /// Frames that are newer than the one that it took last.
    pub lag: u64,
    /// By its own account.
    pub received: u64,
    pub skipped: u64,
    pub copied: u64,
    /// From the publication of the frame that it took last until it had it; `None` where that is not
    /// known any more.
    pub latency_ns: Option<u64>,
}

impl PublisherStatus {
    /// Frames a second from an earlier look to this one: by the times of the newest frames, so it is
    /// exact also over a short while. `None` if the two are not of one life of a publisher.
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

    /// Packets a second of a track from an earlier look to this one.
    pub fn packet_rate_since(&self, earlier: &Self, track: u32) -> Option<f64> {
        let of = |s: &Self| s.tracks.iter().find(|t| t.track == track).map(|t| t.published);
        let packets = of(self.since(earlier)?)?.checked_sub(of(earlier)?)?;
        rate(packets, self.time_ns.wrapping_sub(earlier.time_ns))
    }

    /// Frames a second that a subscriber took from an earlier look to this one.
    pub fn taken_since(&self, earlier: &Self, id: u32) -> Option<f64> {
        let of = |s: &Self| s.subscribers.iter().find(|s| s.id == id).map(|s| s.received);
        let frames = of(self.since(earlier)?)?.checked_sub(of(earlier)?)?;
        rate(frames, self.time_ns.wrapping_sub(earlier.time_ns))
    }

    fn since(&self, earlier: &Self) -> Option<&Self> {
        (self.epoch == earlier.epoch).then_some(self)
    }

    /// As much of it as fits into a message, beginning with the entry `from`, and the entry to go on
    /// with; 0 for the first and for none.
    pub(crate) fn part(&self, from: u64) -> (Self, u64) {
        let mut part = Self { tracks: Vec::new(), subscribers: Vec::new(), ..self.clone() };
        leave_out_long(&mut part.caps);
        cut(&mut part.name);
        let mut left = MAX_MESSAGE - MAX_FIXED - part.caps.len() - part.name.len() - part.key.len();
        let mut take = |text: &str| {
            let room = left.checked_sub(MAX_FIXED + text.len());
            left = room.unwrap_or(0);
            room.is_some()
        };
        for track in self.tracks.iter().filter(|t| t.entry() >= from) {
            let mut track = track.clone();
            leave_out_long(&mut track.caps);
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
            w = w.u32(t.track).text(&t.caps).u64(t.published).u64(t.in_ring);
            w = w.u64(t.too_big).u64(t.bytes);
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
            caps: r.text(MAX_CAPS)?,
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
        // Nothing is allocated by what these numbers say: the bytes have to be there.
        for _ in 0..r.u32()? {
            status.tracks.push(TrackStatus {
                track: r.u32()?,
                caps: r.text(MAX_CAPS)?,
                published: r.u64()?,
                in_ring: r.u64()?,
                too_big: r.u64()?,
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

const NO_TIME: i64 = i64::MIN;
const NO_LATENCY: u64 = u64::MAX;
/// Where the entries for subscribers begin; those for tracks are before.
const SUBSCRIBERS: u64 = 1 << 32;

impl TrackStatus {
    fn entry(&self) -> u64 {
        self.track.into()
    }
}

impl SubscriberStatus {
    fn entry(&self) -> u64 {
        SUBSCRIBERS | u64::from(self.id)
    }
}

fn rate(count: u64, ns: i64) -> Option<f64> {
    (ns > 0).then(|| count as f64 * 1e9 / ns as f64)
}

fn leave_out_long(caps: &mut String) {
    if caps.len() > MAX_CAPS {
        caps.clear();
    }
}

fn cut(name: &mut String) {
    while name.len() > MAX_NAME {
        name.pop();
    }
}
