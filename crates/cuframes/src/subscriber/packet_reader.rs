// SPDX-License-Identifier: LGPL-2.1-or-later
//! Reads the packets of a track.

use super::Counters;
use super::announcements::TrackView;
use super::connection::Connection;
use super::keyframes::{
    Newest, first_or_last, keyframes, newest_keyframe, read_entry, time_of_last,
};
use super::wait::{Next, Wait, refused_is_lost};
use crate::error::{Error, Result};
use crate::shm::layout::{MAX_READERS, READER_IN_USE, READER_LOSSLESS, ReaderWords};
use crate::shm::packet_header::{PacketHeader, REFERENCE_BYTES};
use crate::shm::references::decode_references;
use crate::shm::ring::Entry;
use crate::shm::sleeper::Sleeper;
use crate::shm::{retention, stream_end};
use crate::sync::atomic::Ordering;
use crate::sync::{clock, lock};
use crate::types::mode::Mode;
use crate::types::packet::PacketInfo;
use crate::types::refusal::RefusalReason;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Poll interval while the publisher decides which packets to discard. It decides immediately unless it was
/// stopped meanwhile.
const RECLAIM_POLL: Duration = Duration::from_millis(1);

/// Where a [`PacketReader`] starts.
///
/// "Present" and "new" packets are distinguished by the time at which the reader was created; with
/// [`Mode::Strict`] and without credit for frames, by the time at which the subscriber connected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Start {
    /// At the newest keyframe that is present, otherwise at the next one.
    #[default]
    LatestKeyframe,
    /// At the next new keyframe.
    NextKeyframe,
    /// At the oldest keyframe that is present.
    OldestKeyframe,
    /// Before the newest keyframe, as far as the ring reaches back: at the first keyframe that satisfies
    /// both conditions.
    Preroll {
        /// Minimum time from the keyframe to the newest packet.
        time: Duration,
        /// Minimum number of complete GOPs before the newest one.
        gops: u32,
    },
    /// At the first keyframe whose PTS is at or after this time (ns of CLOCK_MONOTONIC). The reader waits
    /// until the time is set. Aligns a track with the start of another one.
    NotBefore(Arc<OnceLock<i64>>),
    /// After the last packet of an earlier reader. If the publisher was restarted meanwhile, at the oldest
    /// keyframe that is present.
    After(ResumePoint),
}

/// Position of a [`PacketReader`], from which a later reader can continue with [`Start::After`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    epoch: u64,
    position: u64,
    seq: u64,
}

impl ResumePoint {
    /// Returns the epoch of the publisher, see [`Subscriber::epoch`](crate::Subscriber::epoch).
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
}

/// A packet, copied out of the ring.
#[derive(Debug, Clone)]
pub struct Packet {
    /// Sequence number. The first packet of a track in a run of the publisher has number 0.
    pub seq: u64,
    /// Format of the packet, as GStreamer caps.
    pub caps: Arc<str>,
    /// Number of the format; changes whenever `caps` change.
    pub generation: u32,
    /// Time of publication, in ns of CLOCK_MONOTONIC.
    pub published_ns: i64,
    /// Number of packets that this reader missed immediately before this one.
    pub lost: u64,
    /// Timestamps and other metadata.
    pub info: PacketInfo,
    /// The encoded bytes.
    pub data: Vec<u8>,
}

/// Reads the packets of one track in order. Starts at a keyframe, and continues at a keyframe after a loss.
///
/// ```no_run
/// use cuframes::{Interrupt, Next, Start, Subscriber, SubscriberConfig, Wait};
///
/// let interrupt = Interrupt::new()?;
/// // A subscriber of packets only needs no credit for frames.
/// let config = SubscriberConfig { max_frames: 0, ..SubscriberConfig::new("cam1") };
/// let subscriber = Subscriber::connect(config, None, &interrupt)?;
/// let mut reader = subscriber.packets(0, Start::LatestKeyframe);
/// while let Next::Item(packet) = reader.next(&Wait::default())? {
///     println!("packet {} of {}: {} bytes", packet.seq, packet.caps, packet.data.len());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PacketReader {
    connection: Arc<Connection>,
    track: u32,
    start: Start,
    /// Creation time, ns of CLOCK_MONOTONIC. Packets published earlier count as present.
    created_ns: i64,
    view: Option<Arc<TrackView>>,
    caps: Option<CachedCaps>,
    /// Where the next packet begins in the ring; `None` until a start was found.
    position: Option<u64>,
    /// Sequence number expected next; `None` before the first packet.
    seq: Option<u64>,
    /// Packets up to the next keyframe are skipped.
    need_keyframe: bool,
    /// A packet was taken before, by this or an earlier reader: missing packets count as lost from now on.
    counting_losses: bool,
    /// Number of packets lost since the last one that was returned.
    lost: u64,
    received: u64,
    skipped: u64,
    /// Index of this reader's entry in the subscriber's page; `None` if all are in use, so that it reads nothing.
    entry: Option<usize>,
    /// The packets from this reader's position on are retained by a publisher that waits, or the reader
    /// does not need that.
    retained: bool,
}

