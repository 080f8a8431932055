// SPDX-License-Identifier: LGPL-2.1-or-later
//! Answers STATUS_REQUEST: sends the status of the publisher to observers.
//!
//! An observer is a pending connection that sends STATUS_REQUEST instead of HELLO. It occupies no subscriber's
//! place, and is subject to the time limit and the maximum number of pending connections. The server thread
//! answers from a snapshot that it takes at most 20 times a second, for any number of observers.

use std::time::Duration;

use super::frames::FramePublisher;
use super::handle::SubscriberHandle;
use super::info::{SubscriberInfo, track_stats};
use super::state::State;
use crate::protocol::message::Message;
use crate::protocol::socket::Socket;
use crate::protocol::status::{PublisherStatus, SubscriberStatus, TrackStatus};
use crate::shm::layout::unpack_index;
use crate::shm::record::Record;
use crate::sync::atomic::{Ordering, fence};
use crate::sync::clock;

/// Time for which a snapshot is reused. Taking one requires locks that streaming threads take too.
const SNAPSHOT_AGE: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct StatusResponder {
    last: Option<Snapshot>,
}

struct Snapshot {
    taken: Duration,
    status: PublisherStatus,
}

impl StatusResponder {
    /// Sends the part of the status from entry `from` on that fits into a message. Returns true when the observer
    /// has received everything, or is gone.
    pub(super) fn respond(
        &mut self,
        state: &State,
        socket: &Socket,
        version: u16,
        from: u64,
    ) -> bool {
        let now = clock::now();
        let last = self.last.take().filter(|last| now < last.taken + SNAPSHOT_AGE);
        let snapshot = last.unwrap_or_else(|| Snapshot { taken: now, status: snapshot(state) });
        let (part, next) = snapshot.status.part(from);
        self.last = Some(snapshot);
        let answer = Message::Status { version, next, status: Box::new(part) };
        socket.send(&answer, &[]).is_err() || next == 0
    }
}

fn snapshot(state: &State) -> PublisherStatus {
    let frames = &state.frames;
    let caps = state.registry.current_caps();
    let pool = frames.stats();
    let tracks = track_stats(&state.tracks).into_iter().map(|t| {
        let of_track = caps.tracks.iter().find(|c| c.track == t.track);
        TrackStatus {
            track: t.track,
            caps: of_track.map(|c| c.caps.clone()).unwrap_or_default(),
            published: t.published,
            buffered: t.buffered,
            oversized: t.oversized,
            bytes: t.bytes,
        }
    });
    let tracks = tracks.collect();
    let subscribers = state.registry.subscribers();
    PublisherStatus {
        key: state.key.clone(),
        name: state.name.clone(),
        pid: std::process::id() as i32,
        uid: nix::unistd::getuid().as_raw(),
        epoch: state.epoch,
        time_ns: clock::now_ns(),
        caps: caps.frames,
        memory: pool.memory,
        slots: pool.slots,
        chunks: pool.chunks,
        bytes: pool.bytes,
        published: pool.published,
        dropped: pool.dropped,
        last_frame_ns: published_ns(frames, pool.published),
        latency_ns: frames.slots.control.header().status.latency_ns.load(Ordering::Relaxed),
        max_subscribers: state.max_subscribers,
        max_frames_per_subscriber: state.max_frames_per_subscriber,
        tracks,
        subscribers: subscribers
            .iter()
            .map(|s| subscriber_status(frames, s, pool.published))
            .collect(),
    }
}

fn subscriber_status(
    frames: &FramePublisher,
    subscriber: &SubscriberHandle,
    head: u64,
) -> SubscriberStatus {
    let info = SubscriberInfo::of(subscriber);
    let taken_ns = subscriber.page.header().heartbeat_ns.load(Ordering::Relaxed) as i64;
    // Cursor and time are the subscriber's own words, so an impossible difference is reported as unknown.
    let latency_ns = published_ns(frames, info.cursor)
        .filter(|_| info.received > 0)
        .and_then(|published_ns| u64::try_from(taken_ns.checked_sub(published_ns)?).ok());
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
        latency_ns,
    }
}

/// Returns when frame `seq` was published, in ns of CLOCK_MONOTONIC, if it is still in a slot.
fn published_ns(frames: &FramePublisher, seq: u64) -> Option<i64> {
    let control = &frames.slots.control;
    if seq == 0 {
        return None;
    }
    let slot = unpack_index(control.index_entry(seq).load(Ordering::Relaxed), seq)?;
    // SYNC(publish/claim): the record of the frame was written before the number.
    if slot >= control.slots() || control.slot(slot).load(Ordering::Acquire) != seq {
        return None;
    }
    let record = Record::load(control.record(slot))?;
    // No claim protects the slot, so the number is checked again behind the record. The publisher removes the
    // number before it writes a newer record. SYNC(claim/retire): this fence pairs with the SC fence in
    // `retire`, which separates the two.
    fence(Ordering::Acquire);
    (control.slot(slot).load(Ordering::Relaxed) == seq && record.seq == seq)
        .then_some(record.published_ns)
}
