// SPDX-License-Identifier: LGPL-2.1-or-later
//! The end of a stream: a mark that says that nothing follows `head`. The pair is named SYNC(eos/end).
//!
//! ```text
//! publisher: publish      publisher: end      reader: read
//!   mark = 0                mark = 1            mark
//!   head = new                                  head
//! ```
//!
//! A reader that sees the mark also sees the `head` from before the end, because it loads them in this order: it reports
//! the end only behind the last item. A reader that sees a new `head` no longer sees an earlier mark when it reads
//! both again: it reports no end that lies before the items it has taken.

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Publisher: removes the mark, and then calls `store_head`, which stores the new `head` with Release.
pub fn publish_with<R>(mark: &AtomicU32, store_head: impl FnOnce() -> R) -> R {
    // SYNC(eos/end): before `head`, which is stored with Release.
    mark.store(0, Ordering::Relaxed);
    store_head()
}

/// Publisher: removes the mark and sets `head`. Everything before `head` is written.
pub fn publish(mark: &AtomicU32, head: &AtomicU64, new: u64) {
    // SYNC(head/publish): pairs with the Acquire in `read`.
    publish_with(mark, || head.store(new, Ordering::Release));
}

/// Publisher: marks the end of the stream after the last `head` that was stored.
pub fn end(mark: &AtomicU32) {
    // SYNC(eos/end): pairs with the Acquire in `read_with`. The last `head` was stored before.
    mark.store(1, Ordering::Release);
}

/// Reader: returns whether the stream has ended, and the result of `load_head`, which loads `head` with Acquire and may
/// read the items before it. An end that is returned is behind that head or a later one.
pub fn read_with<R>(mark: &AtomicU32, load_head: impl FnOnce() -> R) -> (bool, R) {
    // SYNC(eos/end): pairs with the Release in `end`. Loaded before `head`.
    let ended = mark.load(Ordering::Acquire) != 0;
    (ended, load_head())
}

/// Reader: returns whether the stream is still as a reader has `seen` it: its `head`, and whether it has ended.
pub fn is_unchanged(mark: &AtomicU32, head: &AtomicU64, seen: (u64, bool)) -> bool {
    // SYNC(sleep/wake): the fence of `Sleeper::sleep` precedes these loads.
    (head.load(Ordering::Relaxed), mark.load(Ordering::Relaxed) != 0) == seen
}

/// Reader: returns whether the stream has ended, and `head`. Everything before `head` is visible.
pub fn read(mark: &AtomicU32, head: &AtomicU64) -> (bool, u64) {
    // SYNC(head/publish): pairs with the Release in `publish`.
    read_with(mark, || head.load(Ordering::Acquire))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_lies_behind_the_last_head() {
        let (mark, head) = (AtomicU32::new(0), AtomicU64::new(0));
        assert_eq!(read(&mark, &head), (false, 0));
        publish(&mark, &head, 7);
        assert_eq!(read(&mark, &head), (false, 7));
        end(&mark);
        assert_eq!(read(&mark, &head), (true, 7));
        publish(&mark, &head, 8);
        assert_eq!(read(&mark, &head), (false, 8));
    }

    #[test]
    fn mark_precedes_the_head() {
        let mark = AtomicU32::new(1);
        assert_eq!(publish_with(&mark, || mark.load(Ordering::Relaxed) + 5), 5);
        let loaded = read_with(&mark, || {
            end(&mark);
            7
        });
        assert_eq!(loaded, (false, 7));
        assert_eq!(read_with(&mark, || 9), (true, 9));
    }
}
