//! The subscriber's way to frames: waits, claims, and hands out leases.

use super::connection::Connection;
use super::frame::{Frame, Lease};
use super::pace::Pace;
use super::wait::{Next, Wait};
use crate::cuda::Event;
use crate::error::{Error, Result};
use crate::shm::claim;
use crate::shm::layout::{MAX_SEQ, unpack_index};
use crate::shm::record::Record;
use crate::sync::atomic::{Ordering, fence};
use crate::sync::{clock, lock};
use crate::types::code::{Mode, RefusalReason};
use std::sync::Arc;
use std::time::Duration;

/// A device that has not written a published frame after waiting for this long never will.
const READY_TIMEOUT: Duration = Duration::from_secs(1);
/// A device is usually done when the reader has woken up; the copy of a 4K frame takes some 15 µs.
const READY_SPIN: Duration = Duration::from_micros(50);
const READY_STEP: Duration = Duration::from_micros(50);

/// Where a subscriber is in the stream of frames.
pub(crate) struct FrameReader {
    shared: Arc<Connection>,
    mode: Mode,
    /// Sequence number of the frame that was taken last.
    cursor: u64,
    first: bool,
    pace: Pace,
    skipped: u64,
    received: u64,
}

impl FrameReader {
    pub fn new(shared: Arc<Connection>, mode: Mode) -> Self {
        // As of the moment in which the publisher began to count with this subscriber.
        let joined = shared.page.header().cursor.load(Ordering::Relaxed);
        // Who wants the newest is glad of the one that is there.
        let cursor = if mode == Mode::Newest { joined.saturating_sub(1) } else { joined };
        Self { shared, mode, cursor, first: true, pace: Pace::default(), skipped: 0, received: 0 }
    }

    pub fn counters(&self) -> (u64, u64) {
        (self.received, self.skipped)
    }

    pub fn next(&mut self, wait: &Wait<'_>) -> Result<Next<Frame>> {
        let shared = self.shared.clone();
        let h = shared.control.header();
        let deadline = wait.timeout.map(|t| clock::now() + t);
        // The newest frame when it could not be claimed, and since when that is so.
        let mut missed: Option<(u64, Duration)> = None;
        loop {
            // Both numbers are read before what they stand for, so no change goes unnoticed.
            let seen = shared.bell.seen();
            let futex = h.futex.load(Ordering::Acquire);
            if wait.interrupt.is_set() {
                return Ok(Next::Interrupted);
            }
            // Read before `head`: what was published before the end is still taken.
            let closed = lock(&shared.state).closed.clone();
            if let Some((code, text)) =
                closed.clone().filter(|(code, _)| *code != RefusalReason::Closing)
            {
                return Ok(Next::Lost { code, text });
            }
            // Pairs with the Release in `Frames::end`: all frames were published before it.
            let eos = h.status.eos.load(Ordering::Acquire) != 0;
            // Pairs with the Release in `Frames::publish`.
            let head = h.head.load(Ordering::Acquire);
            if head > MAX_SEQ {
                return Err(shared.protocol("the number of its newest frame is impossible"));
            }
            shared.settle();
            // Pairs with the Release in `Lease::drop`.
            let full = shared.leases.load(Ordering::Acquire) >= shared.credit;
            if head > self.cursor && !full {
                match self.take(head, wait)? {
                    Some(frame) => return Ok(Next::Item(frame)),
                    None => {
                        // It made way for a newer one, of which `head` is about to tell.
                        if let Some((code, text)) = closed {
                            return Ok(Next::Lost { code, text });
                        }
                        let now = clock::now();
                        let (_, since) = *match &mut missed {
                            Some(known) if known.0 == head => known,
                            other => other.insert((head, now)),
                        };
                        if now - since > READY_TIMEOUT {
                            return Err(shared.protocol("its newest frame is not there"));
                        }
                        if deadline.is_some_and(|d| now >= d) {
                            return Ok(Next::TimedOut);
                        }
                        std::hint::spin_loop();
                        continue;
                    }
                }
            }
            if eos && head == self.cursor && !wait.past_eos {
                return Ok(Next::Eos);
            }
            // Also when there is a frame that can't be taken, because as many are held as may be.
            if let Some((code, text)) = closed {
                return Ok(Next::Lost { code, text });
            }
            let now = clock::now();
            if deadline.is_some_and(|d| now >= d) {
                return Ok(Next::TimedOut);
            }
            let expected = self.pace.expect(wait.spin).filter(|around| !full && now < around.end);
            if expected.as_ref().is_some_and(|around| around.start <= now) {
                std::hint::spin_loop();
                continue;
            }
            let until = expected.map(|around| around.start).into_iter().chain(deadline).min();
            let left = until.map(|until| until - now);
            if !full {
                shared.bell.wait_with(seen, (&h.futex, futex), left);
                tracing::trace!(name: "woken", target: "cuframes::steps", "woken");
                continue;
            }
            shared.awaits_release.store(true, Ordering::Relaxed);
            // Pairs with the fence in `Lease::drop`.
            fence(Ordering::SeqCst);
            let clearing = shared.settle();
            if shared.leases.load(Ordering::Acquire) >= shared.credit {
                // A device rings no bell.
                let step = clearing.then_some(READY_STEP);
                shared.bell.wait(seen, left.into_iter().chain(step).min());
            }
            shared.awaits_release.store(false, Ordering::Relaxed);
        }
    }

