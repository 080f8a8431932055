// SPDX-License-Identifier: LGPL-2.1-or-later
//! Registry of connected subscribers, and of every announcement (caps, chunks, tracks) that they receive.
//!
//! # Announcements
//!
//! The registry keeps one list of the announcements that are valid, each with a number. Streaming threads append to
//! the list and never send. The server thread sends: for each subscriber it knows the number up to which
//! announcements were sent, so a subscriber that joins simply begins at the start of the list. An announcement that
//! is no longer valid leaves the list. A subscriber that reads slowly therefore delays only itself, and costs no
//! memory beyond the list.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::slice;
use std::sync::Arc;

use super::handle::{Refusal, SubscriberHandle, Subscribers};
use super::waker::Waker;
use crate::error::{Context, Result};
use crate::protocol::message::Message;
use crate::shm::claim;
use crate::sync::atomic::Ordering;
use crate::sync::lock;
use crate::sync::versioned::{HasList, Snapshot, Versioned};
use crate::types::refusal::RefusalReason;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Result of [`Registry::send_announcements`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// The subscriber has been sent everything, or is gone.
    Complete,
    /// Nothing could be sent now: the subscriber has yet to read its messages, or this process has no resources.
    Blocked,
    /// Something was sent, and the rest could not be sent now.
    Progress,
}

/// Owner of an fd that is sent with a message. The registry keeps it alive for later subscribers.
pub(crate) type FdOwner = Arc<dyn AsFd + Send + Sync>;

/// A message that every subscriber receives. At most one fd belongs to it.
pub(super) struct Announcement {
    number: u64,
    message: Message,
    fd: Option<FdOwner>,
}

#[derive(Default)]
struct State {
    /// Shared with the snapshots of streaming threads.
    subscribers: Subscribers,
    /// The valid announcements, in the order of their numbers.
    announcements: Vec<Arc<Announcement>>,
    /// Number of the last announcement.
    last: u64,
}

/// Caps that are in effect.
pub(crate) struct CurrentCaps {
    /// Caps of the next frame; empty before the first format.
    pub(crate) frames: String,
    pub(crate) tracks: Vec<TrackCaps>,
}

/// Caps of the next packet of a track.
pub(crate) struct TrackCaps {
    pub(crate) track: u32,
    pub(crate) caps: String,
}

impl HasList<Arc<SubscriberHandle>> for State {
    fn list(&self) -> &Subscribers {
        &self.subscribers
    }
}

pub(crate) struct Registry {
    /// The list is that of the subscribers.
    state: Versioned<State>,
    /// Wakes the server thread.
    wake: EventFd,
    waker: Arc<Waker>,
}

