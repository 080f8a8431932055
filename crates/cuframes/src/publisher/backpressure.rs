//! How a publisher waits for its subscribers, under the policy that waits.

use std::sync::Arc;
use std::time::Duration;

use super::registry::{Registry, SubscriberHandle};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use crate::sync::{clock, futex};
use crate::types::code::RefusalReason;

/// What happens to a new frame when subscribers are not done with the old ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The publisher never waits; a frame for which there is no slot is dropped.
    Drop,
    /// The publisher waits until every strict subscriber has taken a frame before it reuses its slot,
    /// but for one frame no longer than this.
    Wait(Duration),
}

/// How a publisher treats subscribers that are behind.
pub(crate) struct Backpressure {
    pub policy: Policy,
    /// The publisher is gone; only loans are left.
    closed: AtomicBool,
}

impl Backpressure {
    pub fn new(policy: Policy) -> Self {
        Self { policy, closed: AtomicBool::new(false) }
    }

    /// The publisher is gone: nobody waits for subscribers any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// A publisher that waits looks this often for what wakes nobody.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// One wait, for as many subscribers as it takes.
pub(crate) struct BackpressureWait<'a> {
    backpressure: &'a Backpressure,
    waits: &'a AtomicU32,
    registry: &'a Registry,
    cancelled: &'a dyn Fn() -> bool,
    deadline: Duration,
    /// Whom to sleep for, and its futex as it was before the last look.
    awaited: Option<(Arc<SubscriberHandle>, u32)>,
    waiting: Option<Waiting<'a>>,
}

impl<'a> BackpressureWait<'a> {
    pub fn new(
        (backpressure, waits): (&'a Backpressure, &'a AtomicU32),
        registry: &'a Registry,
        cancelled: &'a dyn Fn() -> bool,
    ) -> Self {
        let deadline = match backpressure.policy {
            Policy::Drop => Duration::ZERO,
            Policy::Wait(timeout) => clock::now() + timeout,
        };
        Self { backpressure, waits, registry, cancelled, deadline, awaited: None, waiting: None }
    }

    /// To be called after a look at what `peer` holds up. Sleeps until it may have moved, or sends it away
    /// if it had `what` long enough; then comes the next look. False if nobody is to be waited for.
    pub fn wait_for(&mut self, peer: Arc<SubscriberHandle>, what: &str) -> bool {
        if self.backpressure.is_closed() || (self.cancelled)() {
            return false;
        }
        let left = self.deadline.saturating_sub(clock::now());
        if left.is_zero() {
            let text = format!(
                "it did not take {what} for as long as the publisher waits: make it faster, or raise wait-timeout of the publisher"
            );
            self.registry.kick(&peer, RefusalReason::Stalled, text);
            return true;
        }
        let futex = &peer.page.header().futex;
        if let Some((before, seen)) = &self.awaited
            && Arc::ptr_eq(before, &peer)
        {
            // A subscriber that dies wakes nobody, and neither does `cancelled`.
            futex::wait(futex, *seen, Some(left.min(LOOK_AGAIN)));
        }
        let waits = self.waits;
        self.waiting.get_or_insert_with(|| Waiting::new(waits));
        // Pairs with the fence in `Connection::moved`: either it sees that we wait and changes the futex, or
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
