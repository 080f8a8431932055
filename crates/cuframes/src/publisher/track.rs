//! The publisher's end of a track.

use super::backpressure::{BackpressureWait, Policy};
use super::frames::FramePublisher;
use super::registry::{Registry, SubscriberHandle};
use crate::error::{Context, Error, Result};
use crate::protocol::message::Message;
use crate::shm::layout::{
    LAYOUT_VERSION, MAGIC, READER_ANY_TRACK, READER_LOSSLESS, ReaderWords, TrackHeader,
};
use crate::shm::mapping::{Mapping, Sharing};
use crate::shm::packet_header::{PacketHeader, REFERENCE_BYTES};
use crate::shm::references::encode_references;
use crate::shm::retention;
use crate::shm::ring::Writer;
use crate::shm::segments::TrackSegment;
use crate::sync::atomic::Ordering;
use crate::sync::{clock, futex, lock};
use crate::types::packet::PacketInfo;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How much of a track's past is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackConfig {
    /// Bytes of packets at most, 128 a packet for its header included. This much memory is used.
    pub bytes: u64,
    /// As many whole GOPs as it takes for this much are kept; older packets are given up.
    pub time: Duration,
}

impl Default for TrackConfig {
    /// 10 s and 16 MiB: all of 10 s at up to 13 Mbit/s.
    fn default() -> Self {
        Self { bytes: 16 << 20, time: Duration::from_secs(10) }
    }
}

/// Why a packet was not published. It is counted, its sequence number is left out, and the packets before
/// it are not concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushError {
    /// It has more bytes than the ring.
    TooBig,
    /// It depends on one that was refused: there was no keyframe since.
    BrokenGop,
    /// A reader has still to take what has to make room, and it is waited for no more. Such a packet has
    /// no number, and may be tried again.
    WouldBlock,
}

#[derive(Default)]
struct State {
    writer: Writer,
    published: u64,
    generation: u32,
    /// Where the first packet of each generation begins that the ring still has.
    generations: VecDeque<(u32, u64)>,
    /// Where each keyframe in the ring begins, and when it was published.
    keyframes: VecDeque<(u64, i64)>,
    /// Where the keyframe of the running GOP begins, while it is in the ring.
    gop: Option<u64>,
    /// A packet of the running GOP was refused.
    broken: bool,
    too_big: u64,
    undecodable: u64,
    cut_gops: u64,
    peers: Vec<Arc<SubscriberHandle>>,
    peers_version: u64,
}

/// What a track has, for statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackStats {
    pub track: u32,
    pub published: u64,
    pub in_ring: u64,
    /// Packets that were refused, for their size and for the packet that they depend on.
    pub too_big: u64,
    pub undecodable: u64,
    /// GOPs that were too long for the ring: while they ran, nobody could join.
    pub cut_gops: u64,
    pub bytes: u64,
}

pub(crate) struct Track {
    id: u32,
    segment: TrackSegment,
    config: TrackConfig,
    registry: Arc<Registry>,
    /// For its policy, and what subscribers see of a publisher that waits.
    frames: Arc<FramePublisher>,
    state: Mutex<State>,
}

impl Track {
    pub fn new(
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
        // Pairs with the Acquire of whoever opens the segment.
        h.magic.store(MAGIC, Ordering::Release);
        let fd: Arc<OwnedFd> = Arc::new(fd);
        registry.track(id, Message::Track { track: id, bytes }, fd);
        let config = TrackConfig { bytes, ..config };
        Ok(Self { id, segment, config, registry, frames, state: Mutex::default() })
    }

    pub fn set_caps(&self, caps: &str) {
        let mut state = lock(&self.state);
        let State { writer, generation, generations, .. } = &mut *state;
        *generation += 1;
        generations.push_back((*generation, writer.head()));
        // Those whose last packet is gone, or that never had one.
        while generations.get(1).is_some_and(|(_, start)| *start <= writer.tail()) {
            generations.pop_front();
        }
        self.registry.track_format(self.id, *generation, caps, generations[0].0);
    }

