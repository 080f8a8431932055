// SPDX-License-Identifier: LGPL-2.1-or-later
//! Retention: how a lossless reader keeps packets that the publisher is about to overwrite. Used only under
//! the policy *wait*.
//!
//! ```text
//! reader: is_retained                       publisher: try_reclaim
//!   next = 0                                  reclaim = position
//!   ── SC fence ──                            ── SC fence ──
//!   reclaim ≤ tail ?  yes: retained           any next < position ?  yes: reclaim = tail, and wait
//!                     no:  ask again                                 no:  tail = position, overwrite
//! ```
//!
//! All `SeqCst` fences have one total order; the pair is named SYNC(retain/reclaim).
//!
//! - The reader's fence is first: the publisher sees the reader's position and waits.
//! - The publisher's fence is first: the reader sees the position up to which the publisher reclaims, and asks
//!   again until that decision is complete. Either the packets are gone, which the tail then says, or the
//!   publisher has withdrawn.
//!
//! From then on the reader's position only moves forward, so the publisher sees an outdated position at
//! worst, and waits too long rather than too short. A publisher that has decided to reclaim has to
//! carry it out before its next decision, because the reader waits for the outcome.

use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// Reader: returns whether the publisher retains every packet from the tail on that `next` has not passed.
/// The caller stored `next` before. On `false` the publisher may be in the middle of a decision, and the
/// caller has to ask again.
#[must_use]
pub fn is_retained(reclaim: &AtomicU64, tail: &AtomicU64) -> bool {
    // SYNC(retain/reclaim): pairs with the fence in `try_reclaim`.
    fence(Ordering::SeqCst);
    // SYNC(reclaim/retained): Acquire pairs with the Release in `try_reclaim`. The tail that is loaded next
    // is at least as new as the position that was withdrawn.
    let reclaim = reclaim.load(Ordering::Acquire);
    reclaim <= tail.load(Ordering::Relaxed)
}

/// Reader: gives up everything before `position`.
pub fn advance(next: &AtomicU64, position: u64) {
    // SYNC(advance/needs_before): pairs with the Acquire in `needs_before`. All copies out of the packets
    // precede this store, and the publisher's write there follows the load.
    next.store(position, Ordering::Release);
}

/// Publisher: returns whether the packets from `tail` to `position` can be reclaimed. On `true` the
/// caller has to reclaim them. `any_before` checks every reader with [`needs_before`], and has to include
/// readers that were added in the meantime.
#[must_use]
pub fn try_reclaim(
    reclaim: &AtomicU64,
    tail: u64,
    position: u64,
    any_before: impl FnOnce() -> bool,
) -> bool {
    reclaim.store(position, Ordering::Relaxed);
    // SYNC(retain/reclaim): pairs with the fence in `is_retained`.
    fence(Ordering::SeqCst);
    let wanted = any_before();
    if wanted {
        // SYNC(reclaim/retained): pairs with the Acquire in `is_retained`.
        reclaim.store(tail, Ordering::Release);
    }
    !wanted
}

/// Publisher: returns whether the reader has yet to take a packet before `position`.
#[must_use]
pub fn needs_before(next: &AtomicU64, position: u64) -> bool {
    // SYNC(advance/needs_before): pairs with the Release in `advance`.
    next.load(Ordering::Acquire) < position
}
