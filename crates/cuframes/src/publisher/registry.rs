//! What the publisher has told its subscribers, and who they are.
//!
//! Everything that a subscriber has to know is announced through the registry: it is sent to those who
//! are there, and kept for those who come. One lock orders both, so nobody misses or repeats anything.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use crate::error::{Context, Result};
use crate::protocol::message::Message;
use crate::protocol::socket::Socket;
use crate::shm::segments::SubscriberPage;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::lock;
use crate::types::code::{Mode, RefusalReason};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::UnixCredentials;

/// A subscriber, as the publisher sees it.
pub(crate) struct SubscriberHandle {
    pub id: u32,
    pub connection: Socket,
    pub page: SubscriberPage,
    pub credit: u32,
    pub mode: Mode,
    pub name: String,
    pub credentials: UnixCredentials,
    /// Set when it is to be sent away; the server thread does it.
    kicked: Mutex<Option<(RefusalReason, String)>>,
    /// It takes no more frames, by its own will or by ours.
    pub leaving: AtomicBool,
    /// Its claims count no more: it claimed what it was not entitled to.
    pub forfeited: AtomicBool,
}

impl SubscriberHandle {
    pub fn new(
        id: u32,
        connection: Socket,
        page: SubscriberPage,
        (credit, mode, name): (u32, Mode, String),
        credentials: UnixCredentials,
    ) -> Self {
        Self {
            id,
            connection,
            page,
            credit,
            mode,
            name,
            credentials,
            kicked: Mutex::default(),
            leaving: AtomicBool::new(false),
            forfeited: AtomicBool::new(false),
        }
    }

    pub fn kicked(&self) -> Option<(RefusalReason, String)> {
        lock(&self.kicked).clone()
    }
}

/// An fd that a message takes along; the registry keeps its owner alive.
pub(crate) type FdOwner = Arc<dyn AsFd + Send + Sync>;

struct TrackNotice {
    track: u32,
    segment: (Message, FdOwner),
    /// Generation and caps, the oldest that the ring still has first.
    formats: Vec<(u32, String)>,
}

#[derive(Default)]
struct State {
    peers: Vec<Arc<SubscriberHandle>>,
    /// Generation and caps, that of the newest frame first.
    formats: Vec<(u32, Message)>,
    chunks: Vec<(u32, Message, FdOwner)>,
    tracks: Vec<TrackNotice>,
}

pub(crate) struct Registry {
    state: Mutex<State>,
    version: AtomicU64,
    /// Wakes the server thread.
    wake: EventFd,
}

