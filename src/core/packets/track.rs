//! The publisher's end of a track.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::ring::{TooBig, Writer};
use super::{Meta, PacketInfo};
use crate::core::board::{Board, lock};
use crate::core::channel::message::Message;
use crate::core::error::{Context, Error, Result};
use crate::core::layout::{LAYOUT_VERSION, MAGIC};
use crate::core::shm::{Mapping, Sharing, TrackSegment};
use crate::core::sync::Ordering;
use crate::core::wake;

/// Index entries: 80 s of 100 packets a second; they take 1 MiB.
const ENTRIES: u32 = 8192;

/// How much of a track's past is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackConfig {
    /// Bytes of packets at most. This much memory is used.
    pub bytes: u64,
    /// Packets older than this are given up, except those from the newest keyframe on.
    pub time: Duration,
}

impl Default for TrackConfig {
    /// 10 s and 16 MiB: all of 10 s at up to 13 Mbit/s.
    fn default() -> Self {
        Self { bytes: 16 << 20, time: Duration::from_secs(10) }
    }
}

#[derive(Default)]
struct State {
    writer: Writer,
    /// When each of the packets in the ring was published, and its generation.
    published: VecDeque<(i64, u32)>,
    generation: u32,
    keyframe: Option<u64>,
    too_big: u64,
}

/// What a track has, for statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackStats {
    pub track: u32,
    pub published: u64,
    pub in_ring: u64,
    pub too_big: u64,
    pub bytes: u64,
}

pub(crate) struct Track {
    id: u32,
    segment: TrackSegment,
    config: TrackConfig,
    board: Arc<Board>,
    state: Mutex<State>,
}

impl Track {
    pub fn new(id: u32, config: TrackConfig, board: Arc<Board>) -> Result<Self> {
        let bytes = config.bytes.next_multiple_of(8);
        let size = TrackSegment::size(ENTRIES, bytes).ok_or(Error::Value {
            what: "The packet buffer's number of bytes",
            problem: format!("{bytes} is not possible: 16 MiB is usual"),
        })?;
        let (map, fd) = Mapping::create("cuframes-packets", size, Sharing::ReadOnly)
            .context("make the packet buffer")?;
        let segment = TrackSegment::new(map, ENTRIES, bytes);
        let h = segment.header();
        h.version.store(LAYOUT_VERSION, Ordering::Relaxed);
        h.entries.store(ENTRIES, Ordering::Relaxed);
        h.bytes.store(bytes, Ordering::Relaxed);
        // Pairs with the Acquire of whoever opens the segment.
        h.magic.store(MAGIC, Ordering::Release);
        let message = Message::Track { track: id, entries: ENTRIES, bytes };
        let fd: Arc<OwnedFd> = Arc::new(fd);
        board.track(id, message, fd);
        Ok(Self {
            id,
            segment,
            config: TrackConfig { bytes, ..config },
            board,
            state: Mutex::default(),
        })
    }

    pub fn set_caps(&self, caps: &str) {
        let mut state = lock(&self.state);
        state.generation += 1;
        let oldest =
            state.published.front().map_or(state.generation, |(_, generation)| *generation);
        self.board.track_format(self.id, state.generation, caps, oldest);
    }

    /// Appends a packet. Errors: it has more bytes than the ring; the packets before and after it are
    /// not concerned.
    pub fn push(&self, info: PacketInfo, data: &[u8]) -> Result<u64, TooBig> {
        let now = wake::now_ns();
        let ring = self.segment.ring();
        let h = self.segment.header();
        let mut state = lock(&self.state);
        let State { writer, published, generation, keyframe, too_big } = &mut *state;

        let oldest = now.saturating_sub(self.config.time.as_nanos() as i64);
        let old = published.partition_point(|(t, _)| *t < oldest) as u64;
        let gop = keyframe.unwrap_or(u64::MAX);
        writer.forget_before(ring, (writer.tail() + old).min(gop));

        let seq = writer.head();
        if info.keyframe {
            *keyframe = Some(seq);
        }
        let meta = Meta { info, generation: *generation, gop: *keyframe, published: now };
        let written = writer.write(ring, data, &meta.to_words());
        published.push_back((now, *generation));
        if written.is_err() {
            published.pop_back();
            *too_big += 1;
            if *keyframe == Some(seq) {
                *keyframe = None;
            }
        }
        published.drain(..published.len() - (writer.head() - writer.tail()) as usize);
        if meta.info.keyframe && written.is_ok() {
            // Pairs with the Acquire in the reader: the packet is written.
            h.keyframe.store(seq + 1, Ordering::Release);
        }
        h.eos.store(0, Ordering::Relaxed);
        drop(state);
        h.futex.fetch_add(1, Ordering::Release);
        wake::wake_all(&h.futex);
        written
    }

    /// No packet comes any more, until one does.
    pub fn end(&self) {
        let h = self.segment.header();
        // Pairs with the Acquire in the reader: the last `head` was stored before.
        h.eos.store(1, Ordering::Release);
        h.futex.fetch_add(1, Ordering::Release);
        wake::wake_all(&h.futex);
    }

    pub fn stats(&self) -> TrackStats {
        let state = lock(&self.state);
        TrackStats {
            track: self.id,
            published: state.writer.head(),
            in_ring: state.writer.head() - state.writer.tail(),
            too_big: state.too_big,
            bytes: self.config.bytes,
        }
    }
}
