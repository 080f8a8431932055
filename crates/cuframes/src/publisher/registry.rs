// SPDX-License-Identifier: LGPL-2.1-or-later
//! Registry of connected subscribers, and of every announcement (caps, chunks, tracks) that a new subscriber
//! receives on joining.
//!
//! An announcement is sent to the subscribers that are connected, and stored for later subscribers. One lock
//! orders both, so that each subscriber receives every announcement exactly once.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use crate::error::{Context, Result};
use crate::protocol::message::Message;
use crate::protocol::socket::Socket;
use crate::shm::claim;
use crate::shm::segments::SubscriberPage;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::lock;
use crate::types::mode::Mode;
use crate::types::refusal::RefusalReason;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::UnixCredentials;

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
}

impl SubscriberHandle {
    /// The reason for which the subscriber is evicted, if it is.
    pub(crate) fn eviction(&self) -> Option<Refusal> {
        lock(&self.eviction).clone()
    }
}

/// Owner of an fd that is sent with a message. The registry keeps it alive for later subscribers.
pub(crate) type FdOwner = Arc<dyn AsFd + Send + Sync>;

struct ChunkAnnouncement {
    id: u32,
    message: Message,
    fd: FdOwner,
}

struct FrameFormat {
    generation: u32,
    message: Message,
}

struct TrackFormat {
    generation: u32,
    caps: String,
}

struct TrackAnnouncement {
    track: u32,
    message: Message,
    fd: FdOwner,
    /// From the oldest generation that the ring still contains.
    formats: Vec<TrackFormat>,
}

