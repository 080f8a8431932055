// SPDX-License-Identifier: LGPL-2.1-or-later
//! Waits for another process.

use cuframes::Interrupt;
use cuframes::shm::sleeper::{Sleeper, before_wakeups};
use cuframes::shm::stream_end;
use cuframes::shm::waiter::{Waiter, notify};
use cuframes::sync::interrupt::Doorbell;
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::*;

/// The words of the control segment and of a page that take part.
#[derive(Default)]
struct SharedWords {
    publisher_waits: AtomicU32,
    futex: AtomicU32,
    cursor: AtomicU64,
}

impl SharedWords {
    /// As `FramePublisher::loan` with `BackpressureWait`.
    fn loan(&self, wanted: u64, outcomes: &Outcomes) {
        let mut waiter = Waiter::new(&self.publisher_waits);
        let mut steps = 0;
        while self.cursor.load(Ordering::Acquire) < wanted {
            waiter.step(&self.futex, None);
            steps += 1;
        }
        outcomes.add(if steps > 1 { "waited" } else { "no wait" });
    }

    /// As `FrameReader::advance`.
    fn take(&self, seq: u64, outcomes: &Outcomes) {
        let before = self.futex.load(Ordering::Relaxed);
        self.cursor.store(seq, Ordering::Release);
        notify(&self.publisher_waits, &self.futex);
        let woke = self.futex.load(Ordering::Relaxed) != before;
        outcomes.add(if woke { "woke" } else { "no wake-up needed" });
    }
}

#[test]
fn publisher_misses_no_wake_up() {
    explore(3, ["waited", "no wait", "woke", "no wake-up needed"], |outcomes| {
        let shared = Arc::new(SharedWords::default());
        let (subscriber, seen) = (shared.clone(), outcomes.clone());
        let taking = thread::spawn(move || (1..=2).for_each(|seq| subscriber.take(seq, &seen)));
        (1..=2).for_each(|seq| shared.loan(seq, outcomes));
        taking.join().unwrap();
        assert_eq!(shared.publisher_waits.load(Ordering::Relaxed), 0);
    });
}

/// Two threads of the publisher wait for one subscriber: a frame, and a packet.
#[test]
fn two_waits_of_publisher_miss_no_wake_up() {
    explore(2, ["waited", "no wait", "woke", "no wake-up needed"], |outcomes| {
        let shared = Arc::new(SharedWords::default());
        let (subscriber, seen) = (shared.clone(), outcomes.clone());
        let taking = thread::spawn(move || subscriber.take(1, &seen));
        let (other, seen) = (shared.clone(), outcomes.clone());
        let waiting = thread::spawn(move || other.loan(1, &seen));
        shared.loan(1, outcomes);
        taking.join().unwrap();
        waiting.join().unwrap();
    });
}

/// The words of the control segment and of a page that take part when a reader sleeps.
#[derive(Default)]
struct Stream {
    head: AtomicU64,
    ended: AtomicU32,
    sleeping: AtomicU32,
    futex: AtomicU32,
}

impl Stream {
    fn sleeper(&self) -> Sleeper<'_> {
        Sleeper { sleeping: &self.sleeping, bit: 3, futex: &self.futex }
    }

    /// As `Waker::wake_frame_readers`.
    fn wake(&self, outcomes: &Outcomes) {
        before_wakeups();
        outcomes.add(if self.sleeper().wake() { "woke" } else { "awake" });
    }

    /// As `FramePublisher::publish`.
    fn publish(&self, seq: u64, outcomes: &Outcomes) {
        self.head.store(seq, Ordering::Release);
        self.wake(outcomes);
    }

    fn seen(&self) -> (u64, bool) {
        let (ended, head) = stream_end::read(&self.ended, &self.head);
        (head, ended)
    }

    fn is_unchanged(&self, seen: (u64, bool)) -> bool {
        stream_end::is_unchanged(&self.ended, &self.head, seen)
    }

    /// As `FrameReader::next`: sleeps until the stream is at `wanted`.
    fn wait_for(&self, wanted: (u64, bool)) {
        let bell = Doorbell::default();
        loop {
            let (ticket, expected) = (bell.ticket(), self.sleeper().expected());
            let seen = self.seen();
            if seen == wanted {
                break;
            }
            self.sleeper().sleep(
                expected,
                || self.is_unchanged(seen),
                |wake| bell.wait_or(ticket, wake, None),
            );
        }
    }
}

#[test]
fn sleeping_reader_misses_no_frame() {
    explore(3, ["woke", "awake"], |outcomes| {
        let stream = Arc::new(Stream::default());
        let (publisher, seen) = (stream.clone(), outcomes.clone());
        let publishing = thread::spawn(move || (1..=2).for_each(|n| publisher.publish(n, &seen)));
        stream.wait_for((2, false));
        publishing.join().unwrap();
    });
}

/// The end of the stream comes from another thread than the frames.
#[test]
fn sleeping_reader_misses_neither_frame_nor_end() {
    explore(2, ["woke", "awake"], |outcomes| {
        let stream = Arc::new(Stream::default());
        let (publisher, seen) = (stream.clone(), outcomes.clone());
        let publishing = thread::spawn(move || publisher.publish(1, &seen));
        let (ending, seen) = (stream.clone(), outcomes.clone());
        let ending = thread::spawn(move || {
            stream_end::end(&ending.ended);
            ending.wake(&seen);
        });
        stream.wait_for((1, true));
        publishing.join().unwrap();
        ending.join().unwrap();
    });
}

/// A reader sleeps on its futex and on the doorbell of its interrupt at the same time.
#[test]
fn reader_misses_no_frame_and_no_interrupt() {
    explore(2, ["frame first", "interrupt first", "both", "woke", "awake"], |outcomes| {
        let interrupt = Interrupt::default();
        let stream = Arc::new(Stream::default());
        let (publisher, seen) = (stream.clone(), outcomes.clone());
        let publishing = thread::spawn(move || publisher.publish(1, &seen));
        let other = interrupt.clone();
        let setting = thread::spawn(move || other.set());

        let mut first = None;
        loop {
            let (ticket, expected) = (interrupt.bell().ticket(), stream.sleeper().expected());
            let seen = stream.seen();
            match (interrupt.is_set(), seen.0 == 1) {
                (true, true) => break,
                (true, false) => first = Some("interrupt first"),
                (false, true) => first = Some("frame first"),
                (false, false) => {}
            }
            stream.sleeper().sleep(
                expected,
                || stream.is_unchanged(seen),
                |wake| interrupt.bell().wait_or(ticket, wake, None),
            );
        }
        outcomes.add(first.unwrap_or("both"));
        publishing.join().unwrap();
        setting.join().unwrap();
    });
}

/// As the thread of a connection that notes its end.
#[test]
fn reader_misses_no_doorbell() {
    explore(3, ["slept", "no need"], |outcomes| {
        let shared = Arc::new((AtomicBool::new(false), Doorbell::default()));
        let connection = shared.clone();
        let closing = thread::spawn(move || {
            let (disconnected, bell) = &*connection;
            disconnected.store(true, Ordering::Release);
            bell.ring();
        });
        let (disconnected, bell) = &*shared;
        let mut waits = 0;
        loop {
            let ticket = bell.ticket();
            if disconnected.load(Ordering::Acquire) {
                break;
            }
            bell.wait(ticket, None);
            waits += 1;
        }
        outcomes.add(if waits > 0 { "slept" } else { "no need" });
        closing.join().unwrap();
    });
}
