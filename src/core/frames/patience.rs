//! How a publisher waits for its subscribers, under the policy that waits.

use std::sync::Arc;
use std::time::Duration;

use super::pool::{Frames, Policy};
use crate::core::board::{Board, Peer};
use crate::core::channel::message::Code;
use crate::core::sync::{AtomicU32, Ordering, fence};
use crate::core::wake;

/// A publisher that waits looks this often for what wakes nobody.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// One wait, for as many subscribers as it takes.
pub(crate) struct Patience<'a> {
    frames: &'a Frames,
    board: &'a Board,
    cancelled: &'a dyn Fn() -> bool,
    deadline: Duration,
    /// Whom to sleep for, and its futex as it was before the last look.
    awaited: Option<(Arc<Peer>, u32)>,
    waiting: Option<Waiting<'a>>,
}

impl<'a> Patience<'a> {
    pub fn new(frames: &'a Frames, board: &'a Board, cancelled: &'a dyn Fn() -> bool) -> Self {
        let deadline = match frames.policy {
            Policy::Drop => Duration::ZERO,
            Policy::Wait(timeout) => wake::now() + timeout,
        };
        Self { frames, board, cancelled, deadline, awaited: None, waiting: None }
    }

    /// To be called after a look at what `peer` holds up. Sleeps until it may have moved, or sends it away
    /// if it had `what` long enough; then comes the next look. False if nobody is to be waited for.
    pub fn wait_for(&mut self, peer: Arc<Peer>, what: &str) -> bool {
        if self.frames.is_closed() || (self.cancelled)() {
            return false;
        }
        let left = self.deadline.saturating_sub(wake::now());
        if left.is_zero() {
            let text = format!(
                "it did not take {what} for as long as the publisher waits: make it faster, or raise wait-timeout of the publisher"
            );
            self.board.kick(&peer, Code::Stalled, text);
            return true;
        }
        let futex = &peer.page.header().futex;
        if let Some((before, seen)) = &self.awaited
            && Arc::ptr_eq(before, &peer)
        {
            // A subscriber that dies wakes nobody, and neither does `cancelled`.
            wake::wait(futex, *seen, Some(left.min(LOOK_AGAIN)));
        }
        let waits = &self.frames.control.header().status.publisher_waits;
        self.waiting.get_or_insert_with(|| Waiting::new(waits));
        // Pairs with the fence in `Shared::moved`: either it sees that we wait and changes the futex, or
        // our next look sees that it moved.
        fence(Ordering::SeqCst);
        let seen = futex.load(Ordering::Acquire);
        self.awaited = Some((peer, seen));
        true
    }
}

/// Says to subscribers, while it lives, that a thread of the publisher may sleep.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
