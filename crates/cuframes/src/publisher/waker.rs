// SPDX-License-Identifier: LGPL-2.1-or-later
//! Wakes sleeping subscribers: the first few from the thread that publishes, the others from a thread of their own.
//!
//! Each wake-up is a system call of 1 to 2 µs. The publishing thread hands the work over beyond [`DIRECT_WAKEUPS`]
//! subscribers, so that its cost stays the same however many there are. The subscribers that the other thread wakes
//! start later by the time that this thread takes to start, which is about 50 µs.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::handle::{SubscriberHandle, Subscribers};
use crate::error::{Context, Result};
use crate::shm::layout::{FRAME_READER, MAX_READERS};
use crate::shm::sleeper::{Sleeper, before_wakeups};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::interrupt::Doorbell;
use crate::sync::lock;

/// Maximum number of subscribers that the publishing thread wakes itself, if there are more.
pub(super) const DIRECT_WAKEUPS: usize = 16;

/// What the readers to wake wait for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Item {
    Frame,
    /// A packet of this track.
    Packet(u32),
}

/// Wakes the readers of frames and packets. The thread is started when it is first needed.
#[derive(Default)]
pub(super) struct Waker {
    /// Wakes the thread.
    bell: Doorbell,
    /// What the thread has to do: wake all subscribers but the first [`DIRECT_WAKEUPS`]. At most one entry per item.
    jobs: Mutex<Vec<(Item, Subscribers)>>,
    stop: AtomicBool,
    running: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Waker {
    /// Starts the thread if there are more subscribers than the publishing thread wakes itself.
    ///
    /// # Errors
    /// The system has no threads left. The publishing threads then wake all subscribers.
    pub(super) fn start(self: &Arc<Self>, subscribers: usize) -> Result<()> {
        let mut thread = lock(&self.thread);
        if subscribers <= DIRECT_WAKEUPS || thread.is_some() {
            return Ok(());
        }
        let waker = self.clone();
        let builder = std::thread::Builder::new().name("cuframes-waker".into());
        let started = builder.spawn(move || waker.run());
        *thread = Some(started.context("start a thread")?);
        self.running.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        self.running.store(false, Ordering::Relaxed);
        self.stop.store(true, Ordering::Relaxed);
        self.bell.ring();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }

    fn run(&self) {
        loop {
            let ticket = self.bell.ticket();
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let jobs = std::mem::take(&mut *lock(&self.jobs));
            if jobs.is_empty() {
                self.bell.wait(ticket, None);
            }
            for (item, subscribers) in jobs {
                subscribers[DIRECT_WAKEUPS..].iter().for_each(|s| s.wake(item));
            }
        }
    }

    /// Wakes the sleeping readers of frames, after a frame was stored.
    pub(super) fn wake_frame_readers(&self, subscribers: &Subscribers) {
        if !subscribers.is_empty() {
            before_wakeups();
            self.wake(Item::Frame, subscribers);
        }
    }

    /// Wakes the sleeping readers of a track, after a packet was stored. [`before_wakeups`] and a refresh of
    /// `subscribers` precede.
    pub(super) fn wake_packet_readers(&self, subscribers: &Subscribers, track: u32) {
        self.wake(Item::Packet(track), subscribers);
    }

    fn wake(&self, item: Item, subscribers: &Subscribers) {
        let direct = match self.running.load(Ordering::Relaxed) {
            true => DIRECT_WAKEUPS.min(subscribers.len()),
            false => subscribers.len(),
        };
        // Every page is read once before any is written, so that the CPU waits for all of their cache lines at a time.
        // The results are combined without a branch.
        let any_sleeps = |some: &[Arc<SubscriberHandle>]| {
            some.iter().fold(false, |any, subscriber| any | subscriber.sleeps(item))
        };
        let direct_sleep = any_sleeps(&subscribers[..direct]);
        // The thread first, because it takes some time to start.
        if any_sleeps(&subscribers[direct..]) {
            let mut jobs = lock(&self.jobs);
            jobs.retain(|(of, _)| *of != item);
            jobs.push((item, subscribers.clone()));
            drop(jobs);
            self.bell.ring();
        }
        if direct_sleep {
            subscribers[..direct].iter().for_each(|s| s.wake(item));
        }
    }
}

impl SubscriberHandle {
    /// Returns whether a thread sleeps that may wait for the item.
    fn sleeps(&self, item: Item) -> bool {
        let mask = match item {
            Item::Frame => 1 << FRAME_READER,
            Item::Packet(_) => (1 << MAX_READERS) - 1,
        };
        self.page.header().sleeping.load(Ordering::Relaxed) & mask != 0
    }

    fn wake(&self, item: Item) {
        let page = self.page.header();
        let Item::Packet(track) = item else {
            Sleeper { sleeping: &page.sleeping, bit: FRAME_READER, futex: &page.wake }.wake();
            return;
        };
        // SYNC(reader/register): pairs with the Release in `Sleeper::sleep`.
        let sleeping = page.sleeping.load(Ordering::Acquire);
        for (bit, words) in (0..MAX_READERS as u32).zip(&page.readers) {
            if sleeping & 1 << bit != 0 && words.track.load(Ordering::Relaxed) as u32 == track {
                Sleeper { sleeping: &page.sleeping, bit, futex: &words.wake }.wake();
            }
        }
    }
}
