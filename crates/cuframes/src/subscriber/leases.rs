// SPDX-License-Identifier: LGPL-2.1-or-later
//! Counts the frames that a subscriber holds, and wakes its reader when it has released one.

use std::time::Duration;

use crate::shm::claim;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use crate::sync::interrupt::Doorbell;
use crate::sync::lock::{Mutex, lock};

/// Poll interval of a reader that waits for a device to clear a claim.
const DEVICE_POLL: Duration = Duration::from_micros(50);

/// The frames that a subscriber holds. Its reader adds them, and any thread releases them.
#[derive(Debug, Default)]
pub struct Leases {
    /// Number of frames in use.
    count: AtomicU32,
    /// The reader sleeps, or is about to sleep, until `count` decreases.
    awaits_release: AtomicBool,
    /// Slots of frames in use whose claims a device clears.
    clearing: Mutex<Vec<u32>>,
    /// Length of `clearing`. Written under its lock.
    clearing_count: AtomicU32,
}

impl Leases {
    /// Returns the number of frames in use.
    pub fn count(&self) -> u32 {
        // SYNC(leases/release): pairs with the Release in `release` and `collect_returned`. The claims of frames
        // that are not counted any more are released.
        self.count.load(Ordering::Acquire)
    }

    /// Counts a frame that the reader has claimed.
    pub fn add(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Releases the claim `held` of a frame, and stops counting it. [`Leases::wake_reader`] has to follow.
    pub fn release(&self, held: &AtomicU64) {
        claim::release(held);
        // SYNC(leases/release): pairs with the Acquire in `count`. The claim is released before the count
        // decreases, so a reader that sees the lower count may claim again.
        self.count.fetch_sub(1, Ordering::Release);
    }

    /// Registers that a device is about to clear the claim on `slot`. The frame counts as in use until
    /// [`Leases::collect_returned`] finds the claim cleared. [`Leases::wake_reader`] has to follow.
    ///
    /// Call it before the clearing of the claim is enqueued. Otherwise the publisher could reuse the slot, and the reader
    /// claim it once more, before it is registered; then the frame before would count until the new one is released.
    pub fn hand_over(&self, slot: u32) {
        let mut clearing = lock(&self.clearing);
        clearing.push(slot);
        self.clearing_count.store(clearing.len() as u32, Ordering::Relaxed);
    }

    /// Undoes [`Leases::hand_over`]: the device will not clear the claim. Returns false if the claim was found cleared
    /// nevertheless, so that the frame does not count any more.
    pub fn take_back(&self, slot: u32) -> bool {
        let mut clearing = lock(&self.clearing);
        let Some(at) = clearing.iter().position(|known| *known == slot) else { return false };
        clearing.swap_remove(at);
        self.clearing_count.store(clearing.len() as u32, Ordering::Relaxed);
        true
    }

    /// Wakes the reader if it waits for a frame to be released.
    pub fn wake_reader(&self, bell: &Doorbell) {
        // SYNC(awaits-release/drop): pairs with the fence in `wait_for_release`. Either this load sees that the
        // reader waits, or the reader sees the frame that was released or handed over. The bell rings only for a
        // reader that waits for a release: a ring for each frame would cost a system call and wake readers that
        // wait for the publisher.
        fence(Ordering::SeqCst);
        if self.awaits_release.load(Ordering::Relaxed) {
            bell.ring();
        }
    }

    /// Stops counting the frames whose claims a device has cleared since the last call. `held` returns the claim on a
    /// slot. Returns whether other claims are still to be cleared by a device.
    ///
    /// A thread that calls [`Leases::hand_over`] at the same time may be missed: the load of the count is relaxed. A
    /// reader that is about to sleep orders it with SYNC(awaits-release/drop).
    pub fn collect_returned<'a>(&self, held: impl Fn(u32) -> &'a AtomicU64) -> bool {
        if self.clearing_count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut clearing = lock(&self.clearing);
        clearing.retain(|slot| {
            let is_held = claim::is_held(held(*slot));
            if !is_held {
                // SYNC(leases/release): pairs with the Acquire in `count`.
                self.count.fetch_sub(1, Ordering::Release);
            }
            is_held
        });
        self.clearing_count.store(clearing.len() as u32, Ordering::Relaxed);
        !clearing.is_empty()
    }

