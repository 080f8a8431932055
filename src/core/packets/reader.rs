//! A subscriber's way through the packets of a track.

use std::sync::Arc;

use super::ring::{Entry, Overwritten};
use super::{Meta, PacketInfo};
use crate::core::board::lock;
use crate::core::channel::client::{Shared, TrackView};
use crate::core::error::Result;
use crate::core::subscriber::{Next, Wait};
use crate::core::sync::Ordering;
use crate::core::wake;

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// At the newest keyframe that is there, or else the next that comes.
    #[default]
    LatestKeyframe,
    /// At the next keyframe that is published.
    NextKeyframe,
    /// At the oldest keyframe that is still there.
    OldestKeyframe,
}

/// A packet, copied whole out of the ring.
#[derive(Debug, Clone)]
pub struct Packet {
    /// Counts up from 0 in one life of a publisher.
    pub seq: u64,
    pub caps: Arc<str>,
    /// Changes with the caps.
    pub generation: u32,
    /// When it was published: CLOCK_MONOTONIC in ns.
    pub published: i64,
    /// Packets that this reader missed right before this one.
    pub lost: u64,
    pub info: PacketInfo,
    pub data: Vec<u8>,
}

/// Reads one track, packet by packet, and begins at a keyframe again whenever it lost one.
pub struct PacketReader {
    shared: Arc<Shared>,
    track: u32,
    start: Start,
    view: Option<Arc<TrackView>>,
    /// Sequence number of the next packet; `None` until there was one to start at.
    next: Option<u64>,
    need_keyframe: bool,
    /// Missed since the last packet that was handed out.
    lost: u64,
    received: u64,
    skipped: u64,
}

impl PacketReader {
    pub(crate) fn new(shared: Arc<Shared>, track: u32, start: Start) -> Self {
        Self {
            shared,
            track,
            start,
            view: None,
            next: None,
            need_keyframe: true,
            lost: 0,
            received: 0,
            skipped: 0,
        }
    }

    /// Packets that were handed out, and those that were missed since the first.
    pub fn counters(&self) -> (u64, u64) {
        (self.received, self.skipped)
    }

    /// The next packet. Waits for the track, too, if the publisher has none of that number yet.
    pub fn next(&mut self, wait: &Wait<'_>) -> Result<Next<Packet>> {
        let shared = self.shared.clone();
        let deadline = wait.timeout.map(|t| wake::now() + t);
        loop {
            let seen = shared.bell.seen();
            if wait.interrupt.is_set() {
                return Ok(Next::Interrupted);
            }
            let left = deadline.map(|d| d.saturating_sub(wake::now()));
            // Read before the packets: what was published before the end is still taken.
            let closed = lock(&shared.state).closed.clone();
            if self.view.is_none() {
                self.view = lock(&shared.state).tracks.get(&self.track).cloned();
            }
            let mut futex = 0;
            if let Some(view) = self.view.clone() {
                let h = view.segment.header();
                futex = h.futex.load(Ordering::Acquire);
                // Pairs with the Release in `Track::end`: all packets were published before it.
                let eos = h.eos.load(Ordering::Acquire) != 0;
                match self.step(&view, wait)? {
                    Step::Packet(packet) => return Ok(Next::Item(packet)),
                    Step::Again => continue,
                    Step::Nothing if eos && !wait.past_eos => return Ok(Next::Eos),
                    Step::Nothing => {}
                }
            }
            if let Some((code, text)) = closed {
                return Ok(Next::Lost { code, text });
            }
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(Next::TimedOut);
            }
            match &self.view {
                Some(view) => {
                    shared.bell.wait_with(seen, (&view.segment.header().futex, futex), left);
                }
                None => shared.bell.wait(seen, left),
            }
        }
    }

    /// Takes the next packet, or moves one step towards it.
    fn step(&mut self, view: &TrackView, wait: &Wait<'_>) -> Result<Step> {
        let ring = view.segment.ring();
        let (tail, head) = (ring.tail(), ring.head());
        if tail > head {
            return Err(self.shared.protocol("a track ends before it begins"));
        }
        let newest = self.newest_keyframe(view);
        let Some(next) = self.next.or_else(|| match self.start {
            Start::LatestKeyframe => newest.filter(|k| *k >= tail),
            Start::NextKeyframe => Some(head),
            Start::OldestKeyframe => (head > tail).then_some(tail),
        }) else {
            return Ok(Step::Nothing);
        };
        self.next = Some(next);
        if next < tail || next > head {
            self.resync(next, newest.filter(|k| *k >= tail && *k < head).unwrap_or(head));
            return Ok(Step::Again);
        }
        if next == head {
            return Ok(Step::Nothing);
        }
        let Ok((entry, meta)) = read_entry(view, next) else {
            // Overwritten meanwhile, or a lie.
            return match ring.tail() > next {
                true => Ok(Step::Again),
                false => Err(self.shared.protocol("an entry of a track is impossible")),
            };
        };
        if self.need_keyframe && !meta.info.keyframe {
            self.pass_over(next, next + 1);
            return Ok(Step::Again);
        }
        let mut data = vec![0; entry.len];
        if ring.read_bytes(&entry, &mut data).is_err() {
            return Ok(Step::Again);
        }
        let missing = "caps of a packet";
        let caps =
            self.shared.announced(missing, wait.interrupt, |_| view.caps(meta.generation))?;
        self.need_keyframe = false;
        self.next = Some(next + 1);
        self.received += 1;
        Ok(Step::Packet(Packet {
            seq: next,
            caps,
            generation: meta.generation,
            published: meta.published,
            lost: std::mem::take(&mut self.lost),
            info: meta.info,
            data,
        }))
    }

    fn newest_keyframe(&self, view: &TrackView) -> Option<u64> {
        // Pairs with the Release in `Track::push`: the packet is written.
        view.segment.header().keyframe.load(Ordering::Acquire).checked_sub(1)
    }

    /// Falls back to a keyframe after packets were lost.
    fn resync(&mut self, from: u64, to: u64) {
        self.need_keyframe = true;
        self.pass_over(from, to.max(from));
        self.next = Some(to);
    }

    fn pass_over(&mut self, from: u64, to: u64) {
        self.next = Some(to);
        // What was passed over on the way to the first packet is not lost.
        if self.received > 0 {
            self.lost += to - from;
            self.skipped += to - from;
        }
    }
}

enum Step {
    Packet(Packet),
    /// Not yet; the next step may find it.
    Again,
    /// There is none.
    Nothing,
}

fn read_entry(view: &TrackView, seq: u64) -> Result<(Entry, Meta), Overwritten> {
    let entry = view.segment.ring().read_entry(seq)?;
    Ok((entry, Meta::from_words(&entry.meta)))
}
