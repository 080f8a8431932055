// SPDX-License-Identifier: LGPL-2.1-or-later
//! Takes frames: polls for the next one, claims it, and sleeps while there is none.

use super::announcements::Disconnect;
use super::connection::Connection;
use super::frame::{Frame, Lease};
use super::pace::Pace;
use super::wait::{Next, Wait};
use crate::cuda::Event;
use crate::error::{Error, Result};
use crate::memory::Imported;
use crate::shm::claim;
use crate::shm::layout::{MAX_SEQ, unpack_index};
use crate::shm::record::Record;
use crate::shm::sleeper::Sleeper;
use crate::shm::stream_end;
use crate::sync::atomic::Ordering;
use crate::sync::clock;
use crate::types::mode::Mode;
use crate::types::refusal::RefusalReason;
use std::ops::ControlFlow;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long a published frame may stay incomplete, or unclaimable, before the publisher counts as broken. A GPU that is
/// overloaded by other programs may take seconds.
const READY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to poll for the pixels before sleeping. A device is usually done when the reader has woken up;
/// the copy of a 4K frame takes about 15 µs.
const READY_BUSY_POLL: Duration = Duration::from_micros(50);
/// Poll interval after that.
const READY_POLL_INTERVAL: Duration = Duration::from_micros(50);

/// Position of a subscriber in the stream of frames.
#[derive(Debug)]
pub(super) struct FrameReader {
    connection: Arc<Connection>,
    mode: Mode,
    /// Sequence number of the frame that was taken last.
    cursor: u64,
    /// No frame has been taken yet.
    first: bool,
    pace: Pace,
    skipped: u64,
    received: u64,
    resolved: Option<Resolved>,
}

/// Memory and caps of the last frame, with the chunk and the generation in its record. The next frame usually
/// has the same.
struct Resolved {
    /// [`Connection::announcements`] before the lookup.
    announcements: u64,
    chunk: u32,
    generation: u32,
    /// Weak, so that a retired chunk is unmapped without waiting for the next frame.
    memory: Weak<dyn Imported>,
    caps: Arc<str>,
}

impl std::fmt::Debug for Resolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolved")
            .field("chunk", &self.chunk)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// Why there is nothing to take.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pending {
    /// The publisher has not published the next frame yet. `head` is the newest one, and `ended` says whether the stream
    /// has ended behind it.
    Frame { head: u64, ended: bool },
    /// This subscriber holds as many frames as its credit allows, and has to release one first.
    Release,
    /// The newest frame was overwritten before it could be claimed. `head` is about to name a newer one.
    Overwritten { head: u64 },
}

/// Values of the two words that a sleeping reader waits for, read before the poll: a change after the poll
/// ends the sleep.
#[derive(Clone, Copy)]
struct Tickets {
    bell: u32,
    wake: u32,
}

impl FrameReader {
    pub(super) fn new(connection: Arc<Connection>, mode: Mode) -> Self {
        // The publisher set it when it registered this subscriber.
        let joined = connection.page.header().cursor.load(Ordering::Relaxed);
        // A subscriber of the newest frame also takes the one that is already there.
        let cursor = if mode == Mode::Newest { joined.saturating_sub(1) } else { joined };
        Self {
            connection,
            mode,
            cursor,
            first: true,
            pace: Pace::default(),
            skipped: 0,
            received: 0,
            resolved: None,
        }
    }

