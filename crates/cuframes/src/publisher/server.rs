// SPDX-License-Identifier: LGPL-2.1-or-later
//! The publisher's server thread: accepts connections, adds and removes subscribers, and detects stalled ones.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::endpoint::Endpoint;
use super::handle::{Outbox, Refusal, SubscriberHandle};
use super::info::{PublisherEvent, SubscriberInfo};
use super::registry::Delivery;
use super::state::State;
use super::status::StatusResponder;
use crate::error::{Context, Error};
use crate::protocol::message::{Hello, Message, VERSIONS};
use crate::protocol::socket::{Received, Socket};
use crate::protocol::wire::Malformed;
use crate::shm::layout::{LAYOUT_VERSION, MAGIC, READER_ANY_TRACK, READER_LOSSLESS};
use crate::shm::mapping::{Mapping, Sharing};
use crate::shm::segments::SubscriberPage;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{clock, lock};
use crate::types::mode::Mode;
use crate::types::refusal::RefusalReason;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, SockFlag, UnixCredentials, accept4, shutdown};

/// Time within which a pending connection has to send HELLO, or receive its status.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of pending connections. Further connections wait in the backlog of the socket.
const MAX_PENDING: usize = 16;
/// Interval at which the progress of subscribers is checked, and memory is freed.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Shortest and longest time after which sending is tried again to a subscriber that has yet to read its messages.
const RESEND_INTERVAL: (Duration, Duration) =
    (Duration::from_millis(1), Duration::from_millis(100));
/// How long a publisher that ends waits for subscribers that read none of their messages.
const LAST_PATIENCE: Duration = Duration::from_millis(100);
/// Time after which a subscriber that holds frames and takes none is reported, while frames are published.
const STALLED_AFTER: Duration = Duration::from_secs(3);

pub(super) struct Server {
    pub(super) state: State,
    pub(super) endpoint: Endpoint,
    /// Users that may subscribe; empty for all.
    pub(super) allowed_uids: Vec<u32>,
    /// Time after which a stalled subscriber is evicted.
    pub(super) stall_timeout: Option<Duration>,
    pub(super) events: Box<dyn Fn(PublisherEvent) + Send + Sync>,
    pub(super) stop: Arc<AtomicBool>,
}

/// A connection that has sent no HELLO yet.
struct Pending {
    socket: Socket,
    deadline: Duration,
}

/// Progress of a subscriber at the last check.
struct Progress {
    cursor: u64,
    head: u64,
    /// Time of the last progress.
    since: Duration,
    reported: bool,
    /// BYE was sent, and the connection is still open.
    dismissed: bool,
}

/// State of the server thread between two iterations.
#[derive(Default)]
struct Session {
    last_id: u32,
    responder: StatusResponder,
    /// No fd was left for a connection. The next attempt follows after `CHECK_INTERVAL` instead of at once.
    exhausted: bool,
    /// Time after which to send again; `None` if all subscribers have been sent everything.
    resend: Option<Duration>,
    /// The pool has something to free or to allocate.
    maintenance: bool,
}

/// Which fds were ready after a poll.
struct Ready {
    listener: bool,
    pending: Vec<bool>,
    /// Events of the subscribers' sockets.
    subscribers: Vec<PollFlags>,
}

