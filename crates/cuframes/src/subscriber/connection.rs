//! The subscriber's side of the connection: the way to a publisher, and the thread that listens to it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::announcements::{MAX_ANNOUNCED, State, TrackView};
use crate::cuda::Uuid;
use crate::error::{Context, Error, Result};
use crate::memory::{ChunkInfo, Geometry, Importer, Kind};
use crate::protocol::message::Message;
use crate::protocol::socket::{Received, Socket};
use crate::protocol::status::MAX_TRACKS;
use crate::shm::claim;
use crate::shm::layout::{LAYOUT_VERSION, MAGIC};
use crate::shm::mapping::{Mapping, Sharing};
use crate::shm::segments::{Control, SubscriberPage, TrackSegment};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use crate::sync::interrupt::{Doorbell, Interrupt};
use crate::sync::{clock, futex, lock};
use crate::types::code::{Mode, RefusalReason};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{Shutdown, shutdown};

/// What a frame refers to has come by this time.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(10);
/// Fds that come with a message at most.
pub(super) const MAX_FDS: usize = 2;

/// One connection to one life of a publisher. Frames that are in use keep it, and with it the place.
pub(crate) struct Connection {
    pub key: String,
    pub mode: Mode,
    pub credit: u32,
    /// Which life of a publisher this is.
    pub epoch: u64,
    pub control: Control,
    pub page: SubscriberPage,
    /// Rings for every message and interrupt, and for a released frame if one is waited for.
    pub bell: Arc<Doorbell>,
    pub state: Mutex<State>,
    /// Frames in use.
    pub leases: AtomicU32,
    /// The reader sleeps, or is about to, until there are fewer.
    pub awaits_release: AtomicBool,
    /// Those of them whose claims a device clears.
    pub clearing: Mutex<Vec<u32>>,
    /// Frames that were copied instead of held, for the publisher's statistics.
    pub copied: AtomicU64,
    /// Which places in the page readers of packets have: a bit each.
    pub readers: Mutex<u32>,
    pub(super) importer: Importer,
    /// A process that was forked off has this, too, and is not the one that subscribed.
    pub(super) process: u32,
    /// Closed last: that is what tells the publisher that no claim counts any more.
    pub(super) connection: Socket,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // To close it is not enough where a process was forked off, which has it open still.
        if self.process == std::process::id() {
            let _ = shutdown(self.connection.as_fd().as_raw_fd(), Shutdown::Both);
        }
    }
}

impl Connection {
    /// To be called after the cursor was moved or a claim released: wakes a publisher that waits for it.
    pub fn moved(&self) {
        // Pairs with the fence in `BackpressureWait::wait_for`.
        fence(Ordering::SeqCst);
        if self.control.header().status.publisher_waits.load(Ordering::Relaxed) != 0 {
            let futex = &self.page.header().futex;
            futex.fetch_add(1, Ordering::Release);
            futex::wake_all(futex);
        }
    }

    /// Takes note of claims that a device has cleared. True if there are others.
    pub fn settle(&self) -> bool {
        let mut clearing = lock(&self.clearing);
        clearing.retain(|slot| {
            let held = claim::is_held(self.page.held(*slot));
            if !held {
                self.leases.fetch_sub(1, Ordering::Release);
            }
            held
        });
        !clearing.is_empty()
    }

    /// Takes no more frames. Those in use stay valid.
    pub fn leave(&self) {
        if self.process != std::process::id() {
            return;
        }
        let _ = self.connection.send(&Message::Leave, &[]);
    }

    pub fn protocol(&self, problem: impl Into<String>) -> Error {
        Error::Protocol { key: self.key.clone(), problem: problem.into() }
    }

    /// What `find` finds in the announcements, waiting for it if it is on its way: whatever a frame or
    /// packet refers to was sent before the frame or packet was published.
    pub fn announced<T>(
        &self,
        what: &str,
        interrupt: &Interrupt,
        find: impl Fn(&State) -> Option<T>,
    ) -> Result<T> {
        let deadline = clock::now() + ANNOUNCE_TIMEOUT;
        loop {
            let seen = self.bell.seen();
            let importing = {
                let state = lock(&self.state);
                if let Some(found) = find(&state) {
                    return Ok(found);
                }
                if let Some((code, text)) = state.closed.clone() {
                    return Err(Error::Refused { key: self.key.clone(), code, text });
                }
                state.importing
            };
            if interrupt.is_set() {
                return Err(Error::Interrupted);
            }
            let left = deadline.saturating_sub(clock::now());
            // The first use of a GPU takes seconds, and many processes that begin with it wait for each other:
            // that is not the publisher's fault. The bell rings when it is done.
            let left = (!importing).then_some(left);
            if left.is_some_and(|left| left.is_zero()) {
                return Err(self.protocol(format!("it never announced the {what}")));
            }
            // The frame futex changes all the time; only the bell matters here.
            self.bell.wait(seen, left);
        }
    }

    fn close(&self, code: RefusalReason, text: String) {
        lock(&self.state).closed.get_or_insert((code, text));
        self.bell.ring();
    }

