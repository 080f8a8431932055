//! A subscriber's way through the packets of a track.

use super::announcements::TrackView;
use super::connection::Connection;
use super::keyframes::{first_or_last, keyframes, newest_keyframe, read_entry, time_of_last};
use super::wait::{Next, Wait};
use crate::error::{Error, Result};
use crate::shm::layout::{MAX_READERS, READER_IN_USE, READER_LOSSLESS, ReaderWords};
use crate::shm::packet_header::{PacketHeader, REFERENCE_BYTES};
use crate::shm::references::decode_references;
use crate::shm::retention;
use crate::shm::ring::Entry;
use crate::sync::atomic::Ordering;
use crate::sync::{clock, lock};
use crate::types::code::{Mode, RefusalReason};
use crate::types::packet::PacketInfo;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A reader asks this often whether a publisher that was stopped in a decision has taken it.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Where a reader begins. What is there, and what comes, is as of the moment in which it is made; for one
/// that loses nothing, as of that in which its subscriber joined.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Start {
    /// At the newest keyframe that is there, or else the next that comes.
    #[default]
    LatestKeyframe,
    /// At the next keyframe that is published.
    NextKeyframe,
    /// At the oldest keyframe that is still there.
    OldestKeyframe,
    /// Before the newest keyframe: with so much time up to the newest packet, and so many whole GOPs; as
    /// far as they are there.
    Preroll { time: Duration, gops: u32 },
    /// At the first keyframe whose PTS is not before this time, once that is set: for tracks that begin
    /// together with another.
    NotBefore(Arc<OnceLock<i64>>),
    /// Behind the last packet of an earlier reader; in another life of the publisher, at the oldest
    /// keyframe.
    After(ResumePoint),
}

/// How far a reader has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    epoch: u64,
    position: u64,
    seq: u64,
}

impl ResumePoint {
    /// The life of the publisher that it belongs to.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
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
    shared: Arc<Connection>,
    track: u32,
    start: Start,
    /// What was published up to then was there before: CLOCK_MONOTONIC in ns.
    made: i64,
    view: Option<Arc<TrackView>>,
    /// Where the next packet begins; `None` until there was one to start at.
    position: Option<u64>,
    /// The sequence number that follows on the last packet that was handed out or passed over; `None`
    /// until there was one.
    seq: Option<u64>,
    need_keyframe: bool,
    /// There was a packet before, here or for an earlier reader: what is missing from now on is lost.
    counts: bool,
    /// Missed since the last packet that was handed out.
    lost: u64,
    received: u64,
    skipped: u64,
    /// Where in the page the publisher looks after this reader.
    place: Option<usize>,
    /// A publisher that waits keeps what this reader has still to take.
    held: bool,
}

impl PacketReader {
    pub(crate) fn new(shared: Arc<Connection>, track: u32, start: Start) -> Self {
        let mut reader = Self {
            track,
            made: clock::now_ns(),
            view: None,
            position: None,
            seq: None,
            need_keyframe: true,
            counts: false,
            lost: 0,
            received: 0,
            skipped: 0,
            place: None,
            held: false,
            start,
            shared,
        };
        if reader.is_lossless() && reader.shared.credit == 0 {
            // The publisher keeps everything since then: see `Server::join`.
            reader.made = reader.shared.page.header().joined_ns.load(Ordering::Relaxed) as i64;
        }
        if let Start::After(place) = reader.start {
            if place.epoch == reader.shared.epoch {
                reader.position = Some(place.position);
                reader.seq = Some(place.seq);
                reader.need_keyframe = false;
                reader.counts = true;
            } else {
                reader.start = Start::OldestKeyframe;
            }
        }
        reader.take_place();
        // Nobody waits for the others.
        reader.held = !reader.is_lossless();
        reader
    }

    /// Finds a place in the page, where the publisher sees it.
    fn take_place(&mut self) {
        let mut taken = lock(&self.shared.readers);
        let Some(free) = (0..MAX_READERS).find(|n| *taken & 1 << n == 0) else { return };
        *taken |= 1 << free;
        let words = &self.shared.page.header().readers[free];
        let lossless = if self.is_lossless() { READER_LOSSLESS } else { 0 };
        for word in [&words.next, &words.received, &words.lost] {
            word.store(0, Ordering::Relaxed);
        }
        // In place of the one for every track, which the publisher put there for the first reader.
        words.track.store(u64::from(self.track) | READER_IN_USE | lossless, Ordering::Release);
        drop(taken);
        self.place = Some(free);
        self.shared.moved();
    }