    /// Claims the frame that the mode wants. `None` if it was overwritten before that.
    fn take(&mut self, head: u64, wait: &Wait<'_>) -> Result<Option<Frame>> {
        let wanted = match self.mode {
            Mode::Newest => head,
            // What the index has no room for is gone, however far `head` is ahead.
            Mode::Strict => {
                let oldest = head.saturating_sub(self.shared.control.index_len().into()) + 1;
                oldest.max(self.cursor + 1)
            }
        };
        let Some((slot, seq)) = (wanted..=head).find_map(|seq| self.claim(seq).map(|s| (s, seq)))
        else {
            return Ok(None);
        };
        // From here on the claim goes with the lease, on every path.
        self.shared.leases.fetch_add(1, Ordering::Relaxed);
        let lease = Lease { shared: self.shared.clone(), slot, handed_over: false };
        let protocol = |problem: &str| self.shared.protocol(problem);
        let record = Record::load(self.shared.control.record(slot))
            .filter(|r| r.seq == seq)
            .ok_or_else(|| protocol("a frame's record makes no sense"))?;
        let memory = self.shared.announced("memory of a frame", wait.interrupt, |s| {
            s.chunks.get(&record.chunk).cloned()
        })?;
        let caps = self
            .shared
            .announced("caps of a frame", wait.interrupt, |s| s.formats.get(record.generation))?;
        let geometry = memory.geometry();
        let info = record.info;
        let inside = info.planes.iter().all(|p| (p.offset as usize) < info.size);
        if record.slot_in_chunk >= geometry.slots || info.size as u64 > geometry.size || !inside {
            return Err(protocol("a frame lies outside its memory"));
        }
        tracing::trace!(name: "claimed", target: "cuframes::steps", seq);
        self.wait_until_ready(seq, memory.event(record.slot_in_chunk), wait)?;
        let (captured, published) = (info.captured, record.published);
        tracing::trace!(name: "ready", target: "cuframes::steps", captured, published);

        let skipped = if self.first { 0 } else { seq - self.cursor - 1 };
        self.first = false;
        self.pace.note(seq, record.published);
        self.cursor = seq;
        self.received += 1;
        self.skipped += skipped;
        let page = self.shared.page.header();
        // Release pairs with the Acquire in `pool::is_behind`: the claim is in place.
        page.cursor.store(seq, Ordering::Release);
        page.received.store(self.received, Ordering::Relaxed);
        page.skipped.store(self.skipped, Ordering::Relaxed);
        page.copied.store(self.shared.copied.load(Ordering::Relaxed), Ordering::Relaxed);
        page.heartbeat_ns.store(clock::now_ns() as u64, Ordering::Relaxed);
        self.shared.moved();
        Ok(Some(Frame {
            address: memory.address(record.slot_in_chunk),
            lease,
            memory,
            seq,
            caps,
            generation: record.generation,
            published: record.published,
            skipped,
            info,
        }))
    }

    /// The slot of frame `seq`, claimed, if it still holds it.
    fn claim(&self, seq: u64) -> Option<u32> {
        let control = &self.shared.control;
        // The index was written before `head` was moved to it, and is overwritten after many frames.
        let slot = unpack_index(control.index_entry(seq).load(Ordering::Relaxed), seq)?;
        // A number out of range is a lie; the frame counts as gone.
        (slot < control.slots()).then_some(())?;
        claim::claim(control.slot(slot), self.shared.page.held(slot), seq).then_some(slot)
    }

    /// Waits for the pixels: `ready` reaches `seq` when the device has written them, or the slot's event
    /// is done. Host memory is ready when it is published. The wait ends with the publisher, which may
    /// die in between.
    fn wait_until_ready(&self, seq: u64, event: Option<&Event>, wait: &Wait<'_>) -> Result<()> {
        let ready = &self.shared.control.header().ready;
        let begin = clock::now();
        let complete = || -> Result<bool, crate::cuda::Error> {
            // Pairs with the Release in `Frames::publish`, or with the device's write, which is ordered
            // behind those of the pixels.
            Ok(ready.load(Ordering::Acquire) >= seq && event.map_or(Ok(true), Event::is_done)?)
        };
        while !complete()? {
            let waited = clock::now() - begin;
            // Before another look: what was complete when the publisher ended is still taken.
            let closed = lock(&self.shared.state).closed.clone();
            if complete()? {
                break;
            }
            if wait.interrupt.is_set() {
                return Err(Error::Interrupted);
            }
            if closed.is_some() || waited > READY_TIMEOUT {
                let (code, text) = closed.unwrap_or((
                    RefusalReason::Stalled,
                    "a published frame was never completed".into(),
                ));
                return Err(Error::Refused { key: self.shared.key.clone(), code, text });
            }
            if waited < READY_SPIN {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(READY_STEP);
            }
        }
        Ok(())
    }
}
