// SPDX-License-Identifier: LGPL-2.1-or-later
//! Backpressure: the publisher waits for slow subscribers, or evicts them.
//!
//! Under [`Policy::Wait`] a frame that a strict subscriber has yet to take (its `cursor` is smaller than the
//! frame's sequence number) keeps its slot, and a packet that a lossless reader has yet to take keeps its
//! place in the ring. The publisher's thread then sleeps on the futex in that subscriber's page.
//!
//! `publisher_waits` in the control segment counts the publisher's waiting threads. It saves subscribers a
//! system call per frame: they wake the publisher only while the count is not 0. [`waiter`](crate::shm::waiter)
//! says why no wake-up is lost.
//!
//! A subscriber that dies wakes no thread, and neither does a cancelled wait, so the publisher repeats its
//! check every [`RECHECK_INTERVAL`]. A subscriber that takes nothing within the timeout is evicted, and the
//! publisher continues.
//!
//! # How a wait ends early
//!
//! [`Backpressure::close`] ends all waits: a thread of the application may wait in
//! [`Publisher::loan`](super::Publisher::loan) while another thread shuts the publisher down. A single wait
//! ends when its `cancelled` function returns true, which the publisher polls.

use std::sync::Arc;
use std::time::Duration;

use super::handle::SubscriberHandle;
use super::registry::Registry;
use crate::shm::waiter::Waiter;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::clock;
use crate::types::refusal::RefusalReason;

/// How the publisher treats subscribers that are slower than it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The publisher never waits. A frame without a free slot is dropped, and slow subscribers miss frames.
    Drop,
    /// The publisher waits until every strict subscriber has taken a frame before it reuses the frame's slot,
    /// and until every lossless reader has taken a packet before it overwrites the packet. A subscriber that
    /// delays one frame or packet for longer than this is evicted; [`Duration::MAX`] waits forever.
    Wait(Duration),
}

/// The policy, and whether waits have been ended.
#[derive(Debug)]
pub(crate) struct Backpressure {
    pub(crate) policy: Policy,
    closed: AtomicBool,
}

impl Backpressure {
    pub(crate) fn new(policy: Policy) -> Self {
        Self { policy, closed: AtomicBool::new(false) }
    }

    /// Ends all waits, and every wait that begins later.
    pub(crate) fn close(&self) {
        // SYNC(close/is_closed): pairs with the Acquire in `is_closed`.
        self.closed.store(true, Ordering::Release);
    }

    pub(crate) fn is_closed(&self) -> bool {
        // SYNC(close/is_closed): pairs with the Release in `close`.
        self.closed.load(Ordering::Acquire)
    }
}

/// Interval at which a waiting publisher checks for changes that come without a wake-up.
const RECHECK_INTERVAL: Duration = Duration::from_millis(20);

/// The parts of a publisher that a wait needs.
#[derive(Clone, Copy)]
pub(super) struct WaitContext<'a> {
    pub(super) backpressure: &'a Backpressure,
    /// Number of waiting threads, in the control segment.
    pub(super) publisher_waits: &'a AtomicU32,
    pub(super) registry: &'a Registry,
}

/// One wait of the publisher, for as many subscribers as necessary and with one deadline for all of them.
pub(super) struct BackpressureWait<'a> {
    context: WaitContext<'a>,
    cancelled: &'a dyn Fn() -> bool,
    /// `None` for no deadline.
    deadline: Option<Duration>,
    /// The subscriber of the last step.
    awaited: Option<Arc<SubscriberHandle>>,
    waiter: Waiter<'a>,
}

impl<'a> BackpressureWait<'a> {
    pub(super) fn new(context: WaitContext<'a>, cancelled: &'a dyn Fn() -> bool) -> Self {
        let deadline = match context.backpressure.policy {
            Policy::Drop => Some(Duration::ZERO),
            Policy::Wait(timeout) => clock::deadline_after(timeout),
        };
        let waiter = Waiter::new(context.publisher_waits);
        Self { context, cancelled, deadline, awaited: None, waiter }
    }

    /// Sleeps until `subscriber` may have made progress, or evicts it after the timeout of the policy. `what`
    /// names the item for which the publisher waits.
    ///
    /// The caller loops: check, `wait_for`, check again. The first call for a subscriber returns without
    /// sleeping; see [`Waiter::step`]. Returns false when the wait was cancelled or the publisher was closed.
    pub(super) fn wait_for(&mut self, subscriber: Arc<SubscriberHandle>, what: &str) -> bool {
        if self.context.backpressure.is_closed() || (self.cancelled)() {
            return false;
        }
        let left = match self.deadline {
            Some(deadline) => deadline.saturating_sub(clock::now()),
            None => Duration::MAX,
        };
        if left.is_zero() {
            let text = format!(
                "it did not take {what} for as long as the publisher waits: make it faster, or raise wait-timeout of the publisher"
            );
            self.context.registry.evict(&subscriber, RefusalReason::Stalled, text);
            return true;
        }
        if self.awaited.as_ref().is_none_or(|before| !Arc::ptr_eq(before, &subscriber)) {
            self.waiter.start_over();
        }
        self.waiter.step(&subscriber.page.header().futex, Some(left.min(RECHECK_INTERVAL)));
        self.awaited = Some(subscriber);
        true
    }
}