#[derive(Default)]
struct State {
    subscribers: Vec<Arc<SubscriberHandle>>,
    /// From the generation of the newest frame on.
    formats: Vec<FrameFormat>,
    chunks: Vec<ChunkAnnouncement>,
    tracks: Vec<TrackAnnouncement>,
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

pub(crate) struct Registry {
    state: Mutex<State>,
    version: AtomicU64,
    /// Wakes the server thread.
    wake: EventFd,
}

impl Registry {
    /// Creates an empty registry.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub(crate) fn new() -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            state: Mutex::default(),
            version: AtomicU64::new(0),
            wake: EventFd::from_flags(flags).context("create an eventfd")?,
        })
    }

    /// Returns a number that changes whenever a subscriber is added or removed. A thread that sees the
    /// number of an addition finds the subscriber in [`Registry::subscribers`].
    pub(crate) fn version(&self) -> u64 {
        // SYNC(add/version): pairs with the Release in `add_subscriber` and `remove_subscriber`.
        self.version.load(Ordering::Acquire)
    }

    /// Returns the connected subscribers.
    pub(crate) fn subscribers(&self) -> Vec<Arc<SubscriberHandle>> {
        lock(&self.state).subscribers.clone()
    }

    /// Adds a subscriber, and sends WELCOME and all stored announcements to it.
    pub(crate) fn add_subscriber(
        &self,
        subscriber: Arc<SubscriberHandle>,
        welcome: &Message,
        fds: &[BorrowedFd<'_>],
    ) {
        let mut state = lock(&self.state);
        state.subscribers.push(subscriber.clone());
        // SYNC(add/version): pairs with the Acquire in `version`. The store precedes the first message, and so
        // every claim of the subscriber: a publisher that loads the version after the fence of
        // `claim::retire` either finds the subscriber or precedes its claim.
        self.version.fetch_add(1, Ordering::Release);
        let socket = &subscriber.socket;
        let send_all = || -> std::io::Result<()> {
            socket.send(welcome, fds)?;
            for format in &state.formats {
                socket.send(&format.message, &[])?;
            }
            for chunk in &state.chunks {
                socket.send(&chunk.message, &[chunk.fd.as_fd()])?;
            }
            for announcement in &state.tracks {
                let track = announcement.track;
                socket.send(&announcement.message, &[announcement.fd.as_fd()])?;
                for TrackFormat { generation, caps } in &announcement.formats {
                    let (generation, caps) = (*generation, caps.clone());
                    socket.send(&Message::TrackFormat { track, generation, caps }, &[])?;
                }
            }
            Ok(())
        };
        if let Err(e) = send_all() {
            // WELCOME may have been received, and the subscriber may claim frames. So it stays in the list until
            // its connection has ended.
            self.evict_unresponsive(&subscriber, &e);
        }
    }

    /// Removes a subscriber whose connection has ended.
    pub(crate) fn remove_subscriber(&self, id: u32) {
        lock(&self.state).subscribers.retain(|s| s.id != id);
        // SYNC(add/version): pairs with the Acquire in `version`.
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Marks a subscriber for eviction and wakes the server thread, which disconnects it. The first reason is
    /// kept.
    pub(crate) fn evict(&self, subscriber: &SubscriberHandle, reason: RefusalReason, text: String) {
        lock(&subscriber.eviction).get_or_insert(Refusal { reason, text });
        subscriber.draining.store(true, Ordering::Relaxed);
        self.wake_server();
    }

    /// Evicts a subscriber to which a message could not be sent.
    fn evict_unresponsive(&self, subscriber: &SubscriberHandle, e: &std::io::Error) {
        let text = format!("it does not read its messages ({e}): find out what blocks it");
        self.evict(subscriber, RefusalReason::Slow, text);
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

    fn broadcast(&self, state: &State, message: &Message, fds: &[BorrowedFd<'_>]) {
        for subscriber in &state.subscribers {
            if let Err(e) = subscriber.socket.send(message, fds) {
                self.evict_unresponsive(subscriber, &e);
            }
        }
    }

    /// Announces new caps for frames. Generations before `oldest` are not sent to later subscribers, because
    /// these never receive a frame of them.
    pub(crate) fn announce_format(&self, generation: u32, caps: &str, oldest: u32) {
        let mut state = lock(&self.state);
        let message = Message::Format { generation, caps: caps.to_owned() };
        self.broadcast(&state, &message, &[]);
        state.formats.retain(|f| f.generation >= oldest);
        state.formats.push(FrameFormat { generation, message });
    }

    /// Announces a new chunk of slots.
    pub(crate) fn announce_chunk(&self, id: u32, message: Message, fd: FdOwner) {
        let mut state = lock(&self.state);
        self.broadcast(&state, &message, &[fd.as_fd()]);
        state.chunks.push(ChunkAnnouncement { id, message, fd });
    }

    /// Announces that a chunk was freed.
    pub(crate) fn announce_retired(&self, chunk: u32) {
        let mut state = lock(&self.state);
        state.chunks.retain(|c| c.id != chunk);
        self.broadcast(&state, &Message::Retire { chunk }, &[]);
    }

    /// Announces a new track.
    pub(crate) fn announce_track(&self, track: u32, message: Message, fd: FdOwner) {
        let mut state = lock(&self.state);
        self.broadcast(&state, &message, &[fd.as_fd()]);
        state.tracks.push(TrackAnnouncement { track, message, fd, formats: Vec::new() });
    }

    /// Announces new caps of a track. Generations before `oldest` have no packets left in the ring.
    pub(crate) fn announce_track_format(
        &self,
        track: u32,
        generation: u32,
        caps: &str,
        oldest: u32,
    ) {
        let mut state = lock(&self.state);
        let message = Message::TrackFormat { track, generation, caps: caps.to_owned() };
        self.broadcast(&state, &message, &[]);
        if let Some(announcement) = state.tracks.iter_mut().find(|t| t.track == track) {
            announcement.formats.retain(|f| f.generation >= oldest);
            announcement.formats.push(TrackFormat { generation, caps: caps.to_owned() });
        }
    }

    /// Returns the caps of the newest generation of frames, and of each track that has caps.
    pub(crate) fn current_caps(&self) -> CurrentCaps {
        let state = lock(&self.state);
        let frames = match state.formats.last() {
            Some(FrameFormat { message: Message::Format { caps, .. }, .. }) => caps.clone(),
            _ => String::new(),
        };
        let caps_of = |t: &TrackAnnouncement| {
            Some(TrackCaps { track: t.track, caps: t.formats.last()?.caps.clone() })
        };
        CurrentCaps { frames, tracks: state.tracks.iter().filter_map(caps_of).collect() }
    }
}

/// A copy of the registry's list that is renewed when the list has changed. It keeps the registry's lock off the
/// path of a frame or packet.
#[derive(Default)]
pub(super) struct SubscriberSnapshot {
    list: Vec<Arc<SubscriberHandle>>,
    version: u64,
    /// Sum of all credits.
    credits: u32,
}

impl SubscriberSnapshot {
    /// Renews the copy if subscribers were added or removed.
    ///
    /// After the fence of `claim::retire` or `retention::try_reclaim` this finds every subscriber whose fence is
    /// earlier; see [`Registry::version`].
    pub(super) fn refresh(&mut self, registry: &Registry) {
        if registry.version() == self.version {
            return;
        }
        let state = lock(&registry.state);
        self.version = registry.version();
        self.list.clone_from(&state.subscribers);
        drop(state);
        self.credits = self.list.iter().map(|s| s.credit).sum();
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, Arc<SubscriberHandle>> {
        self.list.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Sum of the credits of all subscribers.
    pub(super) fn credits(&self) -> u32 {
        self.credits
    }

    /// Renews the copy and returns whether any subscriber claims the slot. Revoked claims do not count.
    pub(super) fn hold(&mut self, registry: &Registry, slot: u32) -> bool {
        self.refresh(registry);
        self.list
            .iter()
            .any(|s| !s.revoked.load(Ordering::Relaxed) && claim::is_held(s.page.held(slot)))
    }
}
