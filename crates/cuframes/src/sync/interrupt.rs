// SPDX-License-Identifier: LGPL-2.1-or-later
//! Ends the waits of this process: [`Interrupt`] and the [`Doorbell`] that it rings.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use super::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use super::clock::{deadline_after, now};
use super::event::{self, Event};
use super::futex;
use super::lock::OnceLock;

/// Poll interval of an interrupt that has no eventfd.
const RECHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Wakes threads of this process that wait for a publisher.
///
/// It is a counter. A waiter takes a ticket (reads the counter), checks the state, and sleeps only while the
/// counter equals the ticket, so that no ring between the check and the sleep is lost.
#[derive(Debug, Default)]
pub struct Doorbell(AtomicU32);

impl Doorbell {
    /// Wakes all threads that wait with a ticket from before.
    pub fn ring(&self) {
        // SYNC(bell/ticket): Release pairs with the Acquire in `ticket`. Changes from before the ring are
        // visible after a ticket that counts it.
        self.0.fetch_add(1, Ordering::Release);
        futex::wake_all_private(&self.0);
    }

    /// Returns a ticket for a later wait. Take it before checking the state that decides on the wait.
    pub fn ticket(&self) -> u32 {
        // SYNC(bell/ticket): pairs with the Release in `ring`.
        self.0.load(Ordering::Acquire)
    }

    /// Sleeps until the bell rings after `ticket` was taken, or until `timeout` elapses. May return early.
    pub fn wait(&self, ticket: u32, timeout: Option<Duration>) {
        futex::wait_private(&self.0, ticket, timeout);
    }

    /// Sleeps as [`Doorbell::wait`], and also until a word of shared memory differs from the value that is
    /// given with it and is woken.
    pub fn wait_or(&self, ticket: u32, word: (&AtomicU32, u32), timeout: Option<Duration>) {
        futex::wait_either(word, (&self.0, ticket), timeout);
    }
}

/// Ends waits of this process from another thread, also waits in `poll`.
///
/// It stays set until [`Interrupt::clear`]. While it is set, all waits that use it return immediately. A clone is
/// another handle of the same interrupt.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<State>);

#[derive(Debug, Default)]
struct State {
    bell: Arc<Doorbell>,
    set: AtomicBool,
    /// Wakes threads in `poll`. Created on first use, if the process has an fd for it.
    event: OnceLock<Event>,
}

impl Interrupt {
    /// Returns a cleared interrupt that has its eventfd. `Interrupt::default()` needs no fd until the first
    /// `poll`; if the process has none left then, waits in `poll` end up to 20 ms after it is set.
    ///
    /// # Errors
    /// The process or the system has no file descriptors left.
    pub fn new() -> io::Result<Self> {
        let interrupt = Self::default();
        let _ = interrupt.0.event.set(Event::new()?);
        Ok(interrupt)
    }

    /// Sets the interrupt: ends all current and future waits that use it.
    pub fn set(&self) {
        // SYNC(set/is_set): pairs with the Acquire in `is_set`.
        self.0.set.store(true, Ordering::Release);
        // SYNC(interrupt/event): pairs with the fences in `event` and `update_event`. Either this thread sees
        // the event, or the thread that creates the event sees that the interrupt is set. Either this
        // thread writes to the event after it was drained, or the thread that drains it sees that the
        // interrupt is set.
        fence(Ordering::SeqCst);
        if let Some(event) = self.0.event.get() {
            event.set();
        }
        self.0.bell.ring();
    }

    /// Clears the interrupt: future waits block again.
    pub fn clear(&self) {
        // SYNC(set/is_set): pairs with the Acquire in `is_set`.
        self.0.set.store(false, Ordering::Release);
        self.update_event();
    }

    /// Makes the event readable if the interrupt is set, and not readable otherwise.
    ///
    /// Other threads may set and clear the interrupt meanwhile. Afterwards the event is readable if the
    /// interrupt is set. If the interrupt is not set, the event may still be readable, because `set` writes
    /// to it after `clear` has read it. [`Interrupt::poll`] then calls this function again.
    fn update_event(&self) {
        let Some(event) = self.0.event.get() else { return };
        event.reset();
        // SYNC(interrupt/event): pairs with the fence in `set`. If the reset above undid the one of a
        // `set` in another thread, the load below sees that the interrupt is set, unless it was cleared since.
        fence(Ordering::SeqCst);
        if self.is_set() {
            event.set();
        }
    }