    fn is_lossless(&self) -> bool {
        self.shared.mode == Mode::Strict
    }

    fn words(&self) -> Option<&ReaderWords> {
        Some(&self.shared.page.header().readers[self.place?])
    }

    /// Packets that were handed out, and those that were missed since the first.
    pub fn counters(&self) -> (u64, u64) {
        (self.received, self.skipped)
    }

    /// How far it has come; `None` before its first packet.
    pub fn place(&self) -> Option<ResumePoint> {
        let (position, seq) = self.position.zip(self.seq)?;
        Some(ResumePoint { epoch: self.shared.epoch, position, seq })
    }

    /// The next packet. Waits for the track, too, if the publisher has none of that number yet.
    pub fn next(&mut self, wait: &Wait<'_>) -> Result<Next<Packet>> {
        let shared = self.shared.clone();
        if self.is_lossless() && self.place.is_none() {
            let problem =
                format!("has {MAX_READERS} readers at most that lose nothing: join again");
            return Err(Error::Value { what: "A subscriber", problem });
        }
        let deadline = wait.timeout.map(|t| clock::now() + t);
        let mut last = None;
        loop {
            let seen = shared.bell.seen();
            if wait.interrupt.is_set() {
                return Ok(Next::Interrupted);
            }
            let left = deadline.map(|d| d.saturating_sub(clock::now()));
            // Read before the packets: what was published before the end is still taken.
            let closed = lock(&shared.state).closed.clone();
            if let Some((code, text)) =
                closed.clone().filter(|(code, _)| *code != RefusalReason::Closing)
            {
                return Ok(Next::Lost { code, text });
            }
            if self.view.is_none() {
                self.view = lock(&shared.state).tracks.get(&self.track).cloned();
            }
            let mut futex = 0;
            if let Some(view) = self.view.clone() {
                let h = view.segment.header();
                futex = h.futex.load(Ordering::Acquire);
                // Pairs with the Release in `Track::end`: all packets were published before it.
                let eos = h.eos.load(Ordering::Acquire) != 0;
                if !self.held && closed.is_none() && !retention::is_held(&h.reclaim, &h.tail) {
                    if left.is_some_and(|left| left.is_zero()) {
                        return Ok(Next::TimedOut);
                    }
                    // A publisher decides in no time, unless it was stopped meanwhile.
                    shared.bell.wait(seen, left.into_iter().chain([LOOK_AGAIN]).min());
                    continue;
                }
                self.held = true;
                match self.step(&view, wait)? {
                    Step::Packet(packet) => return Ok(Next::Item(packet)),
                    // What was there when the time was over is still looked through.
                    Step::Again if left.is_some_and(|left| left.is_zero()) => {
                        let last = *last.get_or_insert_with(|| view.segment.ring().head());
                        if self.position.is_none_or(|position| position >= last) {
                            return Ok(Next::TimedOut);
                        }
                        continue;
                    }
                    Step::Again => continue,
                    // The end of a track is not that of one that has still to be told where to begin.
                    Step::Nothing if eos && !wait.past_eos && !self.waits_for_start() => {
                        return Ok(Next::Eos);
                    }
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

    fn waits_for_start(&self) -> bool {
        matches!(&self.start, Start::NotBefore(time) if time.get().is_none())
    }

    /// Is done with what is before `position`.
    fn pass(&self, position: u64) {
        let Some(words) = self.words() else { return };
        words.received.store(self.received, Ordering::Relaxed);
        words.lost.store(self.skipped, Ordering::Relaxed);
        retention::pass(&words.next, position);
        if self.is_lossless() {
            self.shared.moved();
        }
    }

    /// Takes the next packet, or moves one step towards it.
    fn step(&mut self, view: &TrackView, wait: &Wait<'_>) -> Result<Step> {
        let ring = view.segment.ring();
        // In this order: the head never falls behind a tail that was seen before.
        let (tail, head) = (ring.tail(), ring.head());
        // `tail` once more, behind `head`: it was at least this far when `head` was stored.
        if tail > head || head.saturating_sub(ring.tail()) > ring.capacity() {
            return Err(self.shared.protocol("a track's beginning and end are impossible"));
        }
        let Some(position) = self.position else {
            self.position = self.begin(view, tail, head);
            return Ok(if self.position.is_some() { Step::Again } else { Step::Nothing });
        };
        if position < tail {
            self.need_keyframe = true;
            self.position = Some(newest_keyframe(view).filter(|k| *k >= tail).unwrap_or(tail));
            return Ok(Step::Again);
        }
        if position == head {
            return Ok(Step::Nothing);
        }
        let Ok((entry, meta)) = read_entry(ring, position) else {
            // Overwritten meanwhile, or a lie.
            return match ring.tail() > position {
                true => Ok(Step::Again),
                false => Err(self.shared.protocol("the header of a packet is impossible")),
            };
        };
        let next = self.seq.unwrap_or(entry.seq);
        // It may wrap around, if it lies.
        let ends = position..=head;
        if !ends.contains(&entry.end()) || entry.end() == position || entry.seq < next {
            return Err(self.shared.protocol("the packets of a track are in no order"));
        }
        let missing = entry.seq - next;
        self.need_keyframe |= missing > 0;
        if self.need_keyframe && !meta.info.keyframe {
            self.go_on_behind(&entry, missing.saturating_add(1));
            return Ok(Step::Again);
        }
        let nonsense = || self.shared.protocol("what stands behind a packet makes no sense");
        let extra = usize::try_from(meta.extra).ok().filter(|extra| *extra <= REFERENCE_BYTES);
        let extra = extra.filter(|extra| *extra <= entry.len).ok_or_else(nonsense)?;
        let mut data = Vec::new();
        data.try_reserve_exact(entry.len).map_err(|_| Error::System {
            what: "hold a packet",
            source: std::io::ErrorKind::OutOfMemory.into(),
        })?;
        data.resize(entry.len, 0);
        if ring.read_bytes(&entry, &mut data).is_err() {
            return Ok(Step::Again);
        }
        let references = data.split_off(entry.len - extra);
        let references = decode_references(&references).ok_or_else(nonsense)?;
        let what = "caps of a packet";
        let caps = self.shared.announced(what, wait.interrupt, |_| view.caps(meta.generation))?;
        self.need_keyframe = false;
        self.received += 1;
        self.go_on_behind(&entry, missing);
        self.counts = true;
        Ok(Step::Packet(Packet {
            seq: entry.seq,
            caps,
            generation: meta.generation,
            published: meta.published,
            lost: std::mem::take(&mut self.lost),
            info: PacketInfo { references, ..meta.info },
            data,
        }))
    }

    fn go_on_behind(&mut self, entry: &Entry, missed: u64) {
        self.position = Some(entry.end());
        self.seq = Some(entry.seq.saturating_add(1));
        if self.counts {
            self.lost = self.lost.saturating_add(missed);
            self.skipped = self.skipped.saturating_add(missed);
        }
        self.pass(entry.end());
    }

    /// Where to begin; `None` while there is nothing to begin at.
    fn begin(&self, view: &TrackView, tail: u64, head: u64) -> Option<u64> {
        let ring = view.segment.ring();
        let newest = newest_keyframe(view).filter(|k| *k >= tail);
        let was_there = |meta: &PacketHeader| meta.published <= self.made;
        let found = match &self.start {
            Start::LatestKeyframe => first_or_last(keyframes(ring, newest), was_there),
            Start::NextKeyframe => {
                keyframes(ring, newest).take_while(|(_, meta)| !was_there(meta)).last()
            }
            Start::OldestKeyframe | Start::After(_) => return (head > tail).then_some(tail),
            Start::Preroll { time, gops } => {
                let newest = first_or_last(keyframes(ring, newest), was_there);
                newest.and_then(|(at, meta)| {
                    let end = i128::from(time_of_last(ring, at, &meta, was_there));
                    let mut n = 0;
                    first_or_last(keyframes(ring, Some(at)), |meta| {
                        n += 1;
                        n > *gops && end - i128::from(meta.time()) >= time.as_nanos() as i128
                    })
                })
            }
            Start::NotBefore(time) => {
                // As long as it is not set, a publisher that waits keeps everything.
                let time = *time.get()?;
                let pts = |meta: &PacketHeader| meta.info.pts.unwrap_or(meta.time());
                keyframes(ring, newest).take_while(|(_, meta)| pts(meta) >= time).last()
            }
        };
        if found.is_none() {
            // Nothing that is there is of use to this reader.
            self.pass(head);
        }
        found.map(|(at, _)| at)
    }
}

impl Drop for PacketReader {
    fn drop(&mut self) {
        if let (Some(words), Some(place)) = (self.words(), self.place) {
            words.track.store(0, Ordering::Release);
            *lock(&self.shared.readers) &= !(1 << place);
            self.shared.moved();
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
