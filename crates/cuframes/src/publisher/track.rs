// SPDX-License-Identifier: LGPL-2.1-or-later
//! The publisher's side of a track: appends packets to the ring, and decides how long they are kept.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::backpressure::{BackpressureWait, Policy};
use super::frames::FramePublisher;
use super::handle::SubscriberHandle;
use super::registry::{Registry, SubscriberSnapshot};
use crate::error::{Context, Error, Result};
use crate::protocol::message::Message;
use crate::protocol::wire::check_caps;
use crate::shm::layout::{
    LAYOUT_VERSION, MAGIC, READER_ANY_TRACK, READER_LOSSLESS, ReaderWords, TrackHeader,
};
use crate::shm::mapping::{Mapping, Sharing};
use crate::shm::packet_header::{PacketHeader, REFERENCE_BYTES};
use crate::shm::references::encode_references;
use crate::shm::segments::TrackSegment;
use crate::shm::sleeper::before_wakeups;
use crate::shm::{retention, ring, stream_end};
use crate::sync::atomic::Ordering;
use crate::sync::{clock, lock};
use crate::types::packet::PacketInfo;

/// How much of a track's past is kept for subscribers that join later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackConfig {
    /// Size of the ring in bytes, from 8 on; rounded up to a multiple of 8. Each packet takes 128 bytes for its
    /// header in addition to its own. All of this memory is allocated.
    pub bytes: u64,
    /// Duration for which packets are kept, in whole GOPs: an old GOP is discarded when the GOPs behind it cover this
    /// time. A full ring discards packets earlier.
    pub time: Duration,
}

impl Default for TrackConfig {
    /// 16 MiB and 10 s, which is all of 10 s at up to 13 Mbit/s.
    fn default() -> Self {
        Self { bytes: 16 << 20, time: Duration::from_secs(10) }
    }
}

/// Why a packet was not published. The packets before it are unaffected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushError {
    /// The packet is larger than the ring. Its sequence number is skipped, and the rest of its GOP is refused.
    TooBig,
    /// The packet depends on one that was refused, because no keyframe has followed since. Its sequence number is
    /// skipped.
    BrokenGop,
    /// A reader has yet to take the packets that would be overwritten, and the wait for it was cancelled or the
    /// publisher closed. The packet has no sequence number, and may be pushed again.
    WouldBlock,
}

/// Statistics of a track.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackStats {
    /// Number of the track.
    pub track: u32,
    /// Number of packets that were published.
    pub published: u64,
    /// Number of packets that are in the ring.
    pub buffered: u64,
    /// Number of packets that were refused with [`PushError::TooBig`].
    pub oversized: u64,
    /// Number of packets that were refused with [`PushError::BrokenGop`].
    pub broken_gop: u64,
    /// Number of GOPs whose keyframe was overwritten before the GOP ended. Until the next keyframe no reader could
    /// start.
    pub truncated_gops: u64,
    /// Size of the ring in bytes.
    pub bytes: u64,
}

/// A track of a publisher: a stream of encoded packets. [`Publisher::add_track`] returns it.
///
/// A track is a cheap handle; all clones push to the same track. The track exists as long as its publisher.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
///
/// use cuframes::memory::host::HostBackend;
/// use cuframes::{PacketInfo, Publisher, PublisherConfig, PushError, TrackConfig};
///
/// # let dir = std::env::temp_dir().join(format!("cuframes-doc-track-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// let config = PublisherConfig { runtime_dir: Some(dir.clone()), ..PublisherConfig::new("camera") };
/// let publisher = Publisher::open(config, Arc::new(HostBackend), |_| {})?;
/// let track = publisher.add_track(0, "video/x-h264", TrackConfig::default())?;
///
/// let keyframe = PacketInfo { keyframe: true, ..Default::default() };
/// assert_eq!(track.push(keyframe, b"an access unit"), Ok(0));
/// assert_eq!(track.push(PacketInfo::default(), b"the next one"), Ok(1));
///
/// let stats = track.stats();
/// assert_eq!((stats.published, stats.buffered), (2, 2));
/// # drop(publisher);
/// # let _ = std::fs::remove_dir_all(dir);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// [`Publisher::add_track`]: super::Publisher::add_track
#[derive(Clone)]
pub struct Track(pub(super) Arc<TrackWriter>);