impl Server {
    pub(super) fn run(self) {
        let mut pending: Vec<Pending> = Vec::new();
        let mut progress: HashMap<u32, Progress> = HashMap::new();
        let mut session = Session::default();
        // SYNC(stop/run): pairs with the Release in `Publisher::drop`.
        while !self.stop.load(Ordering::Acquire) {
            let subscribers = self.state.registry.subscribers();
            let ready = self.poll(&pending, &subscribers, &session);
            session.exhausted = false;
            let now = clock::now();
            self.state.registry.drain_wake();

            for (subscriber, events) in subscribers.iter().zip(&ready.subscribers) {
                if !listens_to(subscriber) {
                    // Unread messages do not count any more, so the connection ends before they are read.
                    if events.contains(PollFlags::POLLHUP) {
                        self.remove(subscriber);
                    }
                } else if !events.is_empty() {
                    self.handle_message(subscriber);
                }
            }
            let all = std::mem::take(&mut pending).into_iter().enumerate();
            pending = all
                .filter_map(|(at, Pending { socket, deadline })| {
                    let readable = ready.pending.get(at).copied().unwrap_or(false);
                    let socket =
                        if readable { self.handle_pending(socket, &mut session)? } else { socket };
                    // The limit also applies to an observer that keeps asking.
                    (now < deadline).then_some(Pending { socket, deadline })
                })
                .collect();
            if ready.listener && pending.len() < MAX_PENDING {
                match self.accept() {
                    Ok(socket) => pending.push(Pending { socket, deadline: now + HELLO_TIMEOUT }),
                    Err(e) => {
                        tracing::warn!(key = self.state.key, %e, "can't accept a connection");
                        session.exhausted = true;
                    }
                }
            }
            for subscriber in self.state.registry.subscribers().iter() {
                self.check_progress(subscriber, progress.entry(subscriber.id), now);
            }
            session.maintenance = self.state.frames.maintain(now);
            let subscribers = self.state.registry.subscribers();
            session.resend = self.send_announcements(&subscribers, session.resend);
            progress.retain(|id, _| subscribers.iter().any(|s| s.id == *id));
        }
        self.send_outstanding();
        let text = format!("the publisher of '{}' ends", self.state.key);
        let bye = Message::Bye { reason: RefusalReason::Closing, text };
        for subscriber in self.state.registry.subscribers().iter() {
            let _ = subscriber.socket.send(&bye, &[]);
            // Reports the end also if there was no room for BYE.
            let _ = shutdown(subscriber.socket.as_fd().as_raw_fd(), Shutdown::Write);
        }
        self.state.registry.waker().stop();
    }

    /// Sends what the last frames and packets refer to, as long as subscribers read.
    fn send_outstanding(&self) {
        let subscribers = self.state.registry.subscribers();
        let mut patience = LAST_PATIENCE;
        while let Some(resend) = self.send_announcements(&subscribers, Some(RESEND_INTERVAL.0)) {
            // The shorter interval says that a subscriber has read something.
            patience = if resend == RESEND_INTERVAL.0 { LAST_PATIENCE } else { patience };
            if patience.is_zero() {
                return;
            }
            patience = patience.saturating_sub(RESEND_INTERVAL.0);
            std::thread::sleep(RESEND_INTERVAL.0);
        }
    }

    /// Sends announcements to all subscribers. Returns the time after which to send again, if that is necessary:
    /// twice the last one while no subscriber reads.
    fn send_announcements(
        &self,
        subscribers: &[Arc<SubscriberHandle>],
        last: Option<Duration>,
    ) -> Option<Duration> {
        let mut resend = None;
        for subscriber in subscribers {
            // An evicted subscriber gets BYE, and one that has left reads nothing.
            if subscriber.draining.load(Ordering::Relaxed) {
                continue;
            }
            match self.state.registry.send_announcements(subscriber) {
                Delivery::Complete => {}
                Delivery::Progress => resend = Some(RESEND_INTERVAL.0),
                Delivery::Blocked => {
                    let doubled = last.map_or(RESEND_INTERVAL.0, |last| last * 2);
                    resend.get_or_insert(doubled.min(RESEND_INTERVAL.1));
                }
            }
        }
        resend
    }

