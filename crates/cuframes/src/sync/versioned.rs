// SPDX-License-Identifier: LGPL-2.1-or-later
//! A list under a lock, and copies of it that are renewed only when it has changed.

use std::sync::Arc;

use super::atomic::{AtomicU64, Ordering};
use super::lock::{Mutex, lock};

/// A state that contains a list.
pub trait HasList<T> {
    /// Returns the list.
    fn list(&self) -> &Arc<[T]>;
}

impl<T> HasList<T> for Arc<[T]> {
    fn list(&self) -> &Arc<[T]> {
        self
    }
}

/// A state under a lock, which contains a list, with a number that changes with the list.
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
    list: Arc<[T]>,
    version: u64,
}

impl<T> Default for Snapshot<T> {
    fn default() -> Self {
        Self { list: Arc::default(), version: 0 }
    }
}

impl<T> Snapshot<T> {
    /// Renews the copy if the list has changed, and returns whether it has.
    pub fn refresh<S: HasList<T>>(&mut self, source: &Versioned<S>) -> bool {
        if source.version() == self.version {
            return false;
        }
        source.with(|state| {
            // It changes under this lock only.
            self.version = source.version();
            self.list = state.list().clone();
        });
        true
    }

    /// Renews the copy and returns the first entry for which `predicate` returns true.
    ///
    /// After an SC fence this finds every entry that was announced before an earlier SC fence; see
    /// [`Versioned::change`].
    pub fn find<S: HasList<T>>(
        &mut self,
        source: &Versioned<S>,
        predicate: impl FnMut(&&T) -> bool,
    ) -> Option<&T> {
        self.refresh(source);
        self.list.iter().find(predicate)
    }

    /// Returns the copy as it is.
    pub fn list(&self) -> &Arc<[T]> {
        &self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type List = Versioned<Arc<[u32]>>;

    fn push(list: &mut Arc<[u32]>, n: u32) {
        *list = list.iter().copied().chain([n]).collect();
    }

    #[test]
    fn snapshot_follows_every_change() {
        let list = List::default();
        let mut copy = Snapshot::default();
        assert!(!copy.refresh(&list) && copy.list().is_empty());
        for n in 0..3 {
            let len = list.change(|list| push(list, n), |list| list.len());
            assert_eq!(len, copy.list().len() + 1);
            assert_eq!(copy.find(&list, |found| **found == n), Some(&n));
        }
        list.change(|list| *list = Arc::new([0, 2]), |_| ());
        assert_eq!(copy.find(&list, |found| **found == 1), None);
        assert_eq!(**copy.list(), [0, 2]);
        assert!(!copy.refresh(&list));
    }

    #[test]
    fn announcement_follows_the_change() {
        let list = List::default();
        let before = list.version();
        list.change(
            |list| push(list, 7),
            |changed| {
                assert_eq!(**changed, [7]);
                assert_ne!(list.version(), before);
            },
        );
    }
}