/// Caps of the packet that was taken last.
#[derive(Debug)]
struct CachedCaps {
    /// [`Connection::announcements`] before the lookup.
    announcements: u64,
    generation: u32,
    caps: Arc<str>,
}

/// Result of [`PacketReader::step`].
enum Step {
    Packet(Packet),
    /// The reader moved on, or the ring changed meanwhile: step again.
    Again,
    /// There is no packet.
    Nothing,
}

impl PacketReader {
    pub(super) fn new(connection: Arc<Connection>, track: u32, start: Start) -> Self {
        let mut reader = Self {
            track,
            created_ns: clock::now_ns(),
            view: None,
            caps: None,
            position: None,
            seq: None,
            need_keyframe: true,
            counting_losses: false,
            lost: 0,
            received: 0,
            skipped: 0,
            entry: None,
            retained: false,
            start,
            connection,
        };
        if reader.is_lossless() && reader.connection.credit == 0 {
            // The publisher retains all packets since then for such a subscriber.
            let joined = reader.connection.page.header().joined_ns.load(Ordering::Relaxed);
            reader.created_ns = joined as i64;
        }
        if let Start::After(point) = reader.start {
            if point.epoch == reader.connection.epoch {
                reader.position = Some(point.position);
                reader.seq = Some(point.seq);
                reader.need_keyframe = false;
                reader.counting_losses = true;
            } else {
                reader.start = Start::OldestKeyframe;
            }
        }
        reader.register();
        // The publisher waits for lossless readers only.
        reader.retained = !reader.is_lossless();
        reader
    }

    /// Takes a free reader entry of the page, where the publisher sees this reader.
    fn register(&mut self) {
        let mut used = lock(&self.connection.readers);
        let Some(free) = (0..MAX_READERS).find(|n| *used & 1 << n == 0) else { return };
        *used |= 1 << free;
        let words = &self.connection.page.header().readers[free];
        let lossless = if self.is_lossless() { READER_LOSSLESS } else { 0 };
        for word in [&words.next, &words.received, &words.lost] {
            word.store(0, Ordering::Relaxed);
        }
        // Replaces the entry for all tracks, which the publisher wrote for the first reader.
        // SYNC(reader/register): Release, so that the publisher sees the words above with the track.
        words.track.store(u64::from(self.track) | READER_IN_USE | lossless, Ordering::Release);
        drop(used);
        self.entry = Some(free);
        self.connection.notify_publisher();
    }

    fn is_lossless(&self) -> bool {
        self.connection.mode == Mode::Strict
    }

    fn words(&self) -> Option<&ReaderWords> {
        Some(&self.connection.page.header().readers[self.entry?])
    }

    /// Returns how many packets were returned, and how many were lost since the first one.
    pub fn counters(&self) -> Counters {
        Counters { received: self.received, skipped: self.skipped }
    }

    /// Returns the position after the last packet, for [`Start::After`]. `None` before the first packet.
    pub fn resume_point(&self) -> Option<ResumePoint> {
        let (position, seq) = self.position.zip(self.seq)?;
        Some(ResumePoint { epoch: self.connection.epoch, position, seq })
    }

    /// Waits for the next packet, and for the track if the publisher does not have it yet.
    ///
    /// # Errors
    /// - [`Error::Protocol`] if the publisher broke the protocol.
    /// - [`Error::Interrupted`] if the interrupt was set while waiting for these caps.
    /// - [`Error::InvalidConfig`] if this subscriber already has 16 readers.
    /// - [`Error::System`] if there is no memory for the packet.
    pub fn next(&mut self, wait: &Wait) -> Result<Next<Packet>> {
        refused_is_lost(self.wait_for_next(wait))
    }