impl std::fmt::Debug for Track {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Track").field("track", &self.0.id).finish_non_exhaustive()
    }
}

impl Track {
    /// Sets the caps of all later packets.
    ///
    /// # Errors
    /// The caps are longer than 61,440 bytes or contain control characters ([`Error::InvalidConfig`]). The previous
    /// caps then stay in effect.
    pub fn set_caps(&self, caps: &str) -> Result<()> {
        check_caps(caps)?;
        self.0.set_caps(caps);
        Ok(())
    }

    /// Publishes a packet and returns its sequence number, which starts at 0. `info` and `data` are
    /// copied into the ring.
    ///
    /// Under [`Policy::Wait`] this function waits for readers of [`Mode::Strict`](crate::Mode::Strict) that have yet
    /// to take the packets that would be overwritten.
    ///
    /// # Errors
    /// The packet is larger than the ring, or depends on a packet that was; or the publisher no longer waits
    /// ([`Publisher::stop_waiting`](super::Publisher::stop_waiting)).
    pub fn push(&self, info: PacketInfo, data: &[u8]) -> Result<u64, PushError> {
        self.0.push(info, data, &|| false)
    }

    /// Like [`Track::push`], but stops waiting soon after `cancelled` returns true; it is polled about every 20 ms.
    ///
    /// # Errors
    /// As for [`Track::push`], and [`PushError::WouldBlock`] after `cancelled` returned true.
    pub fn push_unless(
        &self,
        info: PacketInfo,
        data: &[u8],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<u64, PushError> {
        self.0.push(info, data, cancelled)
    }

    /// Returns the statistics of the track.
    pub fn stats(&self) -> TrackStats {
        self.0.stats()
    }

    /// Marks the end of the stream behind the last packet. A later packet takes the mark back.
    pub fn end(&self) {
        self.0.end();
    }
}

/// Start of a generation of caps.
struct Generation {
    number: u32,
    /// Position of its first packet.
    start: u64,
}

struct Keyframe {
    position: u64,
    published_ns: i64,
}

#[derive(Default)]
struct State {
    writer: ring::Writer,
    published: u64,
    generation: u32,
    /// The generations that may still have packets in the ring, oldest first.
    generations: VecDeque<Generation>,
    /// The keyframes in the ring, oldest first.
    keyframes: VecDeque<Keyframe>,
    /// Position of the current GOP's keyframe, while it is in the ring.
    gop: Option<u64>,
    /// A packet of the current GOP was refused.
    broken: bool,
    oversized: u64,
    broken_gop: u64,
    truncated_gops: u64,
    subscribers: SubscriberSnapshot,
}

/// Writes a track's segment.
pub(super) struct TrackWriter {
    id: u32,
    segment: TrackSegment,
    config: TrackConfig,
    registry: Arc<Registry>,
    /// For the policy and its waits.
    frames: Arc<FramePublisher>,
    state: Mutex<State>,
}

impl TrackWriter {
    /// Creates the segment and announces the track.
    ///
    /// # Errors
    /// `config.bytes` is impossible, or the system has no memory or file descriptors left.
    pub(super) fn new(
        id: u32,
        config: TrackConfig,
        registry: Arc<Registry>,
        frames: Arc<FramePublisher>,
    ) -> Result<Self> {
        let bytes = config.bytes.next_multiple_of(8);
        let size = TrackSegment::size(bytes).ok_or(Error::InvalidConfig {
            what: "The packet buffer's number of bytes",
            problem: format!("{bytes} is not possible: 16 MiB is usual"),
        })?;
        let (map, fd) = Mapping::create("cuframes-packets", size, Sharing::ReadOnly)
            .context("make the packet buffer")?;
        let segment = TrackSegment::new(map, bytes);
        let h = segment.header();
        h.version.store(LAYOUT_VERSION, Ordering::Relaxed);
        h.bytes.store(bytes, Ordering::Relaxed);
        // SYNC(magic/open): pairs with the Acquire of the subscriber that opens the segment.
        h.magic.store(MAGIC, Ordering::Release);
        let fd: Arc<OwnedFd> = Arc::new(fd);
        registry.announce(Message::Track { track: id, bytes }, Some(fd));
        let config = TrackConfig { bytes, ..config };
        Ok(Self { id, segment, config, registry, frames, state: Mutex::default() })
    }

