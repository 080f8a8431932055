// SPDX-License-Identifier: LGPL-2.1-or-later
//! What a publisher knows of a connected subscriber.
//!
//! # Unread file descriptors
//!
//! Linux limits the number of file descriptors in unread messages, for each *sending user*
//! (`RLIMIT_NOFILE`, `ETOOMANYREFS`). Subscribers that do not read could otherwise exhaust it for all publishers
//! of this user. So at most [`MAX_UNREAD_FDS`] are sent to a subscriber before it reads them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use crate::protocol::socket::Socket;
use crate::shm::segments::SubscriberPage;
use crate::sync::atomic::AtomicBool;
use crate::sync::lock;
use crate::types::mode::Mode;
use crate::types::refusal::RefusalReason;
use nix::sys::socket::UnixCredentials;

/// Maximum number of file descriptors that a subscriber has been sent and has not read.
const MAX_UNREAD_FDS: usize = 4;

/// Connected subscribers, in the order in which they joined.
pub(super) type Subscribers = Arc<[Arc<SubscriberHandle>]>;

/// Why a subscriber is refused or evicted: a reason for its program and a text for its user.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) reason: RefusalReason,
    pub(crate) text: String,
}

/// A connected subscriber.
pub(crate) struct SubscriberHandle {
    pub(crate) id: u32,
    pub(crate) socket: Socket,
    pub(crate) page: SubscriberPage,
    /// Maximum number of slots that it may claim at a time.
    pub(crate) credit: u32,
    pub(crate) mode: Mode,
    pub(crate) name: String,
    pub(crate) credentials: UnixCredentials,
    /// Why the subscriber is evicted. The server thread disconnects it.
    pub(super) eviction: Mutex<Option<Refusal>>,
    /// The subscriber takes no more frames, because it leaves or is evicted. It may still hold some.
    pub(crate) draining: AtomicBool,
    /// The claims no longer count, because the subscriber exceeded its credit.
    pub(crate) revoked: AtomicBool,
    pub(super) outbox: Mutex<Outbox>,
}

/// Which announcements a subscriber has been sent.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Number of the last announcement that was sent, or is being sent.
    pub(super) sent: u64,
    /// Chunks that were announced to the subscriber and have been freed since.
    pub(super) retired: VecDeque<u32>,
    /// Number of file descriptors sent since the subscriber was last known to have read all of its messages.
    unread_fds: usize,
    /// A lack of resources was reported.
    pub(super) shortage: bool,
}

impl SubscriberHandle {
    /// The reason for which the subscriber is evicted, if it is.
    pub(crate) fn eviction(&self) -> Option<Refusal> {
        lock(&self.eviction).clone()
    }
}

impl Outbox {
    /// Returns the outbox of a subscriber that has been sent WELCOME, with its two file descriptors.
    pub(super) fn after_welcome() -> Self {
        Self { unread_fds: 2, ..Self::default() }
    }

    /// Counts `fds` more file descriptors, if the subscriber has read enough of the earlier ones.
    pub(super) fn may_send(&mut self, fds: usize, socket: &Socket) -> bool {
        if fds == 0 {
            return true;
        }
        if self.unread_fds + fds > MAX_UNREAD_FDS && socket.is_read_by_peer() {
            self.unread_fds = 0;
        }
        let may = self.unread_fds + fds <= MAX_UNREAD_FDS;
        self.unread_fds += if may { fds } else { 0 };
        may
    }
}