    fn wait_for_next(&mut self, wait: &Wait) -> Result<Next<Packet>> {
        let connection = self.connection.clone();
        let Some(entry) = self.entry else {
            let problem = format!("has at most {MAX_READERS} packet readers: connect another one");
            return Err(Error::InvalidConfig { what: "A subscriber", problem });
        };
        let sleeper = Sleeper::of_packets(connection.page.header(), entry);
        let bell = connection.interrupt.bell();
        let deadline = wait.timeout.and_then(clock::deadline_after);
        let mut last = None;
        loop {
            // SYNC(bell/ticket): read before everything that the sleep below waits for.
            let (ticket, expected) = (bell.ticket(), sleeper.expected());
            if connection.interrupt.is_set() {
                return Ok(Next::Interrupted);
            }
            let left = deadline.map(|d| d.saturating_sub(clock::now()));
            let timed_out = left.is_some_and(|left| left.is_zero());
            // SYNC(disconnect/head): read before the packets, so that packets that were published before
            // the end of the connection are still taken. An evicted subscriber takes no more packets.
            let disconnect = connection.disconnect();
            if let Some(disconnect) = &disconnect
                && disconnect.reason != RefusalReason::Closing
            {
                return Ok(disconnect.clone().into());
            }
            if self.view.is_none() {
                self.view = lock(&connection.state).tracks.get(&self.track).cloned();
            }
            // The position behind the newest packet, and whether the stream has ended there.
            let mut seen = None;
            if let Some(view) = self.view.clone() {
                let h = view.segment.header();
                if !self.retained
                    && disconnect.is_none()
                    && !retention::is_retained(&h.reclaim, &h.tail)
                {
                    if timed_out {
                        return Ok(Next::TimedOut);
                    }
                    // The publisher is deciding whether it discards packets that this reader needs.
                    bell.wait(ticket, left.into_iter().chain([RECLAIM_POLL]).min());
                    continue;
                }
                self.retained = true;
                let head = h.head.load(Ordering::Relaxed);
                // SYNC(eos/end): see `shm::stream_end`.
                let (ended, step) = stream_end::read_with(&h.eos, || self.step(&view));
                seen = Some((head, ended));
                match step? {
                    Step::Packet(packet) => return Ok(Next::Item(packet)),
                    // After the timeout, the packets that were present at that time are still searched.
                    Step::Again if timed_out => {
                        let last = *last.get_or_insert_with(|| view.segment.ring().head());
                        if self.position.is_none_or(|position| position >= last) {
                            return Ok(Next::TimedOut);
                        }
                        continue;
                    }
                    Step::Again => continue,
                    // A reader without a start continues to wait for it, also at the end of the track.
                    Step::Nothing if ended && !wait.past_eos && !self.waits_for_start() => {
                        return Ok(Next::Eos);
                    }
                    Step::Nothing => {}
                }
            }
            if let Some(disconnect) = disconnect {
                return Ok(disconnect.into());
            }
            if timed_out {
                return Ok(Next::TimedOut);
            }
            let Some((view, seen)) = self.view.as_ref().zip(seen) else {
                bell.wait(ticket, left);
                continue;
            };
            let h = view.segment.header();
            let is_unchanged = || stream_end::is_unchanged(&h.eos, &h.head, seen);
            sleeper.sleep(expected, is_unchanged, |wake| bell.wait_or(ticket, wake, left));
        }
    }

    /// Returns whether the start depends on a time that is not set yet.
    fn waits_for_start(&self) -> bool {
        matches!(&self.start, Start::NotBefore(time) if time.get().is_none())
    }

    /// Tells the publisher that this reader needs no packet before `position`.
    fn publish_position(&self, position: u64) {
        let Some(words) = self.words() else { return };
        words.received.store(self.received, Ordering::Relaxed);
        words.lost.store(self.skipped, Ordering::Relaxed);
        retention::advance(&words.next, position);
        if self.is_lossless() {
            self.connection.notify_publisher();
        }
    }

    /// Takes the next packet, or moves one step towards it.
    fn step(&mut self, view: &TrackView) -> Result<Step> {
        let ring = view.segment.ring();
        // In this order: the head is never behind a tail that was read before.
        let (tail, head) = (ring.tail(), ring.head());
        // The second load of `tail` follows that of `head`: it had at least this value when `head` was
        // stored.
        if tail > head || head.saturating_sub(ring.tail()) > ring.capacity() {
            let problem = "the head and tail of a track are invalid";
            return Err(self.connection.protocol_error(problem));
        }
        let Some(position) = self.position else {
            self.position = self.find_start(view, tail, head);
            return Ok(if self.position.is_some() { Step::Again } else { Step::Nothing });
        };
        if position < tail {
            self.need_keyframe = true;
            self.position = Some(match newest_keyframe(view, tail, head) {
                Newest::At(keyframe) => keyframe,
                Newest::Appending => head,
                Newest::Missing => tail,
            });
            return Ok(Step::Again);
        }
        if position == head {
            return Ok(Step::Nothing);
        }
        let Ok((entry, meta)) = read_entry(ring, position) else {
            // Overwritten meanwhile, otherwise invalid.
            return match ring.tail() > position {
                true => Ok(Step::Again),
                false => Err(self.connection.protocol_error("the header of a packet is invalid")),
            };
        };
        let next = self.seq.unwrap_or(entry.seq);
        // The end of an invalid entry may have wrapped around.
        let ends = position..=head;
        if !ends.contains(&entry.end()) || entry.end() == position || entry.seq < next {
            return Err(self.connection.protocol_error("the packets of a track are out of order"));
        }
        let missing = entry.seq - next;
        self.need_keyframe |= missing > 0;
        if self.need_keyframe && !meta.info.keyframe {
            self.skip_past(&entry, missing.saturating_add(1));
            return Ok(Step::Again);
        }
        let invalid = || self.connection.protocol_error("the bytes after a packet are invalid");
        let extra =
            usize::try_from(meta.references_len).ok().filter(|extra| *extra <= REFERENCE_BYTES);
        let extra = extra.filter(|extra| *extra <= entry.len).ok_or_else(invalid)?;
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
        let references = decode_references(&references).ok_or_else(invalid)?;
        let caps = self.resolve_caps(view, meta.generation)?;
        self.need_keyframe = false;
        self.received += 1;
        self.skip_past(&entry, missing);
        self.counting_losses = true;
        Ok(Step::Packet(Packet {
            seq: entry.seq,
            caps,
            generation: meta.generation,
            published_ns: meta.published_ns,
            lost: std::mem::take(&mut self.lost),
            info: PacketInfo { references, ..meta.info },
            data,
        }))
    }