impl Registry {
    /// Creates an empty registry.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub(crate) fn new() -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            state: Versioned::default(),
            wake: EventFd::from_flags(flags).context("create an eventfd")?,
            waker: Arc::default(),
        })
    }

    /// Returns the connected subscribers.
    pub(crate) fn subscribers(&self) -> Subscribers {
        self.state.with(|state| state.subscribers.clone())
    }

    /// Adds a subscriber. Send WELCOME to it afterwards: it tells the subscriber that it may claim frames.
    pub(crate) fn add_subscriber(&self, subscriber: Arc<SubscriberHandle>) {
        let add = |state: &mut State| {
            state.subscribers = state.subscribers.iter().cloned().chain([subscriber]).collect();
        };
        self.state.change(add, |_| ());
    }

    /// Removes a subscriber whose connection has ended.
    pub(crate) fn remove_subscriber(&self, id: u32) {
        let remove = |state: &mut State| {
            state.subscribers = state.subscribers.iter().filter(|s| s.id != id).cloned().collect();
        };
        self.state.change(remove, |_| ());
    }

    /// Marks a subscriber for eviction and wakes the server thread, which disconnects it. The first reason is
    /// kept.
    pub(crate) fn evict(&self, subscriber: &SubscriberHandle, reason: RefusalReason, text: String) {
        lock(&subscriber.eviction).get_or_insert(Refusal { reason, text });
        subscriber.draining.store(true, Ordering::Relaxed);
        self.wake_server();
    }

    /// Wakes the subscribers.
    pub(super) fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    /// Wakes the server thread.
    pub(crate) fn wake_server(&self) {
        // An error means that the counter is full, and a full counter wakes the thread too.
        let _ = self.wake.write(1);
    }

    /// Returns the fd that is readable after [`Registry::wake_server`].
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Resets the fd of [`Registry::wake_fd`].
    pub(crate) fn drain_wake(&self) {
        let _ = self.wake.read();
    }

    /// Adds an announcement. The server thread sends it once it is woken up.
    pub(super) fn announce(&self, message: Message, fd: Option<FdOwner>) {
        self.state.with(|state| state.announce(message, fd));
    }

    /// Announces new caps for frames, and forgets those of all generations that are not in `live`.
    pub(super) fn announce_format(&self, generation: u32, caps: &str, live: &[u32]) {
        let message = Message::Format { generation, caps: caps.to_owned() };
        self.replace(
            message,
            |old| matches!(old, Message::Format { generation, .. } if !live.contains(generation)),
        );
    }

    /// Announces new caps of a track, and forgets those of all generations that are not in `live`.
    pub(super) fn announce_track_format(
        &self,
        track: u32,
        generation: u32,
        caps: &str,
        live: &[u32],
    ) {
        let message = Message::TrackFormat { track, generation, caps: caps.to_owned() };
        self.replace(message, |old| {
            matches!(old, Message::TrackFormat { track: of, generation, .. }
                if *of == track && !live.contains(generation))
        });
    }

    /// Adds an announcement, and forgets those for which `is_outdated` returns true.
    fn replace(&self, message: Message, is_outdated: impl Fn(&Message) -> bool) {
        self.state.with(|state| {
            state.announcements.retain(|a| !is_outdated(&a.message));
            state.announce(message, None);
        });
    }

    /// Announces that a chunk was freed. Returns what the registry had of it, to be dropped without a lock.
    pub(super) fn announce_retired(&self, chunk: u32) -> Option<Arc<Announcement>> {
        let is_chunk =
            |message: &Message| matches!(message, Message::Chunk { id, .. } if *id == chunk);
        self.state.with(|state| {
            let at = state.announcements.iter().position(|a| is_chunk(&a.message))?;
            let announcement = state.announcements.remove(at);
            for subscriber in state.subscribers.iter() {
                let mut outbox = lock(&subscriber.outbox);
                if outbox.sent >= announcement.number {
                    outbox.retired.push_back(chunk);
                }
            }
            Some(announcement)
        })
    }

    /// Sends a subscriber its outstanding messages, as far as that is possible without waiting. Only the server
    /// thread calls this function.
    pub(super) fn send_announcements(&self, subscriber: &SubscriberHandle) -> Delivery {
        let mut delivery = Delivery::Blocked;
        loop {
            let next = self.next_message(subscriber);
            let sent = match &next {
                NextMessage::Nothing => return Delivery::Complete,
                NextMessage::Unread => return delivery,
                NextMessage::Retire(chunk) => {
                    subscriber.socket.send(&Message::Retire { chunk: *chunk }, &[])
                }
                NextMessage::Announcement(a, _) => {
                    let fds: Vec<_> = a.fd.iter().map(|fd| fd.as_fd()).collect();
                    subscriber.socket.send(&a.message, &fds)
                }
            };
            match sent {
                Ok(()) => delivery = Delivery::Progress,
                Err(e) if is_disconnected(&e) => return Delivery::Complete,
                Err(e) => {
                    let mut outbox = lock(&subscriber.outbox);
                    match next {
                        NextMessage::Retire(chunk) => outbox.retired.push_front(chunk),
                        NextMessage::Announcement(_, before) => outbox.sent = before,
                        NextMessage::Nothing | NextMessage::Unread => {}
                    }
                    // Anything but a full socket is a lack of resources of this process or its user.
                    if e.kind() != io::ErrorKind::WouldBlock
                        && !std::mem::replace(&mut outbox.shortage, true)
                    {
                        let name = &subscriber.name;
                        tracing::warn!(name, %e, "can't send to a subscriber now: raise the limit of open files (ulimit -n)");
                    }
                    return delivery;
                }
            }
        }
    }

    /// Returns the next message to a subscriber, and counts it as sent.
    fn next_message(&self, subscriber: &SubscriberHandle) -> NextMessage {
        self.state.with(|state| state.next_message(subscriber))
    }

    /// Returns the caps of the newest generation of frames, and of each track that has caps.
    pub(crate) fn current_caps(&self) -> CurrentCaps {
        self.state.with(|state| state.current_caps())
    }
}

