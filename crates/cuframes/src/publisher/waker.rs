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
    /// What the thread has to do: wake all subscribers but the first [`DIRECT_WAKEUPS`]. One entry per item and list.
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
            // Another thread may have handed over a newer list, which this one must not replace.
            if !jobs.iter().any(|(of, list)| *of == item && Arc::ptr_eq(list, subscribers)) {
                jobs.push((item, subscribers.clone()));
            }
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
            Sleeper::of_frames(page).wake();
            return;
        };
        // SYNC(reader/register): pairs with the Release in `Sleeper::sleep`.
        let sleeping = page.sleeping.load(Ordering::Acquire);
        for (entry, words) in page.readers.iter().enumerate() {
            if sleeping & 1 << entry != 0 && words.track.load(Ordering::Relaxed) as u32 == track {
                Sleeper::of_packets(page, entry).wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::handle::tests::subscriber;
    use super::*;
    use crate::shm::layout::READER_IN_USE;
    use crate::sync::atomic::AtomicU32;
    use crate::types::mode::Mode;
    use testing::{Watchdog, until};

    const COUNT: usize = DIRECT_WAKEUPS + 4;

    fn subscribers(count: usize) -> Subscribers {
        (0..count as u32).map(|id| subscriber(id, (Mode::Newest, 1), 1).0).collect()
    }

    /// Makes the threads of all subscribers sleep: readers of frames, of track 7, and of track 8.
    fn sleep(subscribers: &Subscribers) {
        for subscriber in subscribers.iter() {
            let page = subscriber.page.header();
            page.readers[0].track.store(READER_IN_USE | 7, Ordering::Relaxed);
            page.readers[MAX_READERS - 1].track.store(READER_IN_USE | 8, Ordering::Relaxed);
            let all = 1 | 1 << (MAX_READERS - 1) | 1 << FRAME_READER;
            page.sleeping.store(all, Ordering::Relaxed);
        }
    }

    /// Returns how often each subscriber's readers were woken: of frames, of track 7, and of track 8.
    fn woken(subscribers: &[Arc<SubscriberHandle>]) -> Vec<[u32; 3]> {
        let of = |s: &Arc<SubscriberHandle>| {
            let page = s.page.header();
            let futexes = [&page.wake, &page.readers[0].wake, &page.readers[MAX_READERS - 1].wake];
            futexes.map(|futex: &AtomicU32| futex.load(Ordering::Relaxed))
        };
        subscribers.iter().map(of).collect()
    }

    #[test]
    fn each_item_wakes_its_readers() {
        let (waker, subscribers) = (Waker::default(), subscribers(COUNT));
        // No thread was started, so the publishing thread wakes all.
        waker.wake_frame_readers(&subscribers);
        waker.wake_packet_readers(&subscribers, 8);
        assert_eq!(woken(&subscribers), [[0; 3]; COUNT], "nobody sleeps");
        sleep(&subscribers);
        waker.wake_packet_readers(&subscribers, 8);
        assert_eq!(woken(&subscribers), [[0, 0, 1]; COUNT]);
        waker.wake_packet_readers(&subscribers, 9);
        waker.wake_frame_readers(&subscribers);
        assert_eq!(woken(&subscribers), [[1, 0, 1]; COUNT]);
        waker.wake_packet_readers(&subscribers, 7);
        assert_eq!(woken(&subscribers), [[1, 1, 1]; COUNT]);
        assert!(subscribers.iter().all(|s| s.page.header().sleeping.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn only_reader_that_sleeps_is_woken() {
        let (waker, alone) = (Waker::default(), subscribers(1));
        let page = alone[0].page.header();
        page.sleeping.store(1 << FRAME_READER, Ordering::Relaxed);
        waker.wake_packet_readers(&alone, 0);
        assert_eq!(woken(&alone), [[0; 3]]);
        waker.wake_frame_readers(&alone);
        assert_eq!(woken(&alone), [[1, 0, 0]]);
        // All readers of packets sleep.
        sleep(&alone);
        page.sleeping.store((1 << MAX_READERS) - 1, Ordering::Relaxed);
        waker.wake_frame_readers(&alone);
        assert_eq!(woken(&alone), [[1, 0, 0]]);
        waker.wake_packet_readers(&alone, 7);
        waker.wake_packet_readers(&alone, 8);
        assert_eq!(woken(&alone), [[1; 3]]);
    }

    /// The thread gets the wake-ups beyond the first ones. Those of one item do not replace those of another.
    #[test]
    fn thread_wakes_every_reader_that_is_left_to_it() {
        let _watchdog = Watchdog::new("waker");
        let (waker, subscribers) = (Arc::new(Waker::default()), subscribers(COUNT));
        sleep(&subscribers);
        // As if the thread had not come to it yet.
        waker.running.store(true, Ordering::Relaxed);
        for _ in 0..3 {
            waker.wake_frame_readers(&subscribers);
            waker.wake_packet_readers(&subscribers, 7);
            waker.wake_packet_readers(&subscribers, 8);
        }
        let (direct, left) = subscribers.split_at(DIRECT_WAKEUPS);
        assert_eq!(woken(direct), [[1; 3]; DIRECT_WAKEUPS]);
        assert_eq!(woken(left), [[0; 3]; COUNT - DIRECT_WAKEUPS]);
        assert_eq!(lock(&waker.jobs).len(), 3, "one for each item");
        waker.start(COUNT).unwrap();
        until(|| woken(left) == [[1; 3]; COUNT - DIRECT_WAKEUPS]);

        // One that sleeps alone, first or last.
        for at in [0, DIRECT_WAKEUPS - 1, DIRECT_WAKEUPS, COUNT - 1] {
            let before = woken(&subscribers)[at][0];
            let page = subscribers[at].page.header();
            page.sleeping.store(1 << FRAME_READER, Ordering::Relaxed);
            waker.wake_frame_readers(&subscribers);
            until(|| woken(&subscribers)[at][0] == before + 1);
        }
        waker.stop();
        assert_eq!(Arc::strong_count(&waker), 1, "the thread has ended");
        // All are woken without it.
        sleep(&subscribers);
        let before = woken(&subscribers);
        waker.wake_frame_readers(&subscribers);
        assert!(
            woken(&subscribers).iter().zip(before).all(|(now, before)| now[0] == before[0] + 1)
        );
    }

    #[test]
    fn thread_is_started_when_it_has_work() {
        let waker = Arc::new(Waker::default());
        waker.start(DIRECT_WAKEUPS).unwrap();
        assert!(lock(&waker.thread).is_none() && !waker.running.load(Ordering::Relaxed));
        waker.start(DIRECT_WAKEUPS + 1).unwrap();
        let id = |waker: &Waker| lock(&waker.thread).as_ref().map(|thread| thread.thread().id());
        let first = id(&waker);
        assert!(first.is_some() && waker.running.load(Ordering::Relaxed));
        waker.start(DIRECT_WAKEUPS + 2).unwrap();
        assert_eq!(id(&waker), first);
        waker.stop();
        assert!(id(&waker).is_none());
    }
}