    /// Returns the caps of a generation. Waits for their announcement if it has not arrived yet.
    fn resolve_caps(&mut self, view: &TrackView, generation: u32) -> Result<Arc<str>> {
        // SYNC(announcements/lookup): read before the lookup, so that a later change invalidates it.
        let announcements = self.connection.announcements();
        if let Some(last) = &self.caps
            && last.announcements == announcements
            && last.generation == generation
        {
            return Ok(last.caps.clone());
        }
        let what = "caps of a packet";
        let caps = self.connection.wait_announced(what, |_| view.caps(generation))?;
        self.caps = Some(CachedCaps { announcements, generation, caps: caps.clone() });
        Ok(caps)
    }

    /// Moves the position to the end of a packet. `missed` packets were not returned: this one or those
    /// before it.
    fn skip_past(&mut self, entry: &Entry, missed: u64) {
        self.position = Some(entry.end());
        self.seq = Some(entry.seq.saturating_add(1));
        if self.counting_losses {
            self.lost = self.lost.saturating_add(missed);
            self.skipped = self.skipped.saturating_add(missed);
        }
        self.publish_position(entry.end());
    }

    /// Returns the position to start at; `None` if no packet satisfies `start` yet.
    fn find_start(&self, view: &TrackView, tail: u64, head: u64) -> Option<u64> {
        let ring = view.segment.ring();
        let newest = match newest_keyframe(view, tail, head) {
            Newest::At(keyframe) => Some(keyframe),
            Newest::Missing => None,
            // The reader may start at that keyframe, so that it cannot give up anything yet.
            Newest::Appending => return None,
        };
        let was_present = |meta: &PacketHeader| meta.published_ns <= self.created_ns;
        let found = match &self.start {
            Start::LatestKeyframe => first_or_last(keyframes(ring, newest), was_present),
            Start::NextKeyframe => {
                keyframes(ring, newest).take_while(|(_, meta)| !was_present(meta)).last()
            }
            Start::OldestKeyframe | Start::After(_) => return (head > tail).then_some(tail),
            Start::Preroll { time, gops } => {
                let newest = first_or_last(keyframes(ring, newest), was_present);
                newest.and_then(|(at, meta)| {
                    let end = i128::from(time_of_last(ring, at, &meta, was_present));
                    let mut n = 0;
                    first_or_last(keyframes(ring, Some(at)), |meta| {
                        n += 1;
                        n > *gops && end - i128::from(meta.time()) >= time.as_nanos() as i128
                    })
                })
            }
            Start::NotBefore(time) => {
                // Returns before the position is published: until the time is set, a publisher that waits
                // retains all packets.
                let time = *time.get()?;
                let pts = |meta: &PacketHeader| meta.info.pts.unwrap_or(meta.time());
                keyframes(ring, newest).take_while(|(_, meta)| pts(meta) >= time).last()
            }
        };
        if found.is_none() {
            // This reader needs none of the packets that are present.
            self.publish_position(head);
        }
        found.map(|(at, _)| at)
    }
}

impl Drop for PacketReader {
    fn drop(&mut self) {
        // The entry is the parent's if this process was forked.
        if !self.connection.owner.is_this_process() {
            return;
        }
        if let (Some(words), Some(entry)) = (self.words(), self.entry) {
            // SYNC(reader/register): Release; the last position was published before.
            words.track.store(0, Ordering::Release);
            *lock(&self.connection.readers) &= !(1 << entry);
            self.connection.notify_publisher();
        }
    }
}
