// SPDX-License-Identifier: LGPL-2.1-or-later
//! Claims, and the list of subscribers whose claims count.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering};

use super::*;
use cuframes::shm::claim::{EMPTY, claim, is_held, publish, release, retire};
use cuframes::sync::versioned::{Snapshot, Versioned};

struct Slot {
    number: Word,
    /// Sequence number of the frame that the pixels belong to.
    pixels: UnsafeCell<u64>,
}

// SAFETY: loom panics if an access to the pixels is not ordered with every write.
unsafe impl Sync for Slot {}

impl Slot {
    fn new() -> Arc<Self> {
        Arc::new(Self { number: Word::new(EMPTY), pixels: UnsafeCell::new(0) })
    }

    fn write(&self, seq: u64) {
        // SAFETY: no other thread accesses the pixels now. This is what the model proves, and loom checks it.
        self.pixels.with_mut(|pixels| unsafe { *pixels = seq });
        publish(&self.number, seq);
    }

    /// Publishes frame `seq` if the slot is free.
    fn reuse(&self, seq: u64, held_by_any: impl FnMut() -> bool) -> bool {
        let free = retire(&self.number, held_by_any);
        if free {
            self.write(seq);
        }
        free
    }

    fn check_pixels(&self, seq: u64) {
        // SAFETY: no thread writes the pixels now; see `write`.
        assert_eq!(self.pixels.with(|pixels| unsafe { *pixels }), seq);
    }

    /// Claims and reads frame `seq` if it is in the slot.
    fn take(&self, held: &Word, seq: u64) -> bool {
        let claimed = claim(&self.number, held, seq);
        if claimed {
            self.check_pixels(seq);
            release(held);
        }
        claimed
    }
}

fn pages(count: usize) -> Vec<Arc<Word>> {
    (0..count).map(|_| Arc::new(Word::new(EMPTY))).collect()
}

/// The publisher reuses the slot as often as possible, and subscribers try every frame. They do not learn the
/// sequence numbers from the publisher, so only the claim orders their reads.
fn reuse_under_subscribers(subscribers: usize, frames: u64, outcomes: &Outcomes) {
    let (slot, pages) = (Slot::new(), pages(subscribers));
    for held in &pages {
        let (slot, held, outcomes) = (slot.clone(), held.clone(), outcomes.clone());
        thread::spawn(move || {
            for seq in 1..=frames {
                let taken = slot.take(&held, seq);
                outcomes.add(if taken { "taken" } else { "gone" });
            }
        });
    }
    let mut seq = 1;
    for _ in 0..frames {
        if slot.reuse(seq, || pages.iter().any(|held| is_held(held))) {
            seq += 1;
            outcomes.add("reused");
        } else {
            outcomes.add("in use");
        }
    }
}

#[test]
fn slot_is_not_written_while_claimed() {
    explore(3, ["taken", "gone", "reused", "in use"], |o| reuse_under_subscribers(1, 3, o));
}

#[test]
fn slot_is_not_written_while_claimed_by_one_of_two_subscribers() {
    explore(2, ["taken", "gone", "reused", "in use"], |o| reuse_under_subscribers(2, 2, o));
}

#[test]
fn frame_in_use_is_put_back_intact() {
    explore(3, ["taken", "gone for a moment", "put back", "retired"], |outcomes| {
        let (slot, pages) = (Slot::new(), pages(2));
        // Started before the frame is written, because the start of a thread would order the pixels too.
        let subscribers = pages.clone().into_iter().map(|held| {
            let (slot, outcomes) = (slot.clone(), outcomes.clone());
            thread::spawn(move || {
                let taken = slot.take(&held, 1);
                outcomes.add(if taken { "taken" } else { "gone for a moment" });
            })
        });
        let subscribers: Vec<_> = subscribers.collect();
        slot.write(1);
        let retired = retire(&slot.number, || pages.iter().any(|held| is_held(held)));
        for subscriber in subscribers {
            subscriber.join().unwrap();
        }
        assert_eq!(slot.take(&pages[0], 1), !retired);
        outcomes.add(if retired { "retired" } else { "put back" });
    });
}

#[test]
fn claim_is_released_by_another_thread() {
    explore(3, ["second taken", "second not there", "reused", "in use"], |outcomes| {
        let (slot, held) = (Slot::new(), Arc::new(Word::new(EMPTY)));
        let head = Arc::new(AtomicU64::new(1));
        slot.write(1);

        let subscriber = {
            let (slot, held, head) = (slot.clone(), held.clone(), head.clone());
            let outcomes = outcomes.clone();
            move || {
                let downstream = claim(&slot.number, &held, 1).then(|| {
                    let (slot, held) = (slot.clone(), held.clone());
                    thread::spawn(move || {
                        slot.check_pixels(1);
                        release(&held);
                    })
                });
                // A second claim on the slot would overwrite the first, which downstream may still hold. A
                // subscriber tries frame 2 in this slot only if it was published there.
                let published = head.load(Ordering::Acquire) == 2;
                let taken = published && slot.take(&held, 2);
                if downstream.is_some() {
                    outcomes.add(if taken { "second taken" } else { "second not there" });
                }
            }
        };
        thread::spawn(subscriber);

        for _ in 0..2 {
            if slot.reuse(2, || is_held(&held)) {
                // As in `FramePublisher::publish`.
                head.store(2, Ordering::Release);
                outcomes.add("reused");
                break;
            }
            outcomes.add("in use");
        }
    });
}

/// As `Registry::add_subscriber`.
fn push(list: &mut Arc<[Arc<Word>]>, subscriber: Arc<Word>) {
    *list = list.iter().cloned().chain([subscriber]).collect();
}

#[test]
fn subscriber_that_joins_or_leaves_is_noticed() {
    explore(3, ["taken", "gone", "reused", "in use"], |outcomes| {
        let slot = Slot::new();
        slot.write(1);
        let registry = Arc::new(Versioned::<Arc<[Arc<Word>]>>::default());
        // One that is there already and claims nothing. The publisher has yet to copy the list.
        registry.change(|list| *list = Arc::new([Arc::new(Word::new(EMPTY))]), |_| ());

        let publisher = {
            let (slot, registry, outcomes) = (slot.clone(), registry.clone(), outcomes.clone());
            move || {
                let mut subscribers = Snapshot::default();
                let mut seq = 2;
                for _ in 0..2 {
                    if slot.reuse(seq, || subscribers.find(&registry, |s| is_held(s)).is_some()) {
                        seq += 1;
                        outcomes.add("reused");
                    } else {
                        outcomes.add("in use");
                    }
                }
            }
        };
        thread::spawn(publisher);

        // The server's thread. WELCOME starts the subscriber, whose end is the end of the connection.
        let held = Arc::new(Word::new(EMPTY));
        let subscriber = {
            let (slot, held, outcomes) = (slot.clone(), held.clone(), outcomes.clone());
            move || {
                for seq in 1..=2 {
                    let taken = slot.take(&held, seq);
                    outcomes.add(if taken { "taken" } else { "gone" });
                }
            }
        };
        let subscriber =
            registry.change(|list| push(list, held.clone()), |_| thread::spawn(subscriber));
        subscriber.join().unwrap();
        registry.change(|list| *list = Arc::new([list[0].clone()]), |_| ());
    });
}