impl State {
    fn current_caps(&self) -> CurrentCaps {
        let mut current = CurrentCaps { frames: String::new(), tracks: Vec::new() };
        // Later announcements replace earlier ones.
        for announcement in &self.announcements {
            match &announcement.message {
                Message::Format { caps, .. } => current.frames.clone_from(caps),
                Message::TrackFormat { track, caps, .. } => {
                    current.tracks.retain(|t| t.track != *track);
                    current.tracks.push(TrackCaps { track: *track, caps: caps.clone() });
                }
                _ => {}
            }
        }
        current
    }

    fn next_message(&self, subscriber: &SubscriberHandle) -> NextMessage {
        let mut outbox = lock(&subscriber.outbox);
        let before = outbox.sent;
        if let Some(chunk) = outbox.retired.pop_front() {
            return NextMessage::Retire(chunk);
        }
        let at = self.announcements.partition_point(|a| a.number <= before);
        // A subscriber without credit needs no memory for frames.
        let concerns = |a: &&Arc<Announcement>| {
            subscriber.credit > 0 || !matches!(a.message, Message::Chunk { .. })
        };
        let Some(next) = self.announcements[at..].iter().find(concerns) else {
            return NextMessage::Nothing;
        };
        let fds = usize::from(next.fd.is_some());
        if !outbox.may_send(fds, &subscriber.socket) {
            return NextMessage::Unread;
        }
        outbox.sent = next.number;
        NextMessage::Announcement(next.clone(), before)
    }

    fn announce(&mut self, message: Message, fd: Option<FdOwner>) {
        self.last += 1;
        self.announcements.push(Arc::new(Announcement { number: self.last, message, fd }));
    }
}

/// Result of [`Registry::next_message`].
enum NextMessage {
    Nothing,
    /// The subscriber has to read its messages first.
    Unread,
    Retire(u32),
    /// An announcement, and the number of the one that was sent before.
    Announcement(Arc<Announcement>, u64),
}

fn is_disconnected(e: &io::Error) -> bool {
    let code = e.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN))
}

/// A copy of the registry's list. It keeps the registry's lock off the path of a frame or packet.
#[derive(Default)]
pub(super) struct SubscriberSnapshot {
    copy: Snapshot<Arc<SubscriberHandle>>,
    /// Sum of all credits.
    credits: u32,
}

impl SubscriberSnapshot {
    /// Renews the copy if subscribers were added or removed.
    pub(super) fn refresh(&mut self, registry: &Registry) {
        if self.copy.refresh(&registry.state) {
            self.credits = self.iter().map(|s| s.credit).sum();
        }
    }

    pub(super) fn iter(&self) -> slice::Iter<'_, Arc<SubscriberHandle>> {
        self.copy.list().iter()
    }

    /// The subscribers, for use without the lock that protects this snapshot.
    pub(super) fn list(&self) -> Subscribers {
        self.copy.list().clone()
    }

    /// Sum of the credits of all subscribers.
    pub(super) fn credits(&self) -> u32 {
        self.credits
    }

    /// Renews the copy and returns the first subscriber for which `predicate` returns true.
    ///
    /// After the fence of `claim::retire` or `retention::try_reclaim` this examines every subscriber whose fence is
    /// earlier; see [`Snapshot::find`].
    pub(super) fn find(
        &mut self,
        registry: &Registry,
        predicate: impl Fn(&SubscriberHandle) -> bool,
    ) -> Option<&Arc<SubscriberHandle>> {
        self.refresh(registry);
        self.copy.find(&registry.state, |s| predicate(s))
    }

    /// Renews the copy and returns whether any subscriber claims the slot. Revoked claims do not count.
    pub(super) fn hold(&mut self, registry: &Registry, slot: u32) -> bool {
        let holds = |s: &SubscriberHandle| {
            !s.revoked.load(Ordering::Relaxed) && claim::is_held(s.page.held(slot))
        };
        self.find(registry, holds).is_some()
    }
}
