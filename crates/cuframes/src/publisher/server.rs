//! The publisher's thread that welcomes subscribers and notices that they go.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::info::{PublisherEvent, SubscriberInfo};
use super::registry::SubscriberHandle;
use super::state::State;
use super::status::Observers;
use crate::protocol::message::{Hello, Message, VERSIONS};
use crate::protocol::socket::{Received, Socket};
use crate::protocol::wire::Malformed;
use crate::shm::layout::{LAYOUT_VERSION, MAGIC, READER_ANY_TRACK, READER_LOSSLESS};
use crate::shm::mapping::{Mapping, Sharing};
use crate::shm::segments::SubscriberPage;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::clock;
use crate::types::code::{Mode, RefusalReason};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, SockFlag, UnixCredentials, accept4, shutdown};

/// A stranger has this long to say HELLO.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// Strangers that may be about to say HELLO at a time; more wait in the socket's queue.
const MAX_STRANGERS: usize = 16;
/// How often subscribers are looked at for being stuck.
const TICK: Duration = Duration::from_millis(500);
/// A subscriber that holds frames and does not move for this long, while others could, is reported.
const STALLED_AFTER: Duration = Duration::from_secs(3);

pub(crate) struct Server {
    pub state: State,
    pub endpoint: Endpoint,
    /// Users who may subscribe; empty for all.
    pub allowed_uids: Vec<u32>,
    /// Stuck subscribers are sent away after this long.
    pub stall_timeout: Option<Duration>,
    pub events: Box<dyn Fn(PublisherEvent) + Send + Sync>,
    pub stop: Arc<AtomicBool>,
}

/// What the server remembers of a subscriber between two looks.
struct Progress {
    cursor: u64,
    head: u64,
    since: Duration,
    reported: bool,
    /// It was told to go and has not gone yet.
    dismissed: bool,
}

impl Server {
    pub fn run(self) {
        let mut strangers: Vec<(Socket, Duration)> = Vec::new();
        let mut progress: HashMap<u32, Progress> = HashMap::new();
        let mut next_id = 1;
        let mut observers = Observers::default();
        // There was no fd for a stranger; it is asked in again after a tick, not at once.
        let mut exhausted = false;
        while !self.stop.load(Ordering::Acquire) {
            let (_, peers) = self.state.registry.peers();
            let ready = self.poll(&strangers, &peers, std::mem::take(&mut exhausted));
            let now = clock::now();
            self.state.registry.drain_wake();

            for (peer, _) in peers.iter().zip(&ready.peers).filter(|(_, ready)| **ready) {
                self.listen_to(peer);
            }
            let mut index = 0;
            strangers.retain_mut(|(connection, deadline)| {
                let readable = ready.strangers.get(index).copied().unwrap_or(false);
                index += 1;
                if readable && self.greet(connection, &mut next_id, &mut observers) {
                    return false;
                }
                // Also for an observer that always has another question.
                now < *deadline
            });
            if ready.listener && strangers.len() < MAX_STRANGERS {
                match self.accept() {
                    Ok(connection) => strangers.push((connection, now + HELLO_TIMEOUT)),
                    Err(e) => {
                        tracing::warn!(key = self.state.key, %e, "a subscriber can't be let in");
                        exhausted = true;
                    }
                }
            }
            for peer in &peers {
                self.look_after(peer, progress.entry(peer.id), now);
            }
            let (_, peers) = self.state.registry.peers();
            progress.retain(|id, _| peers.iter().any(|p| p.id == *id));
        }
        let text = format!("the publisher of '{}' ends", self.state.key);
        for peer in self.state.registry.peers().1 {
            let _ = peer
                .connection
                .send(&Message::Bye { code: RefusalReason::Closing, text: text.clone() }, &[]);
        }
    }

    fn poll(
        &self,
        strangers: &[(Socket, Duration)],
        peers: &[Arc<SubscriberHandle>],
        exhausted: bool,
    ) -> Ready {
        let listening = strangers.len() < MAX_STRANGERS && !exhausted;
        let mut fds = vec![PollFd::new(self.state.registry.wake_fd(), PollFlags::POLLIN)];
        let accept = if listening { PollFlags::POLLIN } else { PollFlags::empty() };
        fds.push(PollFd::new(self.endpoint.listener.as_fd(), accept));
        fds.extend(strangers.iter().map(|(c, _)| PollFd::new(c.as_fd(), PollFlags::POLLIN)));
        // Who was sent away is heard no more; its end is always reported.
        let hear = |p: &SubscriberHandle| match p.kicked() {
            None => PollFlags::POLLIN,
            Some(_) => PollFlags::empty(),
        };
        fds.extend(peers.iter().map(|p| PollFd::new(p.connection.as_fd(), hear(p))));
        let timeout = match (strangers, peers) {
            ([], []) if !exhausted => PollTimeout::NONE,
            _ => PollTimeout::try_from(TICK).expect("half a second is a timeout"),
        };
        let polled = poll(&mut fds, timeout);
        if polled.is_err_and(|e| e != Errno::EINTR) {
            // No memory, or more fds than it may have by now: that may pass.
            std::thread::sleep(TICK);
        }
        let mut ready = fds[1..].iter().map(|fd| polled.is_ok() && fd.any().unwrap_or(false));
        Ready {
            listener: ready.next().unwrap_or(false),
            strangers: ready.by_ref().take(strangers.len()).collect(),
            peers: ready.collect(),
        }
    }