    fn poll(
        &self,
        pending: &[Pending],
        subscribers: &[Arc<SubscriberHandle>],
        session: &Session,
    ) -> Ready {
        let listening = pending.len() < MAX_PENDING && !session.exhausted;
        let mut fds = vec![PollFd::new(self.state.registry.wake_fd(), PollFlags::POLLIN)];
        let accept = if listening { PollFlags::POLLIN } else { PollFlags::empty() };
        fds.push(PollFd::new(self.endpoint.listener.as_fd(), accept));
        fds.extend(pending.iter().map(|p| PollFd::new(p.socket.as_fd(), PollFlags::POLLIN)));
        // The end of a connection is always reported.
        let events = |s: &SubscriberHandle| match listens_to(s) {
            true => PollFlags::POLLIN,
            false => PollFlags::empty(),
        };
        fds.extend(subscribers.iter().map(|s| PollFd::new(s.socket.as_fd(), events(s))));
        let idle = pending.is_empty() && subscribers.is_empty();
        let timeout = match session.resend {
            Some(resend) => Some(resend),
            None if idle && !session.exhausted && !session.maintenance => None,
            None => Some(CHECK_INTERVAL),
        };
        let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
            PollTimeout::try_from(timeout).expect("half a second is a timeout")
        });
        let polled = poll(&mut fds, timeout);
        if polled.is_err_and(|e| e != Errno::EINTR) {
            // No memory, or more fds than the limit now allows. Both may pass.
            std::thread::sleep(CHECK_INTERVAL);
        }
        let mut events = fds[1..].iter().map(|fd| match polled {
            Ok(_) => fd.revents().unwrap_or(PollFlags::empty()),
            Err(_) => PollFlags::empty(),
        });
        Ready {
            listener: events.next().is_some_and(|events| !events.is_empty()),
            pending: events.by_ref().take(pending.len()).map(|events| !events.is_empty()).collect(),
            subscribers: events.collect(),
        }
    }

    /// Reports an event to the application. A panic there is logged, and the server continues.
    fn emit(&self, event: PublisherEvent) {
        let emit = std::panic::AssertUnwindSafe(|| (self.events)(event));
        if std::panic::catch_unwind(emit).is_err() {
            tracing::error!(key = self.state.key, "the receiver of an event panicked");
        }
    }

    fn accept(&self) -> io::Result<Socket> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = accept4(self.endpoint.listener.as_raw_fd(), flags)?;
        // SAFETY: `accept4` has created the fd, and no other owner exists.
        Ok(Socket::new(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Handles the first message of a connection: HELLO or STATUS_REQUEST. Returns the socket if the
    /// connection is still pending.
    fn handle_pending(&self, socket: Socket, session: &mut Session) -> Option<Socket> {
        let refuse = |reason, text: String| Refusal { reason, text };
        let (socket, refusal) = match socket.receive(0) {
            Ok(Received::Nothing) => return Some(socket),
            Ok(Received::Closed) | Err(_) => return None,
            Ok(Received::Message(Message::Hello(hello), _)) => {
                self.accept_subscriber(socket, hello, session);
                return None;
            }
            Ok(Received::Message(Message::StatusRequest { versions, from }, _)) => {
                let version = self.authorize(&socket).and_then(|_| negotiate("observer", versions));
                match version {
                    Ok(version) => {
                        let done = session.responder.respond(&self.state, &socket, version, from);
                        return (!done).then_some(socket);
                    }
                    Err(refusal) => (socket, refusal),
                }
            }
            Ok(Received::Message(..)) => (
                socket,
                refuse(
                    RefusalReason::Malformed,
                    "the first message has to be HELLO or STATUS_REQUEST: run the same version of cuframes on both sides".into(),
                ),
            ),
            Ok(Received::Malformed(e @ Malformed::Versions(..))) => {
                let text = format!(
                    "{e}, the publisher {} to {}: update the older one",
                    VERSIONS.start(),
                    VERSIONS.end()
                );
                (socket, refuse(RefusalReason::Version, text))
            }
            Ok(Received::Malformed(e)) => (socket, refuse(RefusalReason::Malformed, e.to_string())),
        };
        self.refuse(&socket, refusal);
        None
    }

    fn refuse(&self, socket: &Socket, Refusal { reason, text }: Refusal) {
        tracing::info!(key = self.state.key, text, "refused a connection");
        let _ = socket.send(&Message::Refused { reason, text }, &[]);
    }

    /// Returns the credentials of the peer if its user may connect.
    fn authorize(&self, socket: &Socket) -> Result<UnixCredentials, Refusal> {
        let credentials = socket.peer().map_err(out_of_resources)?;
        let uid = credentials.uid();
        if !self.allowed_uids.is_empty() && !self.allowed_uids.contains(&uid) {
            let text =
                format!("it does not serve this user: add {uid} to allowed-uids of the publisher");
            return Err(Refusal { reason: RefusalReason::Denied, text });
        }
        Ok(credentials)
    }

    /// Adds the subscriber that sent `hello`, or refuses it.
    fn accept_subscriber(&self, socket: Socket, hello: Hello, session: &mut Session) {
        let admission = match self.check_hello(&socket, &hello) {
            Ok(admission) => admission,
            Err(refusal) => return self.refuse(&socket, refusal),
        };
        session.last_id = session.last_id.wrapping_add(1);
        let id = session.last_id;
        let Admission { credentials, version, page, page_fd } = admission;
        let Hello { credit, mode, name, .. } = hello;
        let subscriber = Arc::new(SubscriberHandle {
            id,
            socket,
            page,
            credit,
            mode,
            name,
            credentials,
            eviction: Mutex::default(),
            draining: AtomicBool::new(false),
            revoked: AtomicBool::new(false),
            outbox: Mutex::new(Outbox::after_welcome()),
        });
        let frames = &self.state.frames;
        let welcome = Message::Welcome {
            version,
            epoch: self.state.epoch,
            id,
            slots: frames.slots.control.slots(),
            index: frames.index_len,
        };
        let added = frames.register_between_frames(credit, |head| {
            let h = subscriber.page.header();
            // A strict subscriber receives every frame from here on, and a publisher that waits, waits for it.
            h.cursor.store(head, Ordering::Relaxed);
            h.joined_ns.store(clock::now_ns() as u64, Ordering::Relaxed);
            // SYNC(magic/open): pairs with the Acquire of the subscriber that opens the page.
            h.magic.store(MAGIC, Ordering::Release);
            self.state.registry.add_subscriber(subscriber.clone());
        });
        let welcomed = added.and_then(|()| {
            let fds = [frames.control_fd.as_fd(), page_fd.as_fd()];
            let sent = subscriber.socket.send(&welcome, &fds);
            sent.inspect_err(|_| self.forget(id)).context("send WELCOME")
        });
        if let Err(e) = welcomed {
            // Without WELCOME it has no page, and so no claims.
            let refusal = match e {
                // The page took the last fd, or the messages that other subscribers have yet to read have too many. The
                // refusal is the same as without an fd for the page.
                Error::System { source, .. } if is_out_of_fds(&source) => out_of_resources(source),
                e => Refusal { reason: RefusalReason::NoMemory, text: e.to_string() },
            };
            return self.refuse(&subscriber.socket, refusal);
        }
        tracing::info!(
            key = self.state.key,
            name = subscriber.name,
            pid = credentials.pid(),
            "subscriber joined"
        );
        let registry = &self.state.registry;
        if let Err(e) = registry.waker().start(registry.subscribers().len()) {
            tracing::warn!(key = self.state.key, %e, "streaming threads wake all subscribers");
        }
        self.emit(PublisherEvent::SubscriberAdded(SubscriberInfo::of(&subscriber)));
    }

    /// Checks whether the sender of `hello` may join, and creates its page.
    fn check_hello(&self, socket: &Socket, hello: &Hello) -> Result<Admission, Refusal> {
        let State { max_subscribers, max_frames_per_subscriber, .. } = self.state;
        let credentials = self.authorize(socket)?;
        let version = negotiate("subscriber", hello.versions)?;
        if hello.credit > max_frames_per_subscriber {
            let text = format!(
                "it asks for {} frames at a time (max-frames), more than the publisher's max-frames-per-subscriber={max_frames_per_subscriber}: lower the one or raise the other",
                hello.credit
            );
            return Err(Refusal { reason: RefusalReason::OverCredit, text });
        }
        if self.state.registry.subscribers().len() >= max_subscribers as usize {
            let text = format!(
                "all {max_subscribers} places are taken: raise max-subscribers of the publisher, or stop a subscriber"
            );
            return Err(Refusal { reason: RefusalReason::Full, text });
        }
        let slots = self.state.frames.slots.control.slots();
        let size = SubscriberPage::size(slots);
        let (map, page_fd) = Mapping::create("cuframes-subscriber", size, Sharing::ReadWrite)
            .map_err(out_of_resources)?;
        let page = SubscriberPage::new(map, slots);
        let h = page.header();
        h.version.store(LAYOUT_VERSION, Ordering::Relaxed);
        h.slots.store(slots, Ordering::Relaxed);
        if hello.mode == Mode::Strict && hello.credit == 0 {
            // Packets are retained from here on, before the subscriber says which track it reads.
            let any = READER_LOSSLESS | READER_ANY_TRACK;
            h.readers[0].track.store(any, Ordering::Relaxed);
        }
        Ok(Admission { credentials, version, page, page_fd })
    }

    /// Handles a message of a subscriber to which the server listens. After HELLO a subscriber sends LEAVE at
    /// most, and then closes the connection.
    fn handle_message(&self, subscriber: &SubscriberHandle) {
        match subscriber.socket.receive(0) {
            // An error means that there is no memory for a message, and says nothing about the subscriber.
            Ok(Received::Nothing) | Err(_) => {}
            Ok(Received::Message(Message::Leave, _)) => {
                subscriber.draining.store(true, Ordering::Relaxed);
            }
            Ok(Received::Closed) => self.remove(subscriber),
            Ok(Received::Message(..) | Received::Malformed(_)) => {
                let text =
                    "it sent an unexpected message: run the same version of cuframes on both sides";
                let reason = RefusalReason::Malformed;
                self.state.registry.evict(subscriber, reason, text.into());
            }
        }
    }

    /// Removes a subscriber whose connection has ended: its process has exited, or has released every frame, so
    /// its claims no longer count.
    fn remove(&self, subscriber: &SubscriberHandle) {
        self.forget(subscriber.id);
        tracing::info!(key = self.state.key, name = subscriber.name, "subscriber left");
        let reason = subscriber.eviction().map(|eviction| eviction.text);
        let info = SubscriberInfo::of(subscriber);
        self.emit(PublisherEvent::SubscriberRemoved(info, reason));
    }

    /// Takes a subscriber off all lists. The caller has the last reference, so that page and socket are closed
    /// without a lock.
    fn forget(&self, id: u32) {
        self.state.registry.remove_subscriber(id);
        self.state.frames.refresh_subscribers();
        for track in lock(&self.state.tracks).iter() {
            track.refresh_subscribers();
        }
    }

    /// Disconnects an evicted subscriber, and reports or evicts a stalled one.
    fn check_progress(
        &self,
        subscriber: &SubscriberHandle,
        progress: Entry<'_, u32, Progress>,
        now: Duration,
    ) {
        let cursor = subscriber.page.header().cursor.load(Ordering::Relaxed);
        let head = self.state.frames.slots.control.header().head.load(Ordering::Relaxed);
        let fresh = || Progress { cursor, head, since: now, reported: false, dismissed: false };
        let last = progress.or_insert_with(fresh);
        if let Some(Refusal { reason, text }) = subscriber.eviction() {
            if !last.dismissed {
                // The connection stays open until the subscriber closes it. Only that proves that the process no
                // longer reads its frames.
                let _ = subscriber.socket.send(&Message::Bye { reason, text }, &[]);
                let _ = shutdown(subscriber.socket.as_fd().as_raw_fd(), Shutdown::Write);
                last.dismissed = true;
            }
            return;
        }
        // A subscriber that leaves takes no more frames, and is not stalled.
        let held = subscriber.page.count_held();
        let held = if subscriber.draining.load(Ordering::Relaxed) { 0 } else { held };
        if last.cursor != cursor || head == last.head || held == 0 {
            *last = fresh();
            return;
        }
        let stalled = now.saturating_sub(last.since);
        if stalled >= STALLED_AFTER && !last.reported {
            last.reported = true;
            tracing::warn!(
                key = self.state.key,
                name = subscriber.name,
                held,
                "subscriber is stalled"
            );
            self.emit(PublisherEvent::SubscriberStalled(SubscriberInfo::of(subscriber)));
        }
        if self.stall_timeout.is_some_and(|timeout| stalled >= timeout) {
            let text = format!(
                "it held {held} frames and took none for {} s: find out what blocks it, or raise stall-timeout of the publisher",
                stalled.as_secs()
            );
            self.state.registry.evict(subscriber, RefusalReason::Stalled, text);
        }
    }
}

/// Returns whether messages of a subscriber are read. After LEAVE and after an eviction only the end of the
/// connection counts, so a subscriber that continues to send costs no CPU time.
fn listens_to(subscriber: &SubscriberHandle) -> bool {
    !subscriber.draining.load(Ordering::Relaxed)
}

/// Results of [`Server::check_hello`].
struct Admission {
    credentials: UnixCredentials,
    /// Version of the protocol to use.
    version: u16,
    page: SubscriberPage,
    page_fd: OwnedFd,
}

/// Returns the newest version of the protocol that both sides have.
fn negotiate(peer: &str, (first, last): (u16, u16)) -> Result<u16, Refusal> {
    let (oldest, newest) = (*VERSIONS.start(), *VERSIONS.end());
    if first > newest || last < oldest {
        let text = format!(
            "the {peer} speaks versions {first} to {last} of the protocol, the publisher {oldest} to {newest}: update the older one"
        );
        return Err(Refusal { reason: RefusalReason::Version, text });
    }
    Ok(last.min(newest))
}

fn is_out_of_fds(e: &io::Error) -> bool {
    let code = e.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::EMFILE | Errno::ENFILE | Errno::ETOOMANYREFS))
}