    /// Appends a packet. Under [`Policy::Wait`] this is where the publisher waits for lossless readers,
    /// until `cancelled` says not to.
    pub fn push(
        &self,
        info: PacketInfo,
        data: &[u8],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<u64, PushError> {
        let extra = encode_references(&info.references, REFERENCE_BYTES);
        let mut patience = BackpressureWait::new(self.frames.waits(), &self.registry, cancelled);
        loop {
            let mut state = lock(&self.state);
            if state.broken && !info.keyframe {
                state.writer.skip();
                state.undecodable += 1;
                return Err(PushError::BrokenGop);
            }
            // Before room is made: a decision has to be carried out before the next is taken.
            self.forget_what_is_old(&mut state);
            let len = data.len() + extra.len();
            let Ok(tail) = state.writer.tail_after(self.segment.ring(), len) else {
                state.writer.skip();
                state.too_big += 1;
                state.broken = true;
                return Err(PushError::TooBig);
            };
            let Some(peer) = self.behind(&mut state, tail) else {
                let seq = self.append(&mut state, info, [data, &extra]);
                drop(state);
                self.ring_the_bell();
                return Ok(seq);
            };
            drop(state);
            if !patience.wait_for(peer, "a packet") {
                return Err(PushError::WouldBlock);
            }
        }
    }

    /// A lossless reader that has still to take a packet before `position`. If there is none, the packets
    /// before it have to go.
    fn behind(&self, state: &mut State, position: u64) -> Option<Arc<SubscriberHandle>> {
        if self.frames.backpressure.policy == Policy::Drop || position <= state.writer.tail() {
            return None;
        }
        let State { writer, peers, peers_version, .. } = state;
        let mut found = None;
        let reclaim = &self.header().reclaim;
        let free = retention::try_reclaim(reclaim, writer.tail(), position, || {
            // Behind the fence this sees everybody who was welcomed before their fence.
            if self.registry.version() != *peers_version {
                (*peers_version, *peers) = self.registry.peers();
            }
            found = peers.iter().find(|p| self.is_behind(p, position)).cloned();
            found.is_some()
        });
        found.filter(|_| !free)
    }

    fn is_behind(&self, peer: &SubscriberHandle, position: u64) -> bool {
        let reads = |words: &ReaderWords| {
            let track = words.track.load(Ordering::Relaxed);
            track & READER_LOSSLESS != 0
                && (track & READER_ANY_TRACK != 0 || track as u32 == self.id)
                && retention::needs_before(&words.next, position)
        };
        !peer.leaving.load(Ordering::Relaxed) && peer.page.header().readers.iter().any(reads)
    }

    fn append(&self, state: &mut State, info: PacketInfo, data: [&[u8]; 2]) -> u64 {
        let (ring, h) = (self.segment.ring(), self.segment.header());
        let now = clock::now_ns();
        let State { writer, keyframes, gop, generation, .. } = &mut *state;

        let (position, keyframe) = (writer.head(), info.keyframe);
        if keyframe {
            *gop = Some(position);
        }
        let earlier = |(start, _): &&(u64, i64)| gop.is_none_or(|gop| *start < gop);
        let before = keyframes.iter().rev().take(2).find(earlier).map(|(start, _)| *start);
        let (generation, extra) = (*generation, data[1].len() as u64);
        let meta = PacketHeader { info, generation, before, published: now, extra };
        let written = writer.write(ring, data, &meta.to_words());
        let seq = written.expect("whoever appends has looked whether there is room");

        let tail = writer.tail();
        while keyframes.front().is_some_and(|(start, _)| *start < tail) {
            keyframes.pop_front();
        }
        if keyframe {
            keyframes.push_back((position, now));
            // Pairs with the Acquire in the reader: the packet is written.
            h.keyframe.store(position + 1, Ordering::Release);
        } else if gop.is_some_and(|gop| gop < tail) {
            *gop = None;
            state.cut_gops += 1;
        }
        state.broken = false;
        state.published += 1;
        h.eos.store(0, Ordering::Relaxed);
        seq
    }

    /// Gives up the oldest GOPs while those behind them cover the time that is wanted.
    fn forget_what_is_old(&self, state: &mut State) {
        let oldest = clock::now_ns()
            .saturating_sub(i64::try_from(self.config.time.as_nanos()).unwrap_or(i64::MAX));
        let mut kept = None;
        while let Some((start, _)) = state.keyframes.get(1).filter(|(_, at)| *at <= oldest) {
            kept = Some(*start);
            state.keyframes.pop_front();
        }
        if let Some(start) = kept
            && self.behind(state, start).is_none()
        {
            state.writer.forget_before(self.segment.ring(), start);
        }
    }

    fn header(&self) -> &TrackHeader {
        self.segment.header()
    }

    fn ring_the_bell(&self) {
        let h = self.header();
        h.futex.fetch_add(1, Ordering::Release);
        futex::wake_all(&h.futex);
    }

    /// No packet comes any more, until one does.
    pub fn end(&self) {
        // Pairs with the Acquire in the reader: the last `head` was stored before.
        self.header().eos.store(1, Ordering::Release);
        self.ring_the_bell();
    }

    pub fn stats(&self) -> TrackStats {
        let state = lock(&self.state);
        TrackStats {
            track: self.id,
            published: state.published,
            in_ring: state.writer.len() as u64,
            too_big: state.too_big,
            undecodable: state.undecodable,
            cut_gops: state.cut_gops,
            bytes: self.config.bytes,
        }
    }
}
