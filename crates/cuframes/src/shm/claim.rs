// SPDX-License-Identifier: LGPL-2.1-or-later
//! The claim: how a slot changes hands between publisher and subscribers. Hazard pointers in shared
//! memory, without a lock and without a system call.
//!
//! Each slot has one word that only the publisher writes, its *number*: the sequence number of the frame
//! in the slot, or [`EMPTY`]. Each subscriber has one word for each slot that only the subscriber
//! writes, its *claim*: the sequence number of the frame that it reads there, or [`EMPTY`].
//!
//! ```text
//! subscriber: claim(seq)                    publisher: retire
//!   held[slot] = seq                          if any held[slot] ≠ 0: give up
//!   ── SC fence ──                            slot = 0
//!   slot == seq ?  yes: read the frame        ── SC fence ──
//!                  no:  held[slot] = 0        any held[slot] ≠ 0 ?  yes: slot = seq again
//!                                                                   no:  the publisher owns the slot
//! ```
//!
//! # Why no frame is overwritten while a subscriber reads it
//!
//! All `SeqCst` fences have one total order, and the load after the second fence sees the store before
//! the first.
//!
//! - The subscriber's fence is first: the publisher's second check sees the claim, and the publisher gives
//!   up.
//! - The publisher's fence is first: the subscriber sees [`EMPTY`] or a newer number, and gives up.
//!
//! Both may give up. At most one of them proceeds. The pair is named SYNC(claim/retire).
//!
//! # Putting the number back
//!
//! A publisher that gives up stores the frame's number again. It has not touched the slot, so a subscriber
//! that claims the slot afterwards finds the same frame. Such a claim has read the number that was put back,
//! so its fence is later than the publisher's fence. Each later attempt of the publisher has a fence of its
//! own, and the argument above applies to it.
//!
//! The check before the number is taken away is an optimisation and no part of the argument. Without it,
//! each attempt on a slot in use would make the frame disappear for a moment.
//!
//! A subscriber that claims during such a moment takes the frame for gone. That affects only frames that
//! are about to be reused: it never affects the newest `window` frames, and under the policy *wait* it never
//! affects a frame that a strict subscriber has yet to take.
//!
//! # Releasing
//!
//! The release is a Release store that the publisher's check (Acquire) pairs with: everything that was read
//! in the slot was read before the publisher writes there again. Any thread may release, also long
//! after the subscriber is gone. A GPU may release too: it writes [`EMPTY`] in stream order.
//!
//! # Joining
//!
//! A claim protects a frame only if the publisher checks it. `Registry::add_subscriber` adds the subscriber
//! to the list and raises the registry's version before it sends WELCOME, so the store of the version
//! precedes the subscriber's first claim and the fence of that claim. A publisher whose fence is later
//! sees the new version after its fence and loads the new list; this is why `held_by_any` runs again
//! after the fence and compares the version there.
//!
//! At present a subscriber is added only under the pool's lock, which the publisher also holds in [`retire`],
//! so that `head`, the slots for the new credit and the list change together. The version keeps the
//! claim independent of that.
//!
//! # Leaving
//!
//! The claims of a subscriber count until its connection has ended, unless they were revoked because the
//! subscriber exceeded its credit. A process that dies ends the connection, and a living process ends it when
//! it has dropped its last frame. Nothing else proves that the subscriber no longer reads.
//!
//! # Finding a frame
//!
//! `head` names the newest frame, and the index maps a frame to its slot. An index entry contains the sequence
//! number, so that an outdated entry is recognised, and the claim confirms it. The index has at least as many
//! entries as there are slots, so every frame that is still in a slot can be found.

use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// No frame. Sequence numbers start at 1.
pub const EMPTY: u64 = 0;

/// Subscriber: claims frame `seq` in the slot and returns whether the frame is still there. After `true` the
/// pixels stay unchanged until [`release`].
#[must_use]
pub fn claim(slot: &AtomicU64, held: &AtomicU64, seq: u64) -> bool {
    held.store(seq, Ordering::Relaxed);
    // SYNC(claim/retire): pairs with the fence in `retire`.
    fence(Ordering::SeqCst);
    // SYNC(publish/claim): Acquire pairs with the Release in `publish`, and with the one that puts the
    // number back in `retire`. The pixels and the record were written before it.
    if slot.load(Ordering::Acquire) == seq {
        return true;
    }
    release(held);
    false
}

/// Subscriber: ends the claim.
pub fn release(held: &AtomicU64) {
    // SYNC(release/is_held): pairs with the Acquire in `is_held`. All reads of the slot precede this store, and
    // the publisher's next write to the slot follows the load.
    held.store(EMPTY, Ordering::Release);
}

/// Publisher: returns whether the subscriber claims the slot. Any number counts, whichever frame it
/// names: an invalid number keeps a slot busy and has no other effect.
#[must_use]
pub fn is_held(held: &AtomicU64) -> bool {
    // SYNC(release/is_held): pairs with the Release in `release`.
    held.load(Ordering::Acquire) != EMPTY
}

/// Publisher: removes the frame from the slot if no subscriber reads it, and returns whether it did.
///
/// `held_by_any` checks every subscriber with [`is_held`]. It is called a second time after the fence, and
/// has to include subscribers that were added in the meantime.
#[must_use]
pub fn retire(slot: &AtomicU64, mut held_by_any: impl FnMut() -> bool) -> bool {
    // Avoids that each attempt on a slot in use hides the frame for a moment from a subscriber that is about
    // to claim it.
    if held_by_any() {
        return false;
    }
    // Only the publisher writes this number.
    let seq = slot.load(Ordering::Relaxed);
    slot.store(EMPTY, Ordering::Relaxed);
    // SYNC(claim/retire): pairs with the fence in `claim`.
    fence(Ordering::SeqCst);
    if held_by_any() {
        // SYNC(publish/claim): the content is untouched, and a subscriber finds it as after `publish`.
        slot.store(seq, Ordering::Release);
        return false;
    }
    true
}

/// Publisher: sets the slot's number to `seq`. Pixels and record of that frame are written.
pub fn publish(slot: &AtomicU64, seq: u64) {
    // SYNC(publish/claim): pairs with the Acquire in `claim`.
    slot.store(seq, Ordering::Release);
}
