// SPDX-License-Identifier: LGPL-2.1-or-later
//! The publisher waits for a subscriber.

use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::sync::{Condvar, Mutex};

use super::*;

struct Futex {
    word: AtomicU32,
    /// The kernel compares the word and puts the thread to sleep under a lock of its own.
    kernel: Mutex<()>,
    sleepers: Condvar,
}

impl Futex {
    /// Returns false if the word no longer has the `expected` value.
    fn wait(&self, expected: u32) -> bool {
        let guard = self.kernel.lock().unwrap();
        let sleeps = self.word.load(Ordering::Relaxed) == expected;
        if sleeps {
            drop(self.sleepers.wait(guard).unwrap());
        }
        sleeps
    }

    fn wake_all(&self) {
        let _guard = self.kernel.lock().unwrap();
        self.sleepers.notify_all();
    }
}

/// The words of the control segment and of a page that take part.
struct SharedWords {
    publisher_waits: AtomicU32,
    futex: Futex,
    cursor: AtomicU64,
}

impl SharedWords {
    /// Model of `FramePublisher::loan` with `BackpressureWait`, without the timeout: a lost wake-up is a deadlock here.
    fn loan(&self, wanted: u64, outcomes: &Outcomes) {
        let mut awaited = None;
        while self.cursor.load(Ordering::Acquire) < wanted {
            match awaited.take() {
                Some(expected) => {
                    outcomes.add(if self.futex.wait(expected) { "slept" } else { "no need" });
                }
                None => {
                    self.publisher_waits.store(1, Ordering::Relaxed);
                    fence(Ordering::SeqCst);
                    awaited = Some(self.futex.word.load(Ordering::Acquire));
                }
            }
        }
        self.publisher_waits.store(0, Ordering::Relaxed);
    }

    /// Model of a subscriber that takes a frame and notifies the publisher.
    fn take(&self, seq: u64, outcomes: &Outcomes) {
        self.cursor.store(seq, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.publisher_waits.load(Ordering::Relaxed) != 0 {
            self.futex.word.fetch_add(1, Ordering::Release);
            self.futex.wake_all();
            outcomes.add("woke");
        } else {
            outcomes.add("no wake-up needed");
        }
    }
}

#[test]
fn publisher_misses_no_wake_up() {
    explore(3, ["slept", "no need", "woke", "no wake-up needed"], |outcomes| {
        let shared = Arc::new(SharedWords {
            publisher_waits: AtomicU32::new(0),
            futex: Futex {
                word: AtomicU32::new(0),
                kernel: Mutex::new(()),
                sleepers: Condvar::new(),
            },
            cursor: AtomicU64::new(0),
        });
        let (subscriber, seen) = (shared.clone(), outcomes.clone());
        thread::spawn(move || (1..=2).for_each(|seq| subscriber.take(seq, &seen)));
        (1..=2).for_each(|seq| shared.loan(seq, outcomes));
    });
}