    /// Number of frames taken so far.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Number of frames skipped since the first one was taken.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Waits for the next frame that the mode selects.
    pub(super) fn next(&mut self, wait: &Wait) -> Result<Next<Frame>> {
        let deadline = wait.timeout.and_then(clock::deadline_after);
        // The newest frame that could not be claimed, and since when.
        let mut overwritten: Option<(u64, Duration)> = None;
        loop {
            let tickets = self.tickets();
            let pending = match self.poll_once(wait)? {
                ControlFlow::Break(next) => return Ok(next),
                ControlFlow::Continue(pending) => pending,
            };
            let now = clock::now();
            if let Pending::Overwritten { head } = pending {
                let (_, since) = *match &mut overwritten {
                    Some(known) if known.0 == head => known,
                    other => other.insert((head, now)),
                };
                if now - since > READY_TIMEOUT {
                    return Err(self.connection.protocol_error("its newest frame is missing"));
                }
            }
            if deadline.is_some_and(|d| now >= d) {
                return Ok(Next::TimedOut);
            }
            self.sleep(pending, tickets, now, deadline, wait.busy_poll);
        }
    }

    /// Reads the two words that a sleep waits for. Call it before the poll that decides on the sleep.
    fn tickets(&self) -> Tickets {
        // SYNC(bell/ticket): see `Doorbell`.
        Tickets { bell: self.connection.interrupt.bell().ticket(), wake: self.sleeper().expected() }
    }