impl Registry {
    pub fn new() -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            state: Mutex::default(),
            version: AtomicU64::new(0),
            wake: EventFd::from_flags(flags).context("make an eventfd")?,
        })
    }

    /// Changes whenever a subscriber comes or goes. A subscriber that was welcomed is in [`Registry::peers`]
    /// for whoever reads the number after that.
    pub fn version(&self) -> u64 {
        // Pairs with the Release in `add` and `remove`.
        self.version.load(Ordering::Acquire)
    }

    pub fn peers(&self) -> (u64, Vec<Arc<SubscriberHandle>>) {
        let state = lock(&self.state);
        (self.version(), state.peers.clone())
    }

    /// Welcomes a subscriber and tells it all that it has to know.
    pub fn add(&self, peer: Arc<SubscriberHandle>, welcome: &Message, fds: &[BorrowedFd<'_>]) {
        let mut state = lock(&self.state);
        state.peers.push(peer.clone());
        // Before the first message: a claim that the subscriber makes after it is seen by everybody
        // who looks at this number behind the fence in `claim::retire`.
        self.version.fetch_add(1, Ordering::Release);
        let told = || -> std::io::Result<()> {
            peer.connection.send(welcome, fds)?;
            for (_, format) in &state.formats {
                peer.connection.send(format, &[])?;
            }
            for (_, chunk, fd) in &state.chunks {
                peer.connection.send(chunk, &[fd.as_fd()])?;
            }
            for notice in &state.tracks {
                peer.connection.send(&notice.segment.0, &[notice.segment.1.as_fd()])?;
                for (generation, caps) in &notice.formats {
                    let (track, generation) = (notice.track, *generation);
                    let format = Message::TrackFormat { track, generation, caps: caps.clone() };
                    peer.connection.send(&format, &[])?;
                }
            }
            Ok(())
        };
        if let Err(e) = told() {
            // It may have been welcomed already, and claim frames: its place lasts until it goes.
            self.kick_deaf(&peer, &e);
        }
    }

    pub fn remove(&self, id: u32) {
        lock(&self.state).peers.retain(|p| p.id != id);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Has the server thread send a subscriber away.
    pub fn kick(&self, peer: &SubscriberHandle, code: RefusalReason, text: String) {
        lock(&peer.kicked).get_or_insert((code, text));
        peer.leaving.store(true, Ordering::Relaxed);
        self.wake_server();
    }

    pub fn wake_server(&self) {
        // A full counter wakes as well.
        let _ = self.wake.write(1);
    }

    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub fn drain_wake(&self) {
        let _ = self.wake.read();
    }

    fn kick_deaf(&self, peer: &SubscriberHandle, e: &std::io::Error) {
        let text = format!("it does not read its messages ({e}): look what it hangs in");
        self.kick(peer, RefusalReason::Slow, text);
    }

    fn tell_all(&self, state: &State, message: &Message, fds: &[BorrowedFd<'_>]) {
        for peer in &state.peers {
            if let Err(e) = peer.connection.send(message, fds) {
                self.kick_deaf(peer, &e);
            }
        }
    }

    /// New caps of the frames; no frame of a generation before `oldest` is given to newcomers.
    pub fn format(&self, generation: u32, caps: &str, oldest: u32) {
        let mut state = lock(&self.state);
        let message = Message::Format { generation, caps: caps.to_owned() };
        self.tell_all(&state, &message, &[]);
        state.formats.retain(|(g, _)| *g >= oldest);
        state.formats.push((generation, message));
    }

    pub fn chunk(&self, id: u32, message: Message, fd: FdOwner) {
        let mut state = lock(&self.state);
        self.tell_all(&state, &message, &[fd.as_fd()]);
        state.chunks.push((id, message, fd));
    }

    pub fn retire(&self, chunk: u32) {
        let mut state = lock(&self.state);
        state.chunks.retain(|(id, ..)| *id != chunk);
        self.tell_all(&state, &Message::Retire { chunk }, &[]);
    }

    pub fn track(&self, track: u32, message: Message, fd: FdOwner) {
        let mut state = lock(&self.state);
        self.tell_all(&state, &message, &[fd.as_fd()]);
        state.tracks.push(TrackNotice { track, segment: (message, fd), formats: Vec::new() });
    }

    /// The caps of the newest frame, empty before the first; and those of each track's newest packet.
    pub fn caps(&self) -> (String, Vec<(u32, String)>) {
        let state = lock(&self.state);
        let frames = match state.formats.last() {
            Some((_, Message::Format { caps, .. })) => caps.clone(),
            _ => String::new(),
        };
        let of = |n: &TrackNotice| Some((n.track, n.formats.last()?.1.clone()));
        (frames, state.tracks.iter().filter_map(of).collect())
    }

    /// New caps of a track; generations before `oldest` have no packets any more.
    pub fn track_format(&self, track: u32, generation: u32, caps: &str, oldest: u32) {
        let mut state = lock(&self.state);
        let message = Message::TrackFormat { track, generation, caps: caps.to_owned() };
        self.tell_all(&state, &message, &[]);
        if let Some(notice) = state.tracks.iter_mut().find(|n| n.track == track) {
            notice.formats.retain(|(g, _)| *g >= oldest);
            notice.formats.push((generation, caps.to_owned()));
        }
    }
}
