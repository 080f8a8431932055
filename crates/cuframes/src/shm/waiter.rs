// SPDX-License-Identifier: LGPL-2.1-or-later
//! How a publisher waits for a subscriber.
//!
//! The publisher reads a ticket from the futex word, checks whether the subscriber has made progress, and sleeps while
//! the word equals the ticket. The subscriber makes progress and then raises the word. It saves the system call
//! while the count of waiting threads is 0. The pair is named SYNC(waits/notify):
//!
//! ```text
//! Waiter::step                              notify: something has changed
//!   waits += 1
//!   ── SC fence ──                            ── SC fence ──
//!   ticket = futex                            waits ≠ 0 ?  yes: futex += 1, FUTEX_WAKE
//!   (the caller checks again)
//!   sleep while futex == ticket
//! ```
//!
//! All `SeqCst` fences have one total order. If the waiter's fence is first, the other side sees that a thread waits
//! and raises the word. If the other side's fence is first, the waiter's next check sees the change. Either way the
//! waiter does not sleep past it.

use std::time::Duration;

use crate::sync::atomic::{AtomicU32, Ordering, fence};
use crate::sync::futex;

/// A thread that waits for changes by [`notify`]. It counts in `waits` from its first step until it is dropped.
#[derive(Debug)]
pub struct Waiter<'a> {
    waits: &'a AtomicU32,
    counted: bool,
    /// Value of the futex before the caller's last check.
    ticket: Option<u32>,
}

impl<'a> Waiter<'a> {
    /// Returns a waiter that does not count in `waits` yet.
    pub fn new(waits: &'a AtomicU32) -> Self {
        Self { waits, counted: false, ticket: None }
    }

    /// Sleeps until a change may have happened since the previous step, for `timeout` at most; `None` sleeps until
    /// then. The caller loops: check, `step`, check again.
    ///
    /// The first step does not sleep, because the futex has to be read before the check that decides on the sleep.
    pub fn step(&mut self, futex: &AtomicU32, timeout: Option<Duration>) {
        if let Some(ticket) = self.ticket {
            futex::wait(futex, ticket, timeout);
        }
        if !self.counted {
            self.waits.fetch_add(1, Ordering::Relaxed);
            self.counted = true;
        }
        // SYNC(waits/notify): pairs with the fence in `notify`. Either the other side sees that a thread waits and
        // raises the futex, or the caller's next check sees the change.
        fence(Ordering::SeqCst);
        // SYNC(waits/notify): pairs with the Release in `notify`.
        self.ticket = Some(futex.load(Ordering::Acquire));
    }

    /// Makes the next step the first one on another futex.
    pub fn start_over(&mut self) {
        self.ticket = None;
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if self.counted {
            self.waits.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Wakes the threads that wait with a [`Waiter`] on `waits` and `futex`. Call it after the change.
pub fn notify(waits: &AtomicU32, futex: &AtomicU32) {
    // SYNC(waits/notify): pairs with the fence in `Waiter::step`. Either this load sees that a thread waits, or
    // the thread's next check sees the change.
    fence(Ordering::SeqCst);
    if waits.load(Ordering::Relaxed) != 0 {
        // SYNC(waits/notify): pairs with the Acquire in `Waiter::step`.
        futex.fetch_add(1, Ordering::Release);
        futex::wake_all(futex);
    }
}
