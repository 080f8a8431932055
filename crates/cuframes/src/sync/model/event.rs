// SPDX-License-Identifier: LGPL-2.1-or-later
//! The eventfd and `poll` under loom.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Condvar, Mutex};

/// Model of an eventfd. Setting and resetting it orders no other memory access.
#[derive(Debug)]
pub struct Event {
    readable: AtomicBool,
    /// For threads in `poll`.
    kernel: Mutex<()>,
    changed: Condvar,
}

impl Event {
    /// Returns an event that is not readable.
    ///
    /// # Errors
    /// None under loom.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            readable: AtomicBool::new(false),
            kernel: Mutex::new(()),
            changed: Condvar::new(),
        })
    }

    /// Makes it readable.
    pub fn set(&self) {
        self.readable.swap(true, Ordering::Relaxed);
        let _kernel = self.kernel.lock().unwrap();
        self.changed.notify_all();
    }

    /// Makes it not readable.
    pub fn reset(&self) {
        self.readable.swap(false, Ordering::Relaxed);
    }

    /// Returns whether it is readable.
    pub fn is_readable(&self) -> bool {
        // A read-modify-write sees the newest value.
        self.readable.fetch_or(false, Ordering::Relaxed)
    }
}

/// Waits until `event` is readable, and returns whether it is. With a timeout below [`Duration::MAX`] it may return at
/// any time. File descriptors are not modelled.
pub fn poll(_fds: &[BorrowedFd<'_>], event: Option<&Event>, timeout: Duration) -> bool {
    let Some(event) = event.filter(|_| timeout == Duration::MAX) else {
        loom::thread::yield_now();
        return event.is_some_and(Event::is_readable);
    };
    let mut kernel = event.kernel.lock().unwrap();
    while !event.is_readable() {
        kernel = event.changed.wait(kernel).unwrap();
    }
    true
}