    /// Sleeps while `credit` frames are in use, until one is released, the bell rings after `ticket` was taken, or
    /// `timeout` elapses. May return early. `held` returns the claim on a slot.
    pub fn wait_for_release<'a>(
        &self,
        credit: u32,
        held: impl Fn(u32) -> &'a AtomicU64,
        bell: &Doorbell,
        ticket: u32,
        timeout: Option<Duration>,
    ) {
        self.awaits_release.store(true, Ordering::Relaxed);
        // SYNC(awaits-release/drop): pairs with the fence in `wake_reader`. Either the thread that releases a frame
        // sees `awaits_release` and rings, or the checks below see the frame.
        fence(Ordering::SeqCst);
        let clearing = self.collect_returned(held);
        if self.count() >= credit {
            // A device that clears a claim rings no bell, so its claims are polled.
            let step = clearing.then_some(DEVICE_POLL);
            bell.wait(ticket, timeout.into_iter().chain(step).min());
        }
        self.awaits_release.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::{Watchdog, until};

    #[test]
    fn frame_counts_until_its_claim_is_released() {
        let leases = Leases::default();
        let claims = [5, 6, 7].map(AtomicU64::new);
        let held = |slot: u32| &claims[slot as usize];
        claims.iter().for_each(|_| leases.add());
        leases.release(&claims[0]);
        assert_eq!((leases.count(), claims[0].load(Ordering::Relaxed)), (2, claim::EMPTY));
        assert!(!leases.collect_returned(held), "no device clears a claim");
        leases.hand_over(1);
        leases.hand_over(2);
        assert!(leases.collect_returned(held));
        assert_eq!(leases.count(), 2);
        claims[1].store(claim::EMPTY, Ordering::Release);
        assert!(leases.collect_returned(held), "the device has yet to clear the other");
        assert_eq!(leases.count(), 1);
        // The device refuses the other one. The first was found cleared.
        assert!(!leases.take_back(1) && leases.take_back(2) && !leases.take_back(2));
        assert!(!leases.collect_returned(held));
        assert_eq!(leases.count(), 1);
        leases.release(&claims[2]);
        assert_eq!(leases.count(), 0);
    }

    #[test]
    fn release_wakes_a_reader_that_waits_for_it() {
        let _watchdog = Watchdog::new("leases");
        let (leases, bell) = (Leases::default(), Doorbell::default());
        let claims = [5, 6].map(AtomicU64::new);
        let held = |slot: u32| &claims[slot as usize];
        leases.add();
        leases.add();
        let ticket = bell.ticket();
        std::thread::scope(|scope| {
            let wait = || leases.wait_for_release(2, held, &bell, ticket, None);
            let waiting = scope.spawn(wait);
            until(|| leases.awaits_release.load(Ordering::Relaxed));
            leases.release(&claims[0]);
            leases.wake_reader(&bell);
            waiting.join().unwrap();
        });
        assert_eq!(leases.count(), 1);
        // A reader that has credit does not sleep, and one that does not wait is not woken.
        let ticket = bell.ticket();
        leases.wait_for_release(2, held, &bell, ticket, None);
        leases.wake_reader(&bell);
        assert_eq!(bell.ticket(), ticket);
        // A device rings no bell.
        leases.hand_over(1);
        leases.wait_for_release(1, held, &bell, ticket, None);
        claims[1].store(claim::EMPTY, Ordering::Release);
        leases.wait_for_release(1, held, &bell, ticket, None);
        assert_eq!(leases.count(), 0);
    }
}