    /// What the application does of an event is no reason for the key to go deaf.
    fn report(&self, event: PublisherEvent) {
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (self.events)(event)));
        if told.is_err() {
            tracing::error!(key = self.state.key, "the receiver of an event panicked");
        }
    }

    fn accept(&self) -> io::Result<Socket> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = accept4(self.endpoint.listener.as_raw_fd(), flags)?;
        // SAFETY: the kernel made this fd for this call, and nobody else knows it.
        Ok(Socket::new(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Hears a stranger's HELLO, or what it asks. True when that is over, for better or worse.
    fn greet(&self, connection: &mut Socket, next_id: &mut u32, observers: &mut Observers) -> bool {
        let refused = match connection.receive(0) {
            Ok(Received::Nothing) => return false,
            Ok(Received::Closed) | Err(_) => return true,
            Ok(Received::Message(Message::Hello(hello), _)) => {
                // A second fd of the same socket, so that a refusal can be sent on the first.
                let own = connection.as_fd().try_clone_to_owned().map_err(exhausted);
                let joined = own.and_then(|own| self.join(Socket::new(own), hello, *next_id));
                *next_id = next_id.wrapping_add(1);
                match joined {
                    Ok(()) => return true,
                    Err(refused) => refused,
                }
            }
            Ok(Received::Message(Message::StatusRequest { versions, from }, _)) => {
                let allowed = self.admit(connection);
                match allowed.and_then(|_| check_versions("observer", versions)) {
                    Ok(version) => return observers.answer(&self.state, connection, version, from),
                    Err(refused) => refused,
                }
            }
            Ok(Received::Message(..)) => {
                (RefusalReason::Malformed, "the first message has to be HELLO or STATUS_REQUEST: run the same version of cuframes on both sides".to_owned())
            }
            Ok(Received::Malformed(e @ Malformed::Versions(..))) => (
                RefusalReason::Version,
                format!(
                    "{e}, the publisher {} to {}: update the older one",
                    VERSIONS.start(),
                    VERSIONS.end()
                ),
            ),
            Ok(Received::Malformed(e)) => (RefusalReason::Malformed, e.to_string()),
        };
        let (code, text) = refused;
        tracing::info!(key = self.state.key, text, "refused a subscriber");
        let _ = connection.send(&Message::Refused { code, text }, &[]);
        true
    }

    /// Who is at the other end, if that user is served.
    fn admit(&self, connection: &Socket) -> Result<UnixCredentials, (RefusalReason, String)> {
        let credentials = connection.peer().map_err(exhausted)?;
        let uid = credentials.uid();
        if !self.allowed_uids.is_empty() && !self.allowed_uids.contains(&uid) {
            let text =
                format!("it does not serve this user: add {uid} to allowed-uids of the publisher");
            return Err((RefusalReason::Denied, text));
        }
        Ok(credentials)
    }

    fn join(
        &self,
        connection: Socket,
        hello: Hello,
        id: u32,
    ) -> Result<(), (RefusalReason, String)> {
        let credentials = self.admit(&connection)?;
        let version = check_versions("subscriber", hello.versions)?;
        if hello.credit > self.state.max_frames_per_subscriber {
            return Err((
                RefusalReason::OverCredit,
                format!(
                    "it asks for {} frames at a time (max-frames), more than the publisher's max-frames-per-subscriber={}: lower the one or raise the other",
                    hello.credit, self.state.max_frames_per_subscriber
                ),
            ));
        }
        if self.state.registry.peers().1.len() >= self.state.max_subscribers as usize {
            return Err((
                RefusalReason::Full,
                format!(
                    "all {} places are taken: raise max-subscribers of the publisher, or stop a subscriber",
                    self.state.max_subscribers
                ),
            ));
        }
        let slots = self.state.frames.slots.control.slots();
        let (map, page_fd) =
            Mapping::create("cuframes-subscriber", SubscriberPage::size(slots), Sharing::ReadWrite)
                .map_err(exhausted)?;
        let page = SubscriberPage::new(map, slots);
        let h = page.header();
        h.version.store(LAYOUT_VERSION, Ordering::Relaxed);
        h.slots.store(slots, Ordering::Relaxed);
        if hello.mode == Mode::Strict && hello.credit == 0 {
            // Nothing is lost from here on, though it has not said yet which track it will read.
            let any = READER_LOSSLESS | READER_ANY_TRACK;
            h.readers[0].track.store(any, Ordering::Relaxed);
        }
        let asked = (hello.credit, hello.mode, hello.name);
        let peer = Arc::new(SubscriberHandle::new(id, connection, page, asked, credentials));
        let welcome = Message::Welcome {
            version,
            epoch: self.state.epoch,
            id,
            slots,
            index: self.state.frames.index_len,
        };
        self.state
            .frames
            .reserve(hello.credit, |head| {
                let h = peer.page.header();
                // A strict subscriber gets each frame from here on; a publisher that waits, waits for it.
                h.cursor.store(head, Ordering::Relaxed);
                h.joined_ns.store(clock::now_ns() as u64, Ordering::Relaxed);
                // Pairs with the Acquire in the client.
                h.magic.store(MAGIC, Ordering::Release);
                let fds = [self.state.frames.control_fd.as_fd(), page_fd.as_fd()];
                self.state.registry.add(peer.clone(), &welcome, &fds)
            })
            .map_err(|e| (RefusalReason::NoMemory, e.to_string()))?;
        tracing::info!(
            key = self.state.key,
            name = peer.name,
            pid = credentials.pid(),
            "subscriber came"
        );
        self.report(PublisherEvent::SubscriberAdded(SubscriberInfo::of(&peer)));
        Ok(())
    }

    /// After HELLO a subscriber says that it leaves, and then closes the connection.
    fn listen_to(&self, peer: &SubscriberHandle) {
        match peer.connection.receive(0) {
            // Without memory for a message nothing is known of the peer.
            Ok(Received::Nothing) | Err(_) => {}
            Ok(Received::Message(Message::Leave, _)) => peer.leaving.store(true, Ordering::Relaxed),
            Ok(Received::Closed) => {
                // The process is gone, or has let go of every frame: its claims mean nothing any more.
                self.state.registry.remove(peer.id);
                tracing::info!(key = self.state.key, name = peer.name, "subscriber went");
                let reason = peer.kicked().map(|(_, text)| text);
                self.report(PublisherEvent::SubscriberRemoved(SubscriberInfo::of(peer), reason));
            }
            Ok(Received::Message(..) | Received::Malformed(_)) => {
                self.state.registry.kick(
                    peer,
                    RefusalReason::Malformed,
                    "it sent what it should not: run the same version of cuframes on both sides"
                        .into(),
                );
            }
        }
    }

    /// Sends away who is to be sent away, and reports who is stuck.
    fn look_after(
        &self,
        peer: &SubscriberHandle,
        progress: std::collections::hash_map::Entry<'_, u32, Progress>,
        now: Duration,
    ) {
        let cursor = peer.page.header().cursor.load(Ordering::Relaxed);
        let head = self.state.frames.slots.control.header().head.load(Ordering::Relaxed);
        let fresh = || Progress { cursor, head, since: now, reported: false, dismissed: false };
        let seen = progress.or_insert_with(fresh);
        if let Some((code, text)) = peer.kicked() {
            if !seen.dismissed {
                // The connection is kept until the other side closes it. Only that says that the
                // process does not read its frames any more.
                let _ = peer.connection.send(&Message::Bye { code, text }, &[]);
                let _ = shutdown(peer.connection.as_fd().as_raw_fd(), Shutdown::Write);
                seen.dismissed = true;
            }
            return;
        }
        // Who leaves takes nothing any more and is not stuck.
        let held = peer.page.count_held();
        let held = if peer.leaving.load(Ordering::Relaxed) { 0 } else { held };
        if seen.cursor != cursor || head == seen.head || held == 0 {
            *seen = fresh();
            return;
        }
        let stuck = now.saturating_sub(seen.since);
        if stuck >= STALLED_AFTER && !seen.reported {
            seen.reported = true;
            tracing::warn!(
                key = self.state.key,
                name = peer.name,
                held,
                "subscriber does not move"
            );
            self.report(PublisherEvent::SubscriberStalled(SubscriberInfo::of(peer)));
        }
        if self.stall_timeout.is_some_and(|t| stuck >= t) {
            let text = format!(
                "it held {held} frames and took none for {} s: look what it hangs in, or raise stall-timeout of the publisher",
                stuck.as_secs()
            );
            self.state.registry.kick(peer, RefusalReason::Stalled, text);
        }
    }
}

/// The version to speak with a peer that speaks these.
fn check_versions(peer: &str, (first, last): (u16, u16)) -> Result<u16, (RefusalReason, String)> {
    let (oldest, newest) = (*VERSIONS.start(), *VERSIONS.end());
    if first > newest || last < oldest {
        return Err((
            RefusalReason::Version,
            format!(
                "the {peer} speaks versions {first} to {last} of the protocol, the publisher {oldest} to {newest}: update the older one"
            ),
        ));
    }
    Ok(last.min(newest))
}

/// Why a subscriber is refused that there are no means for.
fn exhausted(e: io::Error) -> (RefusalReason, String) {
    (
        RefusalReason::NoMemory,
        format!(
            "the publisher has no memory or file descriptors left ({e}): raise its limits (ulimit -n), or stop something"
        ),
    )
}

struct Ready {
    listener: bool,
    strangers: Vec<bool>,
    peers: Vec<bool>,
}