    fn sleeper(&self) -> Sleeper<'_> {
        Sleeper::of_frames(self.connection.page.header())
    }

    /// Checks the current state: returns the result of the wait (a frame, the end of the stream or of the
    /// connection, an interrupt), or why there is none. Sleeps only if a frame is published but its
    /// announcements or pixels are still on their way.
    fn poll_once(&mut self, wait: &Wait) -> Result<ControlFlow<Next<Frame>, Pending>> {
        if self.connection.interrupt.is_set() {
            return Ok(ControlFlow::Break(Next::Interrupted));
        }
        // SYNC(disconnect/head): read before `head`, so that frames that were published before the end of
        // the connection are still taken. An evicted subscriber takes no more frames.
        let disconnect = self.connection.disconnect();
        if let Some(disconnect) = &disconnect
            && disconnect.reason != RefusalReason::Closing
        {
            return Ok(ControlFlow::Break(disconnect.clone().into()));
        }
        let h = self.connection.control.header();
        // SYNC(head/publish): record, slot number and index entry of the frames up to `head` are written.
        let (ended, head) = stream_end::read(&h.status.eos, &h.head);
        if head > MAX_SEQ {
            let problem = "the number of its newest frame is out of range";
            return Err(self.connection.protocol_error(problem));
        }
        self.connection.collect_returned();
        let full = self.is_full();
        if head > self.cursor && !full {
            return Ok(match (self.take(head)?, disconnect) {
                (Some(frame), _) => ControlFlow::Break(Next::Item(frame)),
                (None, Some(disconnect)) => ControlFlow::Break(disconnect.into()),
                (None, None) => ControlFlow::Continue(Pending::Overwritten { head }),
            });
        }
        if ended && head == self.cursor && !wait.past_eos {
            return Ok(ControlFlow::Break(Next::Eos));
        }
        Ok(match disconnect {
            // Also if there is a frame that cannot be taken because the credit is used up.
            Some(disconnect) => ControlFlow::Break(disconnect.into()),
            None if full => ControlFlow::Continue(Pending::Release),
            None => ControlFlow::Continue(Pending::Frame { head, ended }),
        })
    }

    /// Returns whether this subscriber holds as many frames as its credit allows.
    fn is_full(&self) -> bool {
        self.connection.leases.count() >= self.connection.credit
    }

    /// Sleeps until the next poll makes sense: until one of the two words changes, until `deadline`, or until
    /// shortly before the next frame is expected. Returns at once around the time at which it is expected,
    /// and if a newer frame is about to appear.
    fn sleep(
        &self,
        pending: Pending,
        tickets: Tickets,
        now: Duration,
        deadline: Option<Duration>,
        busy_poll: Duration,
    ) {
        let seen = match pending {
            Pending::Frame { head, ended } => (head, ended),
            Pending::Release => {
                return self.wait_for_release(tickets, deadline.map(|until| until - now));
            }
            Pending::Overwritten { .. } => return std::hint::spin_loop(),
        };
        let expected = self.pace.expect(busy_poll).filter(|around| now < around.end);
        if expected.as_ref().is_some_and(|around| around.start <= now) {
            return std::hint::spin_loop();
        }
        let until = expected.map(|around| around.start).into_iter().chain(deadline).min();
        let left = until.map(|until| until - now);
        let (h, bell) = (self.connection.control.header(), self.connection.interrupt.bell());
        let is_unchanged = || stream_end::is_unchanged(&h.status.eos, &h.head, seen);
        self.sleeper().sleep(tickets.wake, is_unchanged, |wake| {
            bell.wait_or(tickets.bell, wake, left);
            tracing::trace!(name: "woken", target: "cuframes::steps", "woken");
        });
    }

    /// Sleeps until this subscriber releases a frame.
    fn wait_for_release(&self, tickets: Tickets, left: Option<Duration>) {
        let connection = &*self.connection;
        let (credit, bell) = (connection.credit, connection.interrupt.bell());
        let held = |slot| connection.page.held(slot);
        connection.leases.wait_for_release(credit, held, bell, tickets.bell, left);
    }

    /// Claims the frame that the mode selects. Returns `None` if it was overwritten before.
    fn take(&mut self, head: u64) -> Result<Option<Frame>> {
        let wanted = match self.mode {
            Mode::Newest => head,
            // Frames without an index entry are gone, so the loop is bounded, however far `head` is ahead.
            Mode::Strict => {
                let oldest = head.saturating_sub(self.connection.control.index_len().into()) + 1;
                oldest.max(self.cursor + 1)
            }
        };
        let Some((slot, seq)) = (wanted..=head).find_map(|seq| self.claim(seq).map(|s| (s, seq)))
        else {
            return Ok(None);
        };
        // From here on, the lease owns the claim on every path.
        self.connection.leases.add();
        let lease = Lease { connection: self.connection.clone(), slot, handed_over: false };
        let record = Record::load(self.connection.control.record(slot))
            .filter(|r| r.seq == seq)
            .ok_or_else(|| self.connection.protocol_error("a frame's record is invalid"))?;
        let (memory, caps) = self.resolve(&record)?;
        if !is_inside(&record, &*memory) {
            return Err(self.connection.protocol_error("a frame is outside its memory"));
        }
        tracing::trace!(name: "claimed", target: "cuframes::steps", seq);
        self.wait_until_ready(slot, seq, memory.event(record.slot_in_chunk))?;
        let (captured, published) = (record.info.captured_ns, record.published_ns);
        tracing::trace!(name: "ready", target: "cuframes::steps", captured, published);

        let skipped = self.advance(seq, record.published_ns);
        Ok(Some(Frame {
            address: memory.address(record.slot_in_chunk),
            lease,
            memory,
            seq,
            caps,
            generation: record.generation,
            published_ns: record.published_ns,
            skipped,
            info: record.info,
        }))
    }

    /// Claims the slot of frame `seq` and returns its number. `None` if the frame is not there any more.
    fn claim(&self, seq: u64) -> Option<u32> {
        let control = &self.connection.control;
        // SYNC(head/publish): the index entry was written before `head` reached `seq`, and is overwritten
        // only after many more frames.
        let slot = unpack_index(control.index_entry(seq).load(Ordering::Relaxed), seq)?;
        // Only an invalid publisher writes a number out of range; the frame counts as gone.
        (slot < control.slots()).then_some(())?;
        // SYNC(claim/retire): see `shm::claim`.
        claim::claim(control.slot(slot), self.connection.page.held(slot), seq).then_some(slot)
    }

    /// Returns the memory and the caps that a record refers to. Waits for their announcements if they have
    /// not arrived yet.
    fn resolve(&mut self, record: &Record) -> Result<(Arc<dyn Imported>, Arc<str>)> {
        // SYNC(announcements/lookup): read before the lookup, so that a later change invalidates it.
        let announcements = self.connection.announcements();
        if let Some(last) = &self.resolved
            && last.announcements == announcements
            && last.chunk == record.chunk
            && last.generation == record.generation
            && let Some(memory) = last.memory.upgrade()
        {
            return Ok((memory, last.caps.clone()));
        }
        let memory = self
            .connection
            .wait_announced("memory of a frame", |s| s.chunks.get(&record.chunk).cloned())?;
        let caps = self
            .connection
            .wait_announced("caps of a frame", |s| s.formats.get(record.generation))?;
        self.resolved = Some(Resolved {
            announcements,
            chunk: record.chunk,
            generation: record.generation,
            memory: Arc::downgrade(&memory),
            caps: caps.clone(),
        });
        Ok((memory, caps))
    }

    /// Moves the cursor to the taken frame `seq` and updates the page. Returns how many frames were skipped.
    fn advance(&mut self, seq: u64, published_ns: i64) -> u64 {
        let skipped = if self.first { 0 } else { seq - self.cursor - 1 };
        self.first = false;
        self.pace.record(seq, published_ns);
        self.cursor = seq;
        self.received += 1;
        self.skipped += skipped;
        let page = self.connection.page.header();
        // SYNC(cursor/reclaim): Release pairs with the Acquire in the publisher's search for a free slot.
        // The claim is in place before the cursor moves.
        page.cursor.store(seq, Ordering::Release);
        page.received.store(self.received, Ordering::Relaxed);
        page.skipped.store(self.skipped, Ordering::Relaxed);
        page.copied.store(self.connection.copied.load(Ordering::Relaxed), Ordering::Relaxed);
        page.heartbeat_ns.store(clock::now_ns() as u64, Ordering::Relaxed);
        self.connection.notify_publisher();
        skipped
    }

    /// Waits for the pixels: a device stores `seq` in the slot's ready word after writing them, or completes the
    /// slot's event. Host memory is ready when it is published.
    ///
    /// # Errors
    /// [`Error::Refused`] if the connection ends before, because the publisher may have exited in between,
    /// or after 5 s; [`Error::Interrupted`]; [`Error::Device`].
    fn wait_until_ready(&self, slot: u32, seq: u64, event: Option<&Event>) -> Result<()> {
        let ready = self.connection.control.ready(slot);
        let is_complete = || -> Result<bool, crate::cuda::Error> {
            // SYNC(ready/complete): pairs with the Release in `FramePublisher::publish`, or with the write
            // of the device, which is ordered after its writes of the pixels.
            Ok(ready.load(Ordering::Acquire) == seq && event.map_or(Ok(true), Event::is_done)?)
        };
        let mut begin = None;
        while !is_complete()? {
            let now = clock::now();
            let waited = now - *begin.get_or_insert(now);
            // SYNC(disconnect/head): read before the second check, so that a frame that was complete when
            // the publisher exited is still taken.
            let disconnect = self.connection.disconnect();
            if is_complete()? {
                break;
            }
            if self.connection.interrupt.is_set() {
                return Err(Error::Interrupted);
            }
            if disconnect.is_some() || waited > READY_TIMEOUT {
                let Disconnect { reason, text } = disconnect.unwrap_or(Disconnect {
                    reason: RefusalReason::Stalled,
                    text: "a published frame was never completed".into(),
                });
                return Err(Error::Refused { key: self.connection.key.clone(), reason, text });
            }
            if waited < READY_BUSY_POLL {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(READY_POLL_INTERVAL);
            }
        }
        Ok(())
    }
}

/// Returns whether the frame of a record is within the memory that the record refers to. The publisher
/// wrote both, so neither is trusted.
fn is_inside(record: &Record, memory: &dyn Imported) -> bool {
    let (geometry, info) = (memory.geometry(), &record.info);
    record.slot_in_chunk < geometry.slots
        && info.size as u64 <= geometry.size
        && info.planes.iter().all(|p| (p.offset as usize) < info.size)
}
