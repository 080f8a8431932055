//! How a reader keeps packets that a publisher would overwrite: only under the policy that waits.
//!
//! ```text
//! reader: is_held                           publisher: try_reclaim
//!   next = 0                                  reclaim = position
//!   ── SC fence ──                            ── SC fence ──
//!   reclaim ≤ tail ?  yes: held               any next < position ?  yes: reclaim = tail, and wait
//!                     no:  ask again                                 no:  tail = position, overwrite
//! ```
//!
//! All SC fences have one order. If the reader's is first, the publisher sees where it is, and waits. If
//! the publisher's is first, the reader sees what is being given up, and asks again until that has come
//! to its end: it is given up, and the tail says so, or it is not. From then on the reader's place only
//! moves forward, and the publisher sees one that is too old at most.

use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// Reader: whether a publisher that waits keeps every packet from the tail on that `next`, which was
/// stored before, does not pass. It may be in the middle of a decision; then this has to be asked again.
#[must_use]
pub fn is_held(reclaim: &AtomicU64, tail: &AtomicU64) -> bool {
    // Pairs with the fence in `try_reclaim`: see the head of this file.
    fence(Ordering::SeqCst);
    // Acquire pairs with the Release in `try_reclaim`: the tail is not older than what was taken back.
    let reclaim = reclaim.load(Ordering::Acquire);
    reclaim <= tail.load(Ordering::Relaxed)
}

/// Reader: is done with everything before `position`.
pub fn pass(next: &AtomicU64, position: u64) {
    // Release pairs with the Acquire in `needs_before`: what was copied was copied before the publisher
    // writes there.
    next.store(position, Ordering::Release);
}

/// Publisher: whether the packets from `tail` to `position` can go; if so, they have to. `any_before`
/// looks at every reader with [`needs_before`], and has to take note of those that came in the meantime.
#[must_use]
pub fn try_reclaim(
    reclaim: &AtomicU64,
    tail: u64,
    position: u64,
    any_before: impl FnOnce() -> bool,
) -> bool {
    reclaim.store(position, Ordering::Relaxed);
    // Pairs with the fence in `is_held`: see the head of this file.
    fence(Ordering::SeqCst);
    let wanted = any_before();
    if wanted {
        // Release pairs with the Acquire in `is_held`.
        reclaim.store(tail, Ordering::Release);
    }
    !wanted
}

/// Publisher: whether a reader has still to take a packet before `position`.
#[must_use]
pub fn needs_before(next: &AtomicU64, position: u64) -> bool {
    next.load(Ordering::Acquire) < position
}
