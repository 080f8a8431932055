// SPDX-License-Identifier: LGPL-2.1-or-later
//! Mutexes that ignore poisoning. Code that `tests/loom` models takes [`Mutex`] and [`OnceLock`] from here: with
//! `--cfg loom` they are models, too.

#[cfg(loom)]
pub use super::model::lock::{Mutex, OnceLock, lock};
#[cfg(not(loom))]
pub use std::sync::{Mutex, OnceLock};

#[cfg(not(loom))]
use std::sync::{MutexGuard, PoisonError};

/// Locks a mutex, also after a thread panicked while holding it. Use it only for data that is valid between
/// any two statements of the code that changes it.
#[cfg(not(loom))]
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
