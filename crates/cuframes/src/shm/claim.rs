//! How a slot changes hands: hazard pointers over shared memory.
//!
//! Each slot has one number that the publisher writes: the sequence number of the frame in it, or
//! [`EMPTY`]. Each subscriber has, for each slot, one number that it alone writes: the frame that it
//! reads there, or [`EMPTY`].
//!
//! A subscriber *says what it reads, then looks whether it is still there*; the publisher *takes the
//! frame away, then looks whether anybody reads it*. With a full fence between the two halves on
//! either side, at least one of them sees the other: whichever fence is second in the order of all
//! `SeqCst` fences, the load behind it sees the store before the first. So a slot is never
//! overwritten under a reader, with no lock and no system call.

use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// No frame. Sequence numbers start at 1.
pub const EMPTY: u64 = 0;

/// Subscriber: claims frame `seq` in the slot. On `true` the pixels stay as they are until [`release`].
#[must_use]
pub fn claim(slot: &AtomicU64, held: &AtomicU64, seq: u64) -> bool {
    held.store(seq, Ordering::Relaxed);
    // Pairs with the fence in `retire`: see the head of this file.
    fence(Ordering::SeqCst);
    // Acquire pairs with the Release in `publish` (and the one that puts the number back in
    // `retire`): the pixels and the record were written before it.
    if slot.load(Ordering::Acquire) == seq {
        return true;
    }
    release(held);
    false
}

/// Subscriber: gives the claim back.
pub fn release(held: &AtomicU64) {
    // Release pairs with the Acquire in `is_held`: what was read in the slot was read before the
    // publisher writes there again.
    held.store(EMPTY, Ordering::Release);
}

/// Publisher: whether this subscriber claims the slot. Any number counts, whichever frame it names,
/// so that a subscriber which writes nonsense keeps a slot busy at most.
#[must_use]
pub fn is_held(held: &AtomicU64) -> bool {
    held.load(Ordering::Acquire) != EMPTY
}

/// Publisher: takes the frame out of the slot if nobody reads it. `held_by_any` looks at every
/// subscriber with [`is_held`]; it is called again behind the fence, and has to take note there of
/// subscribers that came in the meantime.
#[must_use]
pub fn retire(slot: &AtomicU64, mut held_by_any: impl FnMut() -> bool) -> bool {
    // Without this look, every attempt on a slot that is in use would make the frame vanish for a
    // moment for a subscriber that is about to claim it.
    if held_by_any() {
        return false;
    }
    // Only the publisher writes this number.
    let seq = slot.load(Ordering::Relaxed);
    slot.store(EMPTY, Ordering::Relaxed);
    // Pairs with the fence in `claim`: see the head of this file.
    fence(Ordering::SeqCst);
    if held_by_any() {
        // The content is untouched, and is found again as after `publish`.
        slot.store(seq, Ordering::Release);
        return false;
    }
    true
}

/// Publisher: the slot holds frame `seq` from now on, its pixels and record are written.
pub fn publish(slot: &AtomicU64, seq: u64) {
    // Release pairs with the Acquire in `claim`.
    slot.store(seq, Ordering::Release);
}
