// SPDX-License-Identifier: LGPL-2.1-or-later
//! Locks under loom.

use std::sync::PoisonError;

use loom::sync::atomic::{AtomicBool, Ordering};

pub use loom::sync::Mutex;

/// A mutex of loom, or one of std in code that is not modelled.
pub trait Lockable {
    /// Unlocks the mutex when it is dropped.
    type Guard<'a>
    where
        Self: 'a;

    /// See [`lock`].
    fn lock_anyway(&self) -> Self::Guard<'_>;
}

impl<T: ?Sized> Lockable for Mutex<T> {
    type Guard<'a>
        = loom::sync::MutexGuard<'a, T>
    where
        T: 'a;

    fn lock_anyway(&self) -> Self::Guard<'_> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized> Lockable for std::sync::Mutex<T> {
    type Guard<'a>
        = std::sync::MutexGuard<'a, T>
    where
        T: 'a;

    fn lock_anyway(&self) -> Self::Guard<'_> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Lockable + ?Sized> Lockable for std::sync::Arc<M> {
    type Guard<'a>
        = M::Guard<'a>
    where
        M: 'a;

    fn lock_anyway(&self) -> Self::Guard<'_> {
        (**self).lock_anyway()
    }
}

/// Locks a mutex, also after a thread panicked while holding it.
pub fn lock<M: Lockable>(mutex: &M) -> M::Guard<'_> {
    mutex.lock_anyway()
}

/// Model of [`std::sync::OnceLock`]: a load may miss a value that was set a moment ago.
#[derive(Debug)]
pub struct OnceLock<T> {
    value: std::sync::OnceLock<T>,
    is_set: AtomicBool,
    setting: Mutex<()>,
}

impl<T> Default for OnceLock<T> {
    fn default() -> Self {
        Self {
            value: std::sync::OnceLock::new(),
            is_set: AtomicBool::new(false),
            setting: Mutex::new(()),
        }
    }
}

impl<T> OnceLock<T> {
    /// Returns the value if it is set.
    pub fn get(&self) -> Option<&T> {
        // Std documents that setting the value happens before this.
        if self.is_set.load(Ordering::Acquire) { self.value.get() } else { None }
    }

    /// Sets the value.
    ///
    /// # Errors
    /// It was set before: returns the new value.
    pub fn set(&self, value: T) -> Result<(), T> {
        let _setting = lock(&self.setting);
        let result = self.value.set(value);
        self.is_set.store(true, Ordering::Release);
        result
    }
}
