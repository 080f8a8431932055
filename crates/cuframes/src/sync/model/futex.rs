// SPDX-License-Identifier: LGPL-2.1-or-later
//! The kernel's futexes under loom.
//!
//! Like the kernel, it compares the words and puts the thread to sleep under a lock of its own, which orders nothing
//! else: the words themselves are loaded and stored without it.

use std::collections::BTreeMap;
use std::ptr::from_ref;
use std::time::Duration;

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Condvar, Mutex};

#[derive(Default)]
struct Kernel {
    /// Number of wake-ups of each word, by its address.
    wake_ups: Mutex<BTreeMap<usize, u64>>,
    changed: Condvar,
}

loom::lazy_static! {
    static ref KERNEL: Kernel = Kernel { wake_ups: Mutex::default(), changed: Condvar::new() };
}

fn key(word: &AtomicU32) -> usize {
    from_ref(word) as usize
}

/// Wakes all threads that sleep on `word`.
pub fn wake_all(word: &AtomicU32) {
    *KERNEL.wake_ups.lock().unwrap().entry(key(word)).or_default() += 1;
    KERNEL.changed.notify_all();
}

/// Wakes one of the threads that sleep on `word`. No more than one sleeps on a word for which this is called.
pub fn wake_one(word: &AtomicU32) {
    wake_all(word);
}

/// Wakes all threads of this process that sleep on `word`.
pub fn wake_all_private(word: &AtomicU32) {
    wake_all(word);
}

/// Sleeps while `word` equals `expected`, until it is woken. With a timeout it may return at any time.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    sleep(&[(word, expected)], timeout);
}

/// Sleeps as [`wait`], on a word of this process.
pub fn wait_private(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    wait(word, expected, timeout);
}

/// Sleeps as [`wait`], on two words at once.
pub fn wait_either(shared: (&AtomicU32, u32), local: (&AtomicU32, u32), timeout: Option<Duration>) {
    sleep(&[shared, local], timeout);
}

fn sleep(words: &[(&AtomicU32, u32)], timeout: Option<Duration>) {
    if timeout.is_some() {
        return loom::thread::yield_now();
    }
    let count = |wake_ups: &BTreeMap<usize, u64>| -> u64 {
        words.iter().map(|(word, _)| wake_ups.get(&key(word)).copied().unwrap_or(0)).sum()
    };
    let mut wake_ups = KERNEL.wake_ups.lock().unwrap();
    if words.iter().any(|(word, expected)| word.load(Ordering::Relaxed) != *expected) {
        return;
    }
    let before = count(&wake_ups);
    while count(&wake_ups) == before {
        wake_ups = KERNEL.changed.wait(wake_ups).unwrap();
    }
}