    /// Listens until the connection ends or `stop` is written to.
    pub fn listen(&self, stop: &EventFd) {
        loop {
            let mut fds = [
                PollFd::new(self.connection.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            ];
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                continue;
            }
            if fds[1].any().unwrap_or(true) {
                return;
            }
            let message = match self.connection.receive(MAX_FDS) {
                Ok(Received::Nothing) => continue,
                Ok(Received::Message(message, fds)) => (message, fds),
                Ok(Received::Malformed(e)) => {
                    return self.close(RefusalReason::Malformed, e.to_string());
                }
                // Another try may have more luck.
                Err(e) if e.raw_os_error() == Some(Errno::EMFILE as i32) => {
                    return self.close(RefusalReason::NoMemory, NO_FDS.into());
                }
                Ok(Received::Closed) | Err(_) => {
                    return self.close(RefusalReason::Closing, "the publisher is gone".into());
                }
            };
            match self.hear(message.0, message.1) {
                Ok(true) => self.bell.ring(),
                Ok(false) => return,
                Err(text) => return self.close(RefusalReason::Malformed, text),
            }
        }
    }

    /// Takes note of a message. False after the last.
    fn hear(&self, message: Message, fds: Vec<OwnedFd>) -> Result<bool, String> {
        let mut fds = fds.into_iter();
        let mut fd = || fds.next().expect("decode has counted the fds");
        // What is mapped is mapped before the lock is taken: readers look at the state for each frame.
        match message {
            Message::Format { generation, caps } => {
                // Frames of older formats may still be on their way, those of much older ones not.
                lock(&self.state).formats.add(generation, caps);
            }
            // Who takes no frames needs no memory for them, and may have no GPU.
            Message::Chunk { .. } if self.credit == 0 => {}
            Message::Chunk { id, kind, device, slots, stride, size } => {
                let kind = Kind::try_from(kind).map_err(|k| format!("unknown memory kind {k}"))?;
                let geometry = Geometry { slots, stride, size };
                let bytes = geometry.bytes().ok_or("a chunk of impossible size")?;
                {
                    let state = lock(&self.state);
                    if state.chunks.len() >= MAX_ANNOUNCED || !state.has_room(bytes as u64) {
                        return Err("too many chunks, or too big ones".into());
                    }
                }
                lock(&self.state).importing = true;
                let info = ChunkInfo { kind, device: Uuid(device), geometry };
                let chunk = self.importer.import(info, fd());
                let mut state = lock(&self.state);
                state.importing = false;
                let chunk = chunk.map_err(|e| format!("the frames can't be mapped: {e}"))?;
                let old = state.chunks.insert(id, chunk);
                // What it replaces is unmapped outside the lock.
                drop(state);
                drop(old);
            }
            Message::Retire { chunk } => {
                // Unmapped outside the lock.
                let _chunk = lock(&self.state).chunks.remove(&chunk);
            }
            Message::Track { track, bytes } => {
                let size = TrackSegment::size(bytes).ok_or("an impossible track")?;
                {
                    let state = lock(&self.state);
                    if state.tracks.len() >= MAX_TRACKS || !state.has_room(size as u64) {
                        return Err("too many tracks, or too big ones".into());
                    }
                }
                let map = Mapping::import(fd().as_fd(), size, Sharing::ReadOnly)
                    .map_err(|e| format!("the packets can't be mapped: {e}"))?;
                let segment = TrackSegment::new(map, bytes);
                let h = segment.header();
                check_segment(&h.magic, &h.version).map_err(|e| format!("a track {e}"))?;
                let view = Arc::new(TrackView { segment, formats: Mutex::default() });
                let _old = lock(&self.state).tracks.insert(track, view);
            }
            Message::TrackFormat { track, generation, caps } => {
                let state = lock(&self.state);
                let view = state.tracks.get(&track).ok_or("caps of an unknown track")?;
                lock(&view.formats).add(generation, caps);
            }
            Message::Bye { code, text } => {
                self.close(code, text);
                return Ok(false);
            }
            Message::Hello(_)
            | Message::Welcome { .. }
            | Message::Refused { .. }
            | Message::Leave
            | Message::StatusRequest { .. }
            | Message::Status { .. } => {
                return Err("a message came out of order".into());
            }
        }
        Ok(true)
    }
}

const NO_FDS: &str = "this process has no file descriptor left for what the publisher sends: raise its limit (ulimit -n)";

pub(super) fn check_segment(magic: &AtomicU64, version: &AtomicU32) -> Result<(), String> {
    // Pairs with the Release of the publisher: everything else was written before.
    if magic.load(Ordering::Acquire) != MAGIC {
        return Err("is not what it claims to be".into());
    }
    match version.load(Ordering::Relaxed) {
        LAYOUT_VERSION => Ok(()),
        v => Err(format!("has layout version {v}, this side knows {LAYOUT_VERSION}")),
    }
}

/// The thread that listens; dropped, it ends.
pub(crate) struct Listener {
    stop: Arc<EventFd>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Listener {
    pub fn start(shared: &Arc<Connection>) -> Result<Self> {
        use nix::sys::eventfd::EfdFlags;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("make an eventfd")?;
        let stop = Arc::new(stop);
        let (shared, told) = (shared.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("cuframes-client".into())
            .spawn(move || shared.listen(&told))
            .context("start the listening thread")?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