    /// Returns whether the interrupt is set.
    pub fn is_set(&self) -> bool {
        // SYNC(set/is_set): pairs with the Release in `set` and `clear`.
        self.0.set.load(Ordering::Acquire)
    }

    /// Sleeps for `time`, or until the interrupt is set. [`Duration::MAX`] sleeps until it is set.
    pub fn sleep(&self, time: Duration) {
        let deadline = deadline_after(time);
        loop {
            let ticket = self.0.bell.ticket();
            let left = deadline.map(|deadline| deadline.saturating_sub(now()));
            if self.is_set() || left.is_some_and(|left| left.is_zero()) {
                return;
            }
            self.0.bell.wait(ticket, left);
        }
    }

    /// Waits until one of the fds is readable, the interrupt is set, or `timeout` elapses. May return early.
    pub fn poll(&self, fds: &[BorrowedFd<'_>], timeout: Duration) {
        let own = self.event();
        let timeout = if own.is_some() { timeout } else { timeout.min(RECHECK_INTERVAL) };
        if event::poll(fds, own, timeout) && !self.is_set() {
            // Otherwise all later polls would return at once.
            self.update_event();
        }
    }

    /// Returns the event, which is readable while the interrupt is set; `None` if the process has no fd left
    /// for it.
    fn event(&self) -> Option<&Event> {
        if self.0.event.get().is_none() {
            let _ = self.0.event.set(Event::new().ok()?);
            // SYNC(interrupt/event): pairs with the fence in `set`.
            fence(Ordering::SeqCst);
            if self.is_set() {
                self.0.event.get()?.set();
            }
        }
        self.0.event.get()
    }

    /// Returns the doorbell that rings when the interrupt is set. A subscriber of this process also rings it
    /// for its own events.
    pub fn bell(&self) -> &Arc<Doorbell> {
        &self.0.bell
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    fn is_readable(interrupt: &Interrupt) -> bool {
        event::poll(&[], interrupt.event(), Duration::ZERO)
    }

    #[test]
    fn event_follows_interrupt() {
        let interrupt = Interrupt::default();
        for _ in 0..3 {
            assert!(!interrupt.is_set() && !is_readable(&interrupt));
            interrupt.set();
            interrupt.set();
            assert!(interrupt.is_set() && is_readable(&interrupt));
            interrupt.clear();
        }
    }

    #[test]
    fn event_is_created_readable_while_interrupt_is_set() {
        let interrupt = Interrupt::default();
        interrupt.set();
        assert!(is_readable(&interrupt));
        // Ends at once.
        interrupt.poll(&[], Duration::MAX);
    }

    #[test]
    fn waits_last_for_their_time_or_until_interrupt_is_set() {
        let interrupt = Interrupt::default();
        // Parts of a millisecond count.
        for time in [Duration::from_micros(300), Duration::from_millis(20)] {
            let begin = now();
            interrupt.sleep(time);
            assert!(now() - begin >= time);
            let begin = now();
            interrupt.poll(&[], time);
            assert!(now() - begin >= time);
        }
        interrupt.poll(&[], Duration::ZERO);
        interrupt.set();
        interrupt.sleep(Duration::MAX);
    }

    /// The steps of `set` and `clear` in the orders in which two threads can execute them.
    #[test]
    fn set_is_not_lost_during_clear() {
        let interrupt = Interrupt::new().unwrap();
        interrupt.set();
        // `set` between the two steps of `clear`.
        interrupt.0.set.store(false, Ordering::Release);
        interrupt.set();
        interrupt.update_event();
        assert!(interrupt.is_set() && is_readable(&interrupt));

        // `clear` between the two steps of `set`: the event stays readable, which ends one poll at most.
        interrupt.clear();
        interrupt.0.event.get().unwrap().set();
        interrupt.poll(&[], Duration::MAX);
        assert!(!interrupt.is_set() && !is_readable(&interrupt));
    }

    /// After concurrent calls of `set` and `clear`, a poll does not sleep while the interrupt is set.
    #[test]
    fn concurrent_set_and_clear_leave_event_readable() {
        const ROUNDS: usize = 20_000;
        let interrupt = Interrupt::new().unwrap();
        let barrier = Barrier::new(2);
        let mut lost = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    barrier.wait();
                    interrupt.set();
                    barrier.wait();
                }
            });
            for _ in 0..ROUNDS {
                interrupt.set();
                barrier.wait();
                interrupt.clear();
                barrier.wait();
                lost += usize::from(interrupt.is_set() && !is_readable(&interrupt));
            }
        });
        assert_eq!(lost, 0);
    }
}
