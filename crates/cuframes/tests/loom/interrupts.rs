// SPDX-License-Identifier: LGPL-2.1-or-later
//! The interrupt that ends waits of this process.

use std::time::Duration;

use cuframes::Interrupt;
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Waits until the interrupt is set. A poll that misses it never returns.
fn poll_until_set(interrupt: &Interrupt) -> usize {
    let mut polls = 0;
    while !interrupt.is_set() {
        interrupt.poll(&[], Duration::MAX);
        polls += 1;
    }
    polls
}

fn set_in_thread(interrupt: &Interrupt) -> thread::JoinHandle<()> {
    let interrupt = interrupt.clone();
    thread::spawn(move || interrupt.set())
}

/// What the interrupt is set for.
struct Reason(UnsafeCell<u32>);

// SAFETY: loom panics if an access to the cell is not ordered with every write.
unsafe impl Sync for Reason {}

#[test]
fn sleep_ends_when_interrupt_is_set() {
    explore(3, ["done"], |outcomes| {
        let shared = Arc::new((Interrupt::default(), Reason(UnsafeCell::new(0))));
        let other = shared.clone();
        let setting = thread::spawn(move || {
            // SAFETY: the other thread reads it after the interrupt is set.
            other.1.0.with_mut(|reason| unsafe { *reason = 1 });
            other.0.set();
        });
        shared.0.sleep(Duration::MAX);
        // SAFETY: it was written before the interrupt was set.
        assert_eq!(shared.1.0.with(|reason| unsafe { *reason }), 1);
        outcomes.add("done");
        setting.join().unwrap();
    });
}

/// The first poll creates the eventfd.
#[test]
fn first_poll_ends_when_interrupt_is_set() {
    explore(3, ["polled", "not polled"], |outcomes| {
        let interrupt = Interrupt::default();
        let setting = set_in_thread(&interrupt);
        outcomes.add(if poll_until_set(&interrupt) > 0 { "polled" } else { "not polled" });
        setting.join().unwrap();
    });
}

#[test]
fn two_first_polls_end_when_interrupt_is_set() {
    explore(2, ["polled", "not polled"], |outcomes| {
        let interrupt = Interrupt::default();
        let setting = set_in_thread(&interrupt);
        let (other, seen) = (interrupt.clone(), outcomes.clone());
        let polling = thread::spawn(move || {
            seen.add(if poll_until_set(&other) > 0 { "polled" } else { "not polled" });
        });
        outcomes.add(if poll_until_set(&interrupt) > 0 { "polled" } else { "not polled" });
        setting.join().unwrap();
        polling.join().unwrap();
    });
}

#[test]
fn poll_ends_when_interrupt_is_set_during_clear() {
    explore(3, ["set", "cleared"], |outcomes| {
        let interrupt = Interrupt::new().unwrap();
        interrupt.set();
        let setting = set_in_thread(&interrupt);
        interrupt.clear();
        setting.join().unwrap();
        let set = interrupt.is_set();
        outcomes.add(if set { "set" } else { "cleared" });
        if set {
            interrupt.poll(&[], Duration::MAX);
        }
    });
}

#[test]
fn poll_does_not_end_after_clear() {
    explore(3, ["polled", "not polled"], |outcomes| {
        let interrupt = Interrupt::new().unwrap();
        interrupt.set();
        interrupt.clear();
        let setting = set_in_thread(&interrupt);
        outcomes.add(match poll_until_set(&interrupt) {
            0 => "not polled",
            1 => "polled",
            _ => "polled again",
        });
        setting.join().unwrap();
    });
}

/// A `set` that is overtaken by `clear` leaves the event readable while the interrupt is not set. The next poll resets
/// the event, while the interrupt is set once more.
#[test]
fn poll_misses_no_interrupt_while_it_resets_event() {
    explore(3, ["polled", "polled again", "not polled"], |outcomes| {
        let interrupt = Interrupt::new().unwrap();
        let cleared = Arc::new(AtomicBool::new(false));
        // One thread sets it twice, because loom does not order the stores of several threads to one word.
        let (other, continues) = (interrupt.clone(), cleared.clone());
        let setting = thread::spawn(move || {
            other.set();
            while !continues.load(Ordering::Acquire) {
                thread::yield_now();
            }
            other.set();
        });
        interrupt.clear();
        cleared.store(true, Ordering::Release);
        outcomes.add(match poll_until_set(&interrupt) {
            0 => "not polled",
            1 => "polled",
            _ => "polled again",
        });
        setting.join().unwrap();
    });
}
