//! Answers those who ask what the publisher is.
//!
//! An observer is a stranger that says STATUS_REQUEST instead of HELLO: it takes no subscriber's place, and has
//! the time and the number of places that strangers have. The server's thread answers, from a look at
//! the publisher that it takes a few times a second at most, however many ask.

use super::frames::FramePublisher;
use super::info::{SubscriberInfo, track_stats};
use super::registry::SubscriberHandle;
use super::state::State;
use crate::protocol::message::Message;
use crate::protocol::socket::Socket;
use crate::protocol::status::{PublisherStatus, SubscriberStatus, TrackStatus};
use crate::shm::layout::unpack_index;
use crate::shm::record::Record;
use crate::sync::atomic::{Ordering, fence};
use crate::sync::clock;
use std::time::Duration;

/// A look is good for so long. It takes locks that streaming threads take, too.
const FRESH: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(crate) struct Observers {
    last: Option<(Duration, PublisherStatus)>,
}

impl Observers {
    /// Tells as much as fits into a message. True if the observer knows all then, or is gone.
    pub fn answer(&mut self, server: &State, connection: &Socket, version: u16, from: u64) -> bool {
        let now = clock::now();
        if self.last.as_ref().is_none_or(|(taken, _)| now >= *taken + FRESH) {
            self.last = Some((now, look(server)));
        }
        let (_, status) = self.last.as_ref().expect("taken above");
        let (part, next) = status.part(from);
        let answer = Message::Status { version, next, status: Box::new(part) };
        connection.send(&answer, &[]).is_err() || next == 0
    }
}

fn look(server: &State) -> PublisherStatus {
    let frames = &server.frames;
    let (caps, track_caps) = server.registry.caps();
    let pool = frames.stats();
    let tracks = track_stats(&server.tracks).into_iter().map(|t| TrackStatus {
        track: t.track,
        caps: track_caps.iter().find(|c| c.0 == t.track).map(|c| c.1.clone()).unwrap_or_default(),
        published: t.published,
        in_ring: t.in_ring,
        too_big: t.too_big,
        bytes: t.bytes,
    });
    let peers = server.registry.peers().1;
    PublisherStatus {
        key: server.key.clone(),
        name: server.name.clone(),
        pid: std::process::id() as i32,
        uid: nix::unistd::getuid().as_raw(),
        epoch: server.epoch,
        time_ns: clock::now_ns(),
        caps,
        memory: pool.memory,
        slots: pool.slots,
        chunks: pool.chunks,
        bytes: pool.bytes,
        published: pool.published,
        dropped: pool.dropped,
        last_frame_ns: published_at(frames, pool.published),
        latency_ns: frames.slots.control.header().status.latency_ns.load(Ordering::Relaxed),
        max_subscribers: server.max_subscribers,
        max_frames_per_subscriber: server.max_frames_per_subscriber,
        tracks: tracks.collect(),
        subscribers: peers.iter().map(|p| subscriber(frames, p, pool.published)).collect(),
    }
}

fn subscriber(frames: &FramePublisher, peer: &SubscriberHandle, head: u64) -> SubscriberStatus {
    let info = SubscriberInfo::of(peer);
    let taken = peer.page.header().heartbeat_ns.load(Ordering::Relaxed) as i64;
    // It says itself which frame it took and when; nonsense is nobody's latency.
    let latency = published_at(frames, info.cursor)
        .filter(|_| info.received > 0)
        .and_then(|published| u64::try_from(taken.checked_sub(published)?).ok());
    SubscriberStatus {
        id: info.id,
        name: info.name,
        pid: info.pid,
        uid: info.uid,
        gid: info.gid,
        mode: info.mode,
        max_frames: info.max_frames,
        held: info.held,
        lag: if info.max_frames == 0 { 0 } else { head.saturating_sub(info.cursor) },
        received: info.received,
        skipped: info.skipped,
        copied: info.copied,
        latency_ns: latency,
    }
}

/// When a frame was published, if it is still in a slot.
fn published_at(frames: &FramePublisher, seq: u64) -> Option<i64> {
    let control = &frames.slots.control;
    if seq == 0 {
        return None;
    }
    let slot = unpack_index(control.index_entry(seq).load(Ordering::Relaxed), seq)?;
    if slot >= control.slots() || control.slot(slot).load(Ordering::Acquire) != seq {
        return None;
    }
    let record = Record::load(control.record(slot))?;
    // No claim keeps the slot from being used again meanwhile, so it is looked at once more: whoever
    // saw a word of a newer record sees here that the number was taken away before.
    fence(Ordering::Acquire);
    (control.slot(slot).load(Ordering::Relaxed) == seq && record.seq == seq)
        .then_some(record.published)
}
