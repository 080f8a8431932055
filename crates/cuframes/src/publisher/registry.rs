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
                // A subscriber without credit was not sent the chunk.
                if subscriber.credit > 0 && outbox.sent >= announcement.number {
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

#[cfg(test)]
mod tests {
    use super::super::handle::tests::{messages, subscriber};
    use super::*;
    use crate::protocol::socket::Socket;
    use crate::types::mode::Mode;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn fd() -> FdOwner {
        Arc::new(EventFd::new().unwrap())
    }

    fn format(generation: u32) -> Message {
        Message::Format { generation, caps: "x".repeat(50_000) }
    }

    fn announce_chunk(registry: &Registry, id: u32) {
        let (device, slots) = ([0; 16], 1);
        let chunk = Message::Chunk { id, kind: 1, device, slots, stride: 4096, size: 1 };
        registry.announce(chunk, Some(fd()));
    }

    /// Adds a subscriber with one frame of credit, or another number.
    fn join(registry: &Registry, id: u32, credit: u32) -> (Arc<SubscriberHandle>, Socket) {
        let (subscriber, peer) = subscriber(id, (Mode::Newest, credit), 1);
        registry.add_subscriber(subscriber.clone());
        (subscriber, peer)
    }

    /// Returns what each message names: `F` a generation, `C` a chunk, `R` a chunk that was freed.
    fn names(messages: &[Message]) -> Vec<(char, u32)> {
        let name = |message: &Message| match message {
            Message::Format { generation, .. } => ('F', *generation),
            Message::Chunk { id, .. } => ('C', *id),
            Message::Retire { chunk } => ('R', *chunk),
            other => panic!("{other:?}"),
        };
        messages.iter().map(name).collect()
    }

    /// Reads the messages that have arrived, and those that are sent afterwards.
    fn read_all(registry: &Registry, of: &SubscriberHandle, peer: &Socket) -> Vec<(char, u32)> {
        let mut all = messages(peer);
        loop {
            let delivery = registry.send_announcements(of);
            assert_ne!(delivery, Delivery::Blocked, "everything was read");
            all.extend(messages(peer));
            if delivery == Delivery::Complete {
                return names(&all);
            }
        }
    }

    /// A full socket delays messages. None is lost, repeated or out of order.
    #[test]
    fn slow_subscriber_gets_every_announcement_in_order() {
        let registry = Registry::new().unwrap();
        let (slow, peer) = join(&registry, 1, 1);
        assert_eq!(registry.send_announcements(&slow), Delivery::Complete);
        announce_chunk(&registry, 1);
        announce_chunk(&registry, 2);
        assert_eq!(registry.send_announcements(&slow), Delivery::Complete);
        assert_eq!(names(&messages(&peer)), [('C', 1), ('C', 2)]);
        (1..=30).for_each(|n| registry.announce(format(n), None));
        assert_eq!(registry.send_announcements(&slow), Delivery::Progress);
        assert_eq!(registry.send_announcements(&slow), Delivery::Blocked);
        for chunk in [1, 2] {
            assert!(registry.announce_retired(chunk).is_some());
            assert!(registry.announce_retired(chunk).is_none(), "it is known to be freed");
            assert_eq!(registry.send_announcements(&slow), Delivery::Blocked);
        }
        let all = read_all(&registry, &slow, &peer);
        let of = |kind| all.iter().filter(|a| a.0 == kind).map(|a| a.1).collect::<Vec<_>>();
        assert_eq!(of('F'), (1..=30).collect::<Vec<_>>());
        assert_eq!(of('R'), [1, 2]);
        assert_eq!(all.len(), 32);
        assert_eq!(registry.send_announcements(&slow), Delivery::Complete);
    }

    #[test]
    fn subscriber_that_reads_nothing_gets_few_fds() {
        let registry = Registry::new().unwrap();
        let (slow, peer) = join(&registry, 1, 1);
        (1..=20).for_each(|id| announce_chunk(&registry, id));
        // WELCOME, which has been read here, had two.
        slow.socket.send(&format(1), &[]).unwrap();
        assert_eq!(registry.send_announcements(&slow), Delivery::Progress);
        assert_eq!(registry.send_announcements(&slow), Delivery::Blocked);
        assert_eq!(names(&messages(&peer)), [('F', 1), ('C', 1), ('C', 2)]);
        assert_eq!(registry.send_announcements(&slow), Delivery::Progress);
        assert_eq!(registry.send_announcements(&slow), Delivery::Blocked);
        let rest: Vec<_> = (3..=20).map(|id| ('C', id)).collect();
        assert_eq!(read_all(&registry, &slow, &peer), rest);
    }

    /// RETIRE follows the CHUNK that it names.
    #[test]
    fn chunk_is_retired_for_subscribers_that_know_it() {
        let registry = Registry::new().unwrap();
        let (knows, its_peer) = join(&registry, 1, 1);
        let (late, late_peer) = join(&registry, 2, 1);
        let (full, full_peer) = join(&registry, 3, 1);
        let (packets_only, packets_peer) = join(&registry, 4, 0);
        registry.announce(format(1), None);
        announce_chunk(&registry, 1);
        assert_eq!(registry.send_announcements(&knows), Delivery::Complete);
        while full.socket.send(&format(9), &[]).is_ok() {}
        while full.socket.send(&Message::Leave, &[]).is_ok() {}
        assert_eq!(registry.send_announcements(&full), Delivery::Blocked);
        assert_eq!(registry.send_announcements(&packets_only), Delivery::Complete);
        registry.announce(format(2), None);
        assert_eq!(registry.send_announcements(&packets_only), Delivery::Complete);

        assert!(registry.announce_retired(1).is_some());
        assert!(registry.announce_retired(7).is_none());
        announce_chunk(&registry, 2);
        let rest = [('F', 1), ('F', 2), ('C', 2)];
        let known = [('F', 1), ('C', 1), ('R', 1), ('F', 2), ('C', 2)];
        assert_eq!(read_all(&registry, &knows, &its_peer), known);
        assert_eq!(read_all(&registry, &late, &late_peer), rest);
        messages(&full_peer);
        assert_eq!(read_all(&registry, &full, &full_peer), rest);
        assert_eq!(read_all(&registry, &packets_only, &packets_peer), rest[..2]);
    }

    #[test]
    fn nothing_is_kept_for_a_subscriber_that_is_gone() {
        let registry = Registry::new().unwrap();
        let (subscriber, peer) = join(&registry, 1, 1);
        registry.announce(format(1), None);
        assert_eq!(registry.send_announcements(&subscriber), Delivery::Complete);
        // The peer has not read everything, which resets the connection.
        drop(peer);
        for n in 2..4 {
            registry.announce(format(n), None);
            assert_eq!(registry.send_announcements(&subscriber), Delivery::Complete);
        }
    }

    #[test]
    fn credits_are_those_of_all_subscribers() {
        let registry = Registry::new().unwrap();
        let mut snapshot = SubscriberSnapshot::default();
        let _peers = [join(&registry, 1, 3), join(&registry, 2, 0), join(&registry, 3, 4)];
        snapshot.refresh(&registry);
        assert_eq!((snapshot.credits(), snapshot.list().len()), (7, 3));
        registry.remove_subscriber(1);
        snapshot.refresh(&registry);
        assert_eq!(snapshot.iter().map(|s| s.id).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(snapshot.credits(), 4);
    }

    #[test]
    fn claims_count_until_they_are_revoked() {
        let registry = Registry::new().unwrap();
        let (subscriber, _peer) = join(&registry, 1, 1);
        let mut snapshot = SubscriberSnapshot::default();
        assert!(!snapshot.hold(&registry, 0));
        subscriber.page.held(0).store(7, Ordering::Relaxed);
        assert!(snapshot.hold(&registry, 0));
        subscriber.revoked.store(true, Ordering::Relaxed);
        assert!(!snapshot.hold(&registry, 0));
    }

    #[test]
    fn first_reason_for_an_eviction_is_kept() {
        let registry = Registry::new().unwrap();
        let (subscriber, _peer) = join(&registry, 1, 1);
        assert!(subscriber.eviction().is_none());
        registry.evict(&subscriber, RefusalReason::Stalled, "first".into());
        registry.evict(&subscriber, RefusalReason::OverCredit, "second".into());
        let eviction = subscriber.eviction().unwrap();
        assert_eq!((eviction.reason, &*eviction.text), (RefusalReason::Stalled, "first"));
        assert!(subscriber.draining.load(Ordering::Relaxed));
    }

    #[test]
    fn outdated_caps_are_forgotten() {
        let registry = Registry::new().unwrap();
        let (early, its_peer) = join(&registry, 1, 1);
        let (late, late_peer) = join(&registry, 2, 1);
        assert_eq!(registry.current_caps().frames, "");
        registry.announce_format(1, "a", &[]);
        registry.announce_track_format(1, 1, "x", &[]);
        registry.announce_track_format(2, 1, "y", &[]);
        assert_eq!(registry.send_announcements(&early), Delivery::Complete);
        // Generation 1 is still in use, then 2 is.
        registry.announce_format(2, "b", &[1]);
        registry.announce_format(3, "c", &[2]);
        registry.announce_track_format(1, 2, "z", &[]);

        let texts = |peer: &Socket| -> Vec<String> {
            let text = |message| match message {
                Message::Format { generation, caps } => format!("{generation} {caps}"),
                Message::TrackFormat { track, generation, caps } => {
                    format!("track {track}: {generation} {caps}")
                }
                other => panic!("{other:?}"),
            };
            messages(peer).into_iter().map(text).collect()
        };
        for subscriber in [&early, &late] {
            assert_eq!(registry.send_announcements(subscriber), Delivery::Complete);
        }
        let news = ["2 b", "3 c", "track 1: 2 z"];
        let before = ["1 a", "track 1: 1 x", "track 2: 1 y"];
        assert_eq!(texts(&its_peer), [before, news].concat());
        assert_eq!(texts(&late_peer), ["track 2: 1 y", "2 b", "3 c", "track 1: 2 z"]);

        let current = registry.current_caps();
        let tracks: Vec<_> = current.tracks.iter().map(|t| (t.track, &*t.caps)).collect();
        assert_eq!((&*current.frames, &tracks[..]), ("c", &[(2, "y"), (1, "z")][..]));
    }

    #[test]
    fn wake_up_of_the_server_lasts_until_it_is_drained() {
        let registry = Registry::new().unwrap();
        let wakes = || {
            let mut fds = [PollFd::new(registry.wake_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
        };
        assert!(!wakes());
        registry.wake_server();
        registry.wake_server();
        assert!(wakes() && wakes());
        registry.drain_wake();
        assert!(!wakes());
        let (subscriber, _peer) = join(&registry, 1, 1);
        registry.evict(&subscriber, RefusalReason::Stalled, String::new());
        assert!(wakes());
        assert!(Arc::ptr_eq(registry.waker(), registry.waker()));
    }
}