    /// Number of the track.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Sets the caps of all later packets. The caller has checked them.
    pub(super) fn set_caps(&self, caps: &str) {
        let mut state = lock(&self.state);
        let State { writer, generation, generations, .. } = &mut *state;
        *generation += 1;
        let start = writer.head();
        // The last generation has no packets if it starts at the head. Its caps are never used.
        if generations.back().is_some_and(|last| last.start == start) {
            generations.pop_back();
        }
        generations.push_back(Generation { number: *generation, start });
        // The oldest generation has no packets if the next one starts at or before the tail.
        while generations.get(1).is_some_and(|next| next.start <= writer.tail()) {
            generations.pop_front();
        }
        let live: Vec<u32> = generations.iter().map(|g| g.number).collect();
        self.registry.announce_track_format(self.id, *generation, caps, &live);
        drop(state);
        self.registry.wake_server();
    }

    /// Appends a packet. Under [`Policy::Wait`] this function waits for lossless readers.
    pub(super) fn push(
        &self,
        info: PacketInfo,
        data: &[u8],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<u64, PushError> {
        let references = encode_references(&info.references, REFERENCE_BYTES);
        let mut wait = BackpressureWait::new(self.frames.wait_context(), cancelled);
        loop {
            let mut state = lock(&self.state);
            if state.broken && !info.keyframe {
                state.writer.skip();
                state.broken_gop += 1;
                return Err(PushError::BrokenGop);
            }
            // Before room is made for the packet: a decision of `retention::try_reclaim` has to be carried out
            // before the next one.
            self.expire_old_gops(&mut state);
            let len = data.len() + references.len();
            let Ok(tail) = state.writer.tail_after(self.segment.ring(), len) else {
                state.writer.skip();
                state.oversized += 1;
                state.broken = true;
                return Err(PushError::TooBig);
            };
            let Some(reader) = self.lagging_reader(&mut state, tail) else {
                let seq = self.append(&mut state, info, data, &references);
                self.wake_readers(state);
                return Ok(seq);
            };
            drop(state);
            if !wait.wait_for(reader, "a packet") {
                return Err(PushError::WouldBlock);
            }
        }
    }

    /// Returns a subscriber with a lossless reader that has yet to take a packet before `position`. If there is none,
    /// the caller has to discard the packets before `position`.
    fn lagging_reader(&self, state: &mut State, position: u64) -> Option<Arc<SubscriberHandle>> {
        if self.frames.backpressure.policy == Policy::Drop || position <= state.writer.tail() {
            return None;
        }
        let State { writer, subscribers, .. } = state;
        let mut lagging = None;
        let reclaim = &self.header().reclaim;
        let reclaimed = retention::try_reclaim(reclaim, writer.tail(), position, || {
            // Behind the fence this finds every reader whose fence is earlier.
            let unread = |s: &SubscriberHandle| self.has_unread_packet(s, position);
            lagging = subscribers.find(&self.registry, unread).cloned();
            lagging.is_some()
        });
        lagging.filter(|_| !reclaimed)
    }

    fn has_unread_packet(&self, subscriber: &SubscriberHandle, position: u64) -> bool {
        let unread = |words: &ReaderWords| {
            // SYNC(reader/register): pairs with the Release in the subscriber's `PacketReader`. The position that is
            // loaded below is that of this reader.
            let track = words.track.load(Ordering::Acquire);
            track & READER_LOSSLESS != 0
                && (track & READER_ANY_TRACK != 0 || track as u32 == self.id)
                && retention::needs_before(&words.next, position)
        };
        !subscriber.draining.load(Ordering::Relaxed)
            && subscriber.page.header().readers.iter().any(unread)
    }

    /// Writes a packet for which there is room, and returns its sequence number.
    fn append(&self, state: &mut State, info: PacketInfo, data: &[u8], references: &[u8]) -> u64 {
        let (ring, h) = (self.segment.ring(), self.segment.header());
        let published_ns = clock::now_ns();
        let State { writer, keyframes, gop, generation, .. } = &mut *state;

        let (position, keyframe) = (writer.head(), info.keyframe);
        if keyframe {
            *gop = Some(position);
        }
        let earlier = |k: &&Keyframe| gop.is_none_or(|gop| k.position < gop);
        let previous_keyframe =
            keyframes.iter().rev().take(2).find(earlier).map(|keyframe| keyframe.position);
        let header = PacketHeader {
            info,
            generation: *generation,
            previous_keyframe,
            published_ns,
            references_len: references.len() as u64,
        };
        if keyframe {
            // SYNC(keyframe/append): pairs with the Acquire in the reader. Before `head`, so that a reader that sees
            // the packet also finds it as a keyframe. A reader ignores a keyframe that is not before its `head`.
            h.keyframe.store(position + 1, Ordering::Release);
        }
        // SYNC(eos/end): see `shm::stream_end`; `write` stores `head` with Release.
        let words = header.to_words();
        let written =
            stream_end::publish_with(&h.eos, || writer.write(ring, [data, references], &words));
        let seq = written.expect("the caller has checked the length");

        let tail = writer.tail();
        while keyframes.front().is_some_and(|keyframe| keyframe.position < tail) {
            keyframes.pop_front();
        }
        if keyframe {
            keyframes.push_back(Keyframe { position, published_ns });
        } else if gop.is_some_and(|gop| gop < tail) {
            *gop = None;
            state.truncated_gops += 1;
        }
        state.broken = false;
        state.published += 1;
        seq
    }

    /// Discards the oldest GOPs while the GOPs behind them cover the configured time.
    fn expire_old_gops(&self, state: &mut State) {
        let oldest_ns = clock::now_ns()
            .saturating_sub(i64::try_from(self.config.time.as_nanos()).unwrap_or(i64::MAX));
        let mut kept = None;
        while let Some(next) = state.keyframes.get(1).filter(|k| k.published_ns <= oldest_ns) {
            kept = Some(next.position);
            state.keyframes.pop_front();
        }
        if let Some(start) = kept
            && self.lagging_reader(state, start).is_none()
        {
            state.writer.discard_before(self.segment.ring(), start);
        }
    }

    fn header(&self) -> &TrackHeader {
        self.segment.header()
    }

    /// Drops references to subscribers that were removed.
    pub(super) fn refresh_subscribers(&self) {
        lock(&self.state).subscribers.refresh(&self.registry);
    }

    /// Wakes the readers of this track after a packet or the end was stored.
    fn wake_readers(&self, mut state: MutexGuard<'_, State>) {
        before_wakeups();
        // Behind the fence: this finds every subscriber that may have announced its sleep before.
        state.subscribers.refresh(&self.registry);
        let subscribers = state.subscribers.list();
        drop(state);
        self.registry.waker().wake_packet_readers(&subscribers, self.id);
    }

    pub(super) fn end(&self) {
        stream_end::end(&self.header().eos);
        self.wake_readers(lock(&self.state));
    }

    pub(super) fn stats(&self) -> TrackStats {
        let state = lock(&self.state);
        TrackStats {
            track: self.id,
            published: state.published,
            buffered: state.writer.len() as u64,
            oversized: state.oversized,
            broken_gop: state.broken_gop,
            truncated_gops: state.truncated_gops,
            bytes: self.config.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::FramePublisherConfig;
    use super::*;
    use crate::memory::host::HostBackend;

    #[test]
    fn generations_without_packets_do_not_accumulate() {
        let registry = Arc::new(Registry::new().unwrap());
        let config = FramePublisherConfig { window: 1, policy: Policy::Drop, credits: 1, epoch: 1 };
        let frames = FramePublisher::new(Arc::new(HostBackend), registry.clone(), config).unwrap();
        let writer =
            TrackWriter::new(0, TrackConfig::default(), registry, Arc::new(frames)).unwrap();
        let generations = || -> Vec<(u32, u64)> {
            lock(&writer.state).generations.iter().map(|g| (g.number, g.start)).collect()
        };
        let keyframe = PacketInfo { keyframe: true, ..Default::default() };
        for _ in 0..100 {
            writer.set_caps("no packet has these");
        }
        assert_eq!(generations(), [(100, 0)]);
        writer.push(keyframe, &[], &|| false).unwrap();
        let head = lock(&writer.state).writer.head();
        for _ in 0..100 {
            writer.set_caps("no packet has these either");
        }
        assert_eq!(generations(), [(100, 0), (200, head)]);
    }
}
