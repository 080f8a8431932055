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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::protocol::message::Message;
    use crate::protocol::socket::Received;
    use crate::shm::mapping::{Mapping, Sharing};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    /// Returns the two ends of a connection.
    pub(in crate::publisher) fn connection() -> (Socket, Socket) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let ends = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        (Socket::new(ends.0), Socket::new(ends.1))
    }

    /// Returns a subscriber that has read WELCOME and has a page for `slots`, and its end of the connection.
    pub(in crate::publisher) fn subscriber(
        id: u32,
        (mode, credit): (Mode, u32),
        slots: u32,
    ) -> (Arc<SubscriberHandle>, Socket) {
        let (socket, peer) = connection();
        let size = SubscriberPage::size(slots);
        let (map, _) = Mapping::create("test", size, Sharing::ReadWrite).unwrap();
        let subscriber = SubscriberHandle {
            id,
            credentials: socket.peer().unwrap(),
            socket,
            page: SubscriberPage::new(map, slots),
            credit,
            mode,
            name: format!("subscriber {id}"),
            eviction: Mutex::default(),
            draining: AtomicBool::new(false),
            revoked: AtomicBool::new(false),
            outbox: Mutex::new(Outbox::after_welcome()),
        };
        (Arc::new(subscriber), peer)
    }

    /// Reads the messages that have arrived.
    pub(in crate::publisher) fn messages(peer: &Socket) -> Vec<Message> {
        let next = || match peer.receive(2).unwrap() {
            Received::Message(message, _) => Some(message),
            Received::Nothing | Received::Closed => None,
            Received::Malformed(e) => panic!("{e}"),
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn at_most_four_fds_are_unread() {
        let (socket, peer) = connection();
        let mut outbox = Outbox::after_welcome();
        socket.send(&Message::Leave, &[]).unwrap();
        let mut send = |fds| {
            let may = outbox.may_send(fds, &socket);
            if may {
                socket.send(&Message::Leave, &[]).unwrap();
            }
            may
        };
        // WELCOME, which the first message stands for, has two.
        assert!(send(0) && send(1) && send(1));
        for _ in 0..3 {
            // Messages that are not sent do not count.
            assert!(!send(1) && !send(2) && send(0));
        }
        for _ in 0..3 {
            messages(&peer);
            assert!(send(1) && send(1) && !send(3) && send(2) && !send(1) && send(0));
        }
    }
}