/// Returns the refusal of a subscriber for which the publisher has no resources.
fn out_of_resources(e: io::Error) -> Refusal {
    Refusal {
        reason: RefusalReason::NoMemory,
        text: format!(
            "the publisher has no memory or file descriptors left ({e}): raise its limits (ulimit -n), or stop something"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::backpressure::Policy;
    use super::super::endpoint::SocketAccess;
    use super::super::frames::{FramePublisher, FramePublisherConfig};
    use super::super::handle::tests::{connection, messages, subscriber};
    use super::super::registry::Registry;
    use super::*;
    use crate::memory::host::HostBackend;
    use testing::TestDir;

    /// A server that does not run, and the events that it reports.
    struct Stage {
        server: Server,
        events: Arc<Mutex<Vec<PublisherEvent>>>,
        _dir: TestDir,
    }

    impl Stage {
        fn new(key: &str) -> Self {
            let dir = TestDir::new(key);
            let access = SocketAccess { mode: 0o600, group: None };
            let endpoint = Endpoint::open(Some(&dir.dir), key, "", &access).unwrap();
            let registry = Arc::new(Registry::new().unwrap());
            let config =
                FramePublisherConfig { window: 1, policy: Policy::Drop, credits: 100, epoch: 7 };
            let frames = FramePublisher::new(Arc::new(HostBackend), registry.clone(), config);
            let state = State {
                key: key.into(),
                name: String::new(),
                epoch: 7,
                registry,
                frames: Arc::new(frames.unwrap()),
                tracks: Arc::default(),
                max_subscribers: 2,
                max_frames_per_subscriber: 8,
            };
            let events = Arc::new(Mutex::new(Vec::new()));
            let seen = events.clone();
            let server = Server {
                state,
                endpoint,
                allowed_uids: Vec::new(),
                stall_timeout: Some(Duration::from_secs(5)),
                events: Box::new(move |event| lock(&seen).push(event)),
                stop: Arc::default(),
            };
            Self { server, events, _dir: dir }
        }

        fn join(&self, id: u32) -> (Arc<SubscriberHandle>, Socket) {
            let slots = self.server.state.frames.slots.control.slots();
            let (subscriber, peer) = subscriber(id, (Mode::Newest, 1), slots);
            self.server.state.registry.add_subscriber(subscriber.clone());
            (subscriber, peer)
        }

        fn announce(&self, generation: u32) {
            self.server.state.registry.announce_format(generation, "caps", &[]);
        }
    }

    /// Fills the connection, so that nothing more can be sent.
    fn fill(socket: &Socket) {
        let text = "x".repeat(50_000);
        let large = Message::Bye { reason: RefusalReason::Closing, text };
        while socket.send(&large, &[]).is_ok() {}
        while socket.send(&Message::Leave, &[]).is_ok() {}
    }

    #[test]
    fn sending_is_tried_again_less_and_less_often() {
        let stage = Stage::new("server-resend");
        let (slow, peer) = stage.join(1);
        let (quick, its_peer) = stage.join(2);
        let all = [slow.clone(), quick.clone()];
        let send = |to: &[Arc<SubscriberHandle>], last: Option<u64>| {
            let resend = stage.server.send_announcements(to, last.map(Duration::from_millis));
            resend.map(|resend| resend.as_millis() as u64)
        };
        assert_eq!(send(&all, None), None);
        fill(&slow.socket);
        stage.announce(1);
        // The other one has been sent everything.
        let mut last = None;
        for expected in [1, 2, 4, 8, 16, 32, 64, 100, 100] {
            last = send(&all, last);
            assert_eq!(last, Some(expected));
        }
        // One to which something could be sent gets the rest soon.
        let track = Message::Track { track: 1, bytes: 8 };
        for _ in 0..9 {
            let fd = Arc::new(std::fs::File::open("/dev/null").unwrap());
            stage.server.state.registry.announce(track.clone(), Some(fd));
        }
        assert_eq!(send(&all, last), Some(1));
        messages(&its_peer);
        assert_eq!(send(&[quick.clone(), slow.clone()], last), Some(1));
        // An evicted one gets nothing more.
        let evict = |who| stage.server.state.registry.evict(who, RefusalReason::Stalled, "".into());
        evict(&quick);
        assert_eq!(send(&all, Some(32)), Some(64));
        evict(&slow);
        assert_eq!(send(&all, Some(32)), None);
        drop(peer);
    }

    #[test]
    fn subscriber_without_welcome_is_forgotten() {
        let stage = Stage::new("server-welcome");
        let registry = &stage.server.state.registry;
        let mut session = Session::default();
        let hello = Hello {
            versions: (*VERSIONS.start(), *VERSIONS.end()),
            mode: Mode::Strict,
            credit: 2,
            gpu: [0; 16],
            name: "late".into(),
        };
        for full in [false, true] {
            let (socket, peer) = connection();
            if full {
                fill(&socket);
            } else {
                drop(peer);
            }
            stage.server.accept_subscriber(socket, hello.clone(), &mut session);
            assert!(registry.subscribers().is_empty() && lock(&stage.events).is_empty());
        }
        let (socket, peer) = connection();
        stage.server.accept_subscriber(socket, hello, &mut session);
        let welcome = messages(&peer);
        assert!(matches!(welcome[..], [Message::Welcome { epoch: 7, id: 3, .. }]), "{welcome:?}");
        assert_eq!(registry.subscribers().len(), 1);
        let events = lock(&stage.events);
        assert!(matches!(&events[..], [PublisherEvent::SubscriberAdded(info)] if info.id == 3));
    }

    #[test]
    fn lack_of_fds_is_a_lack_of_resources() {
        for (code, expected) in [
            (Errno::EMFILE, true),
            (Errno::ENFILE, true),
            (Errno::ETOOMANYREFS, true),
            (Errno::EPIPE, false),
            (Errno::EAGAIN, false),
        ] {
            assert_eq!(is_out_of_fds(&code.into()), expected, "{code}");
        }
    }

    /// A subscriber stalls if it holds frames and takes none, while frames are published.
    #[test]
    fn stalled_subscriber_is_reported_and_then_evicted() {
        let stage = Stage::new("server-stalled");
        let (subscriber, peer) = stage.join(1);
        let page = subscriber.page.header();
        let head = &stage.server.state.frames.slots.control.header().head;
        let mut progress = HashMap::new();
        let mut check = |seconds: u64| {
            let now = Duration::from_secs(1000 + seconds);
            stage.server.check_progress(&subscriber, progress.entry(1), now);
            (lock(&stage.events).len(), subscriber.eviction().map(|e| e.reason))
        };
        // It holds nothing, or nothing is published, or it takes frames, or it leaves.
        for seconds in 0..10 {
            head.fetch_add(1, Ordering::Relaxed);
            assert_eq!(check(seconds), (0, None));
        }
        subscriber.page.held(0).store(1, Ordering::Relaxed);
        for seconds in 10..20 {
            assert_eq!(check(seconds), (0, None));
        }
        for seconds in 20..30 {
            head.fetch_add(1, Ordering::Relaxed);
            page.cursor.fetch_add(1, Ordering::Relaxed);
            assert_eq!(check(seconds), (0, None));
        }
        subscriber.draining.store(true, Ordering::Relaxed);
        for seconds in 30..40 {
            head.fetch_add(1, Ordering::Relaxed);
            assert_eq!(check(seconds), (0, None));
        }
        subscriber.draining.store(false, Ordering::Relaxed);
        for (seconds, reports) in [(39, 0), (41, 0), (42, 1), (43, 1)] {
            head.fetch_add(1, Ordering::Relaxed);
            assert_eq!(check(seconds), (reports, None), "{seconds}");
        }
        head.fetch_add(1, Ordering::Relaxed);
        assert_eq!(check(44), (1, Some(RefusalReason::Stalled)));
        assert!(messages(&peer).is_empty());
        for seconds in 45..48 {
            check(seconds);
        }
        let bye = messages(&peer);
        assert!(
            matches!(&bye[..], [Message::Bye { reason: RefusalReason::Stalled, text }]
                if text.contains("it held 1 frames and took none for 5 s")),
            "{bye:?}"
        );
        let events = lock(&stage.events);
        assert!(matches!(&events[..], [PublisherEvent::SubscriberStalled(info)] if info.id == 1));
    }
}
