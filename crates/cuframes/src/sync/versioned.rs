// SPDX-License-Identifier: LGPL-2.1-or-later
//! A list under a lock, and copies of it that are renewed only when it has changed.

use super::atomic::{AtomicU64, Ordering};
use super::lock::{Mutex, lock};

/// A state under a lock that contains a list, with a number that changes with the list.
#[derive(Debug, Default)]
pub struct Versioned<S> {
    state: Mutex<S>,
    version: AtomicU64,
}

impl<S> Versioned<S> {
    /// Returns the result of `f`, which reads or changes the state under the lock, but not the list.
    pub fn with<R>(&self, f: impl FnOnce(&mut S) -> R) -> R {
        f(&mut lock(&self.state))
    }

    /// Changes the list, raises the version, and then calls `announce` with the changed state. Both functions are called
    /// under the lock, and must not lock it again.
    ///
    /// `announce` tells another thread or process of the change. If that one executes an SC fence afterwards,
    /// [`Snapshot::find`] after a later SC fence examines the changed list.
    pub fn change<R>(&self, change: impl FnOnce(&mut S), announce: impl FnOnce(&S) -> R) -> R {
        let mut state = lock(&self.state);
        change(&mut state);
        // SYNC(add/version): pairs with the Acquire in `version`. The store precedes the announcement, and so
        // everything that is done because of it.
        self.version.fetch_add(1, Ordering::Release);
        announce(&state)
    }

    /// Returns a number that differs after each change of the list.
    fn version(&self) -> u64 {
        // SYNC(add/version): pairs with the Release in `change`.
        self.version.load(Ordering::Acquire)
    }
}

/// A copy of the list of a [`Versioned`], which keeps the lock off a frequent path.
#[derive(Debug)]
pub struct Snapshot<T> {
    list: Vec<T>,
    version: u64,
}

impl<T> Default for Snapshot<T> {
    fn default() -> Self {
        Self { list: Vec::new(), version: 0 }
    }
}

impl<T: Clone> Snapshot<T> {
    /// Renews the copy if the list has changed, and returns whether it has.
    pub fn refresh<S: AsRef<[T]>>(&mut self, source: &Versioned<S>) -> bool {
        if source.version() == self.version {
            return false;
        }
        source.with(|state| {
            // It changes under this lock only.
            self.version = source.version();
            self.list.clear();
            self.list.extend_from_slice((*state).as_ref());
        });
        true
    }

    /// Renews the copy and returns the first entry for which `predicate` returns true.
    ///
    /// After an SC fence this finds every entry that was announced before an earlier SC fence; see
    /// [`Versioned::change`].
    pub fn find<S: AsRef<[T]>>(
        &mut self,
        source: &Versioned<S>,
        predicate: impl FnMut(&&T) -> bool,
    ) -> Option<&T> {
        self.refresh(source);
        self.list.iter().find(predicate)
    }

    /// Returns the copy as it is.
    pub fn list(&self) -> &[T] {
        &self.list
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn snapshot_follows_every_change() {
        let list = Versioned::<Vec<u32>>::default();
        let mut copy = Snapshot::default();
        assert!(!copy.refresh(&list) && copy.list().is_empty());
        for n in 0..3 {
            let len = list.change(|list| list.push(n), |list| list.len());
            assert_eq!(len, copy.list().len() + 1);
            assert_eq!(copy.find(&list, |found| **found == n), Some(&n));
        }
        list.change(|list| list.retain(|n| *n != 1), |_| ());
        assert_eq!(copy.find(&list, |found| **found == 1), None);
        assert_eq!(copy.list(), [0, 2]);
        assert!(!copy.refresh(&list));
    }

    #[test]
    fn announcement_follows_the_change() {
        let list = Versioned::<Vec<u32>>::default();
        let before = list.version();
        list.change(
            |list| list.push(7),
            |changed| {
                assert_eq!(*changed, [7]);
                assert_ne!(list.version(), before);
            },
        );
    }
}
