// SPDX-License-Identifier: LGPL-2.1-or-later
//! Wake-ups of subscribers: a thread that waits for a frame or packet sleeps on a futex of its own, and the
//! publisher wakes only threads that sleep.
//!
//! A process that has mapped a futex, even for reading only, can wake the threads that sleep on it. It can also move
//! them to another futex (`FUTEX_REQUEUE`), which the publisher does not wake. So the futex is in the subscriber's own
//! page, which no other subscriber maps. The page also has the word `sleeping` with one bit for each thread: the publisher saves
//! the system call for threads that are awake.
//!
//! ```text
//! subscriber                                publisher: a new frame, packet or end
//!   expected = futex                          head = …
//!   check: no new item                        ── SC fence ──
//!   sleeping |= bit                           sleeping has the bit ?  yes: sleeping &= !bit
//!   ── SC fence ──                                                         futex += 1, FUTEX_WAKE
//!   check again: no new item
//!   sleep while futex == expected
//!   sleeping &= !bit
//! ```
//!
//! # Why no wake-up is lost
//!
//! All `SeqCst` fences have one total order; the pair is named SYNC(sleep/wake).
//!
//! - The publisher's fence is first: the subscriber's second check sees the new item.
//! - The subscriber's fence is first: the publisher sees the bit, or another thread of the publisher has taken the
//!   bit and is about to change the futex.
//!
//! The thread that takes the bit changes the futex afterwards. The subscriber reads `expected` before it sets the bit. So if
//! the bit was taken after it was set, the futex changes after `expected` was read, and the subscriber does not
//! sleep, or is woken.
//!
//! A subscriber that writes anything else to these words harms only itself: at worst it is not woken, or costs the
//! publisher one system call for each item.

use super::layout::{FRAME_READER, PageHeader};
use crate::sync::atomic::{AtomicU32, Ordering, fence};
use crate::sync::futex;

/// The words with which one thread of a subscriber sleeps.
#[derive(Debug, Clone, Copy)]
pub struct Sleeper<'a> {
    /// [`PageHeader::sleeping`](super::layout::PageHeader::sleeping), or another word in a model.
    pub sleeping: &'a AtomicU32,
    /// Number of the thread's bit in `sleeping`.
    pub bit: u32,
    /// The futex that the thread sleeps on.
    pub futex: &'a AtomicU32,
}

impl<'a> Sleeper<'a> {
    /// Returns the words of the thread that reads frames.
    pub fn of_frames(page: &'a PageHeader) -> Self {
        Self { sleeping: &page.sleeping, bit: FRAME_READER, futex: &page.wake }
    }

    /// Returns the words of the packet reader in entry `entry` of the page.
    ///
    /// # Panics
    /// If there is no such entry.
    pub fn of_packets(page: &'a PageHeader, entry: usize) -> Self {
        let futex = &page.readers[entry].wake;
        Self { sleeping: &page.sleeping, bit: entry as u32, futex }
    }

    fn mask(&self) -> u32 {
        1 << self.bit
    }

    /// Subscriber: returns the value to sleep on. Call it before the check for a new item that precedes
    /// [`Sleeper::sleep`].
    pub fn expected(&self) -> u32 {
        // SYNC(wake/expected): pairs with the Release in `wake`. A thread that reads the value of a wake-up sees the
        // item that caused it, and the cleared bit.
        self.futex.load(Ordering::Acquire)
    }

    /// Subscriber: calls `wait` with the futex and the `expected` value, unless `is_unchanged` returns false: it checks
    /// again for a new item. `wait` sleeps while the futex has that value.
    pub fn sleep(
        &self,
        expected: u32,
        is_unchanged: impl FnOnce() -> bool,
        wait: impl FnOnce((&AtomicU32, u32)),
    ) {
        // SYNC(wake/expected): Release; the value to sleep on was read before. SYNC(reader/register): a publisher that
        // sees the bit also sees the track of this reader.
        self.sleeping.fetch_or(self.mask(), Ordering::Release);
        // SYNC(sleep/wake): pairs with the fence in `before_wakeups`. Either the check below sees the new item, or the
        // publisher sees the bit.
        fence(Ordering::SeqCst);
        if is_unchanged() {
            wait((self.futex, expected));
        }
        // The publisher has cleared the bit of a thread that it woke.
        if self.sleeping.load(Ordering::Relaxed) & self.mask() != 0 {
            self.sleeping.fetch_and(!self.mask(), Ordering::Relaxed);
        }
    }

    /// Publisher: wakes the thread if it sleeps or is about to, and returns whether it did. Call
    /// [`before_wakeups`] after storing the item and before the first call.
    pub fn wake(&self) -> bool {
        if self.sleeping.load(Ordering::Relaxed) & self.mask() == 0 {
            return false;
        }
        // The thread that clears the bit is the one that wakes, so that two threads cost one system call.
        // SYNC(wake/expected): Acquire pairs with the Release in `sleep`, so that the futex changes after the
        // subscriber has read it.
        if self.sleeping.fetch_and(!self.mask(), Ordering::Acquire) & self.mask() == 0 {
            return false;
        }
        // SYNC(wake/expected): pairs with the Acquire in `expected`.
        self.futex.fetch_add(1, Ordering::Release);
        // One thread sleeps on it. Others, of a hostile subscriber, would only cost the publisher time.
        futex::wake_one(self.futex);
        true
    }
}

/// Publisher: orders a new item before the checks of [`Sleeper::wake`].
pub fn before_wakeups() {
    // SYNC(sleep/wake): pairs with the fence in `Sleeper::sleep`.
    fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_is_woken_while_it_sleeps() {
        let (sleeping, futex, other) = (AtomicU32::new(0), AtomicU32::new(7), AtomicU32::new(0));
        let sleeper = Sleeper { sleeping: &sleeping, bit: 3, futex: &futex };
        let neighbour = Sleeper { sleeping: &sleeping, bit: 31, futex: &other };
        let asleep = || sleeping.load(Ordering::Relaxed);
        assert_eq!(sleeper.expected(), 7);
        assert!(!sleeper.wake() && futex.load(Ordering::Relaxed) == 7, "it is awake");
        let mut slept = false;
        let is_unchanged = || {
            assert_eq!(asleep(), 1 << 3, "the check follows the bit");
            true
        };
        sleeper.sleep(7, is_unchanged, |(word, expected)| {
            assert!(std::ptr::eq(word, &futex) && expected == 7);
            assert!(!neighbour.wake());
            assert!(sleeper.wake() && !sleeper.wake(), "it is woken once");
            slept = true;
        });
        assert!(slept);
        assert_eq!((asleep(), sleeper.expected(), neighbour.expected()), (0, 8, 0));
    }

    #[test]
    fn thread_that_wakes_by_itself_takes_its_bit_back() {
        let (sleeping, futex) = (AtomicU32::new(0), AtomicU32::new(0));
        let sleeper = Sleeper { sleeping: &sleeping, bit: 0, futex: &futex };
        // Alone, and while another thread sleeps.
        for others in [0, 1 << 31] {
            sleeping.store(others, Ordering::Relaxed);
            for unchanged in [false, true] {
                let mut slept = false;
                sleeper.sleep(0, || unchanged, |_| slept = true);
                assert_eq!(slept, unchanged);
                assert_eq!(sleeping.load(Ordering::Relaxed), others);
            }
        }
    }
}
