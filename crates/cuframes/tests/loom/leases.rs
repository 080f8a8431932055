// SPDX-License-Identifier: LGPL-2.1-or-later
//! The frames that a subscriber holds: released by any thread or by a device, while the reader waits for one.

use cuframes::shm::claim::{EMPTY, claim, is_held, publish, release, retire};
use cuframes::subscriber::leases::Leases;
use cuframes::sync::interrupt::Doorbell;
use loom::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// A subscriber that holds frame 1 in its only slot.
struct Subscriber {
    leases: Leases,
    bell: Doorbell,
    held: Word,
}

impl Subscriber {
    fn new() -> Arc<Self> {
        let subscriber =
            Self { leases: Leases::default(), bell: Doorbell::default(), held: Word::new(1) };
        subscriber.leases.add();
        Arc::new(subscriber)
    }

    fn claim_on(&self, _slot: u32) -> &Word {
        &self.held
    }

    /// As `FrameReader::next` with a credit of 1. Returns how often the reader had to wait.
    fn wait_for_credit(&self) -> usize {
        let mut waits = 0;
        loop {
            let ticket = self.bell.ticket();
            self.leases.collect_returned(|slot| self.claim_on(slot));
            if self.leases.count() < 1 {
                break;
            }
            let held = |slot| self.claim_on(slot);
            self.leases.wait_for_release(1, held, &self.bell, ticket, None);
            waits += 1;
        }
        let claim = self.held.load(Ordering::Relaxed);
        assert_eq!(claim, EMPTY, "the claim of a frame that does not count is released");
        waits
    }
}

#[test]
fn reader_misses_no_released_frame() {
    explore(3, ["waited", "no wait"], |outcomes| {
        let subscriber = Subscriber::new();
        let downstream = subscriber.clone();
        let releasing = thread::spawn(move || {
            downstream.leases.release(&downstream.held);
            downstream.leases.wake_reader(&downstream.bell);
        });
        outcomes.add(if subscriber.wait_for_credit() > 0 { "waited" } else { "no wait" });
        releasing.join().unwrap();
    });
}

#[test]
fn reader_misses_no_frame_that_a_device_releases() {
    explore(3, ["waited", "no wait"], |outcomes| {
        let subscriber = Subscriber::new();
        let downstream = subscriber.clone();
        let releasing = thread::spawn(move || {
            downstream.leases.hand_over(0);
            let device = downstream.clone();
            thread::spawn(move || release(&device.held));
            downstream.leases.wake_reader(&downstream.bell);
        });
        outcomes.add(if subscriber.wait_for_credit() > 0 { "waited" } else { "no wait" });
        releasing.join().unwrap();
    });
}

/// A device releases the frame, the publisher reuses the slot, and the reader claims it again. Then one frame counts.
#[test]
fn frame_that_a_device_released_does_not_count_when_its_slot_is_claimed_again() {
    explore(3, ["claimed again", "not there"], |outcomes| {
        let subscriber = Subscriber::new();
        let slot = Arc::new((Word::new(EMPTY), AtomicU64::new(1)));
        publish(&slot.0, 1);

        let downstream = subscriber.clone();
        let released = thread::spawn(move || {
            downstream.leases.hand_over(0);
            // The device is done at once.
            release(&downstream.held);
            downstream.leases.wake_reader(&downstream.bell);
        });
        let (page, reused) = (subscriber.clone(), slot.clone());
        thread::spawn(move || {
            let (number, head) = &*reused;
            if retire(number, || is_held(&page.held)) {
                publish(number, 2);
                head.store(2, Ordering::Release);
            }
        });

        let (number, head) = &*slot;
        let published = head.load(Ordering::Acquire) == 2;
        subscriber.leases.collect_returned(|slot| subscriber.claim_on(slot));
        if published {
            assert!(claim(number, &subscriber.held, 2));
            subscriber.leases.add();
            assert_eq!(subscriber.leases.count(), 1);
        }
        outcomes.add(if published { "claimed again" } else { "not there" });
        released.join().unwrap();
    });
}
