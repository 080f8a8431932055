// SPDX-License-Identifier: LGPL-2.1-or-later
//! A subscriber's connection to a publisher, and the thread that handles its messages.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::announcements::{Disconnect, MAX_ANNOUNCED, State, TrackView};
use super::leases::Leases;
use crate::cuda::Uuid;
use crate::error::{Context, Error, Result, is_exhausted};
use crate::memory::{ChunkInfo, Geometry, Importer, Kind};
use crate::protocol::message::Message;
use crate::protocol::socket::{Received, Socket};
use crate::protocol::status::MAX_TRACKS;
use crate::shm::layout::{LAYOUT_VERSION, MAGIC};
use crate::shm::mapping::{Mapping, Sharing};
use crate::shm::segments::{Control, SubscriberPage, TrackSegment};
use crate::shm::waiter;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::interrupt::Interrupt;
use crate::sync::process::Owner;
use crate::sync::{clock, lock};
use crate::types::mode::Mode;
use crate::types::refusal::RefusalReason;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{Shutdown, shutdown};

/// How long an announcement may arrive after the frame or packet that refers to it.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of fds that arrive with one message.
pub(super) const MAX_FDS: usize = 2;

/// A connection to one run of a publisher. Frames in use keep it open, and with it the place among the
/// publisher's subscribers.
pub(crate) struct Connection {
    pub(super) key: String,
    pub(super) mode: Mode,
    /// Number of frames that the subscriber may hold at a time.
    pub(super) credit: u32,
    /// Identifies the run of the publisher.
    pub(super) epoch: u64,
    pub(super) control: Control,
    pub(super) page: SubscriberPage,
    /// Ends the waits of this subscriber. Its doorbell also rings for each message, and for a released frame while a
    /// reader waits for one.
    pub(super) interrupt: Interrupt,
    pub(super) state: Mutex<State>,
    /// Number of announcements handled so far. While it is unchanged, a lookup in `state` returns the same
    /// result as before, so that readers cache the result instead of locking.
    pub(super) announcements: AtomicU64,
    /// Whether `state.disconnect` is set.
    pub(super) disconnected: AtomicBool,
    /// Frames in use.
    pub(super) leases: Leases,
    /// Number of frames that were copied instead of held, for the publisher's statistics.
    pub(super) copied: AtomicU64,
    /// Which reader entries of the page are in use, one bit each.
    pub(super) readers: Mutex<u32>,
    pub(super) importer: Importer,
    /// Process that connected. A forked child inherits this object but is not the subscriber.
    pub(super) owner: Owner,
    /// Closed last, because the publisher then discards all claims of this subscriber.
    pub(super) socket: Socket,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("key", &self.key)
            .field("mode", &self.mode)
            .field("credit", &self.credit)
            .field("epoch", &self.epoch)
            .field("leases", &self.leases)
            .finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Closing the fd is not enough: a forked child may still have it open.
        if self.owner.is_this_process() {
            let _ = shutdown(self.socket.as_fd().as_raw_fd(), Shutdown::Both);
        }
    }
}

impl Connection {
    /// Wakes the publisher if it waits for this subscriber. Call it after moving a cursor or releasing a
    /// claim.
    pub(super) fn notify_publisher(&self) {
        waiter::notify(&self.control.header().status.publisher_waits, &self.page.header().futex);
    }

    /// Stops counting the frames whose claims a device has cleared since the last call.
    pub(super) fn collect_returned(&self) {
        self.leases.collect_returned(|slot| self.page.held(slot));
    }

    /// Tells the publisher that this subscriber takes no more frames. Frames in use stay valid.
    pub(super) fn leave(&self) {
        if !self.owner.is_this_process() {
            return;
        }
        let _ = self.socket.send(&Message::Leave, &[]);
    }

    /// Returns the error for a publisher that broke the protocol.
    pub(super) fn protocol_error(&self, problem: impl Into<String>) -> Error {
        Error::Protocol { key: self.key.clone(), problem: problem.into() }
    }

    /// Returns why the connection ended; `None` while it is open.
    pub(super) fn disconnect(&self) -> Option<Disconnect> {
        // SYNC(disconnect/head): pairs with the Release in `close`. Everything that the publisher stored
        // before the end of the connection was noticed is visible after this load.
        if !self.disconnected.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.state).disconnect.clone()
    }

    /// Returns the number of announcements so far: equal numbers mean an unchanged [`State`].
    pub(super) fn announcements(&self) -> u64 {
        // SYNC(announcements/lookup): pairs with the Release in `announce`.
        self.announcements.load(Ordering::Acquire)
    }

    /// Notes that `state` has changed. Call it while the change is protected by the lock of `state`.
    fn announce(&self) {
        // SYNC(announcements/lookup): pairs with the Acquire in `announcements`.
        self.announcements.fetch_add(1, Ordering::Release);
    }

    /// Returns what `find` finds in the announcements. Waits while it is still on its way: the publisher
    /// sends an announcement before it publishes a frame or packet that refers to it. `what` names it in
    /// errors.
    ///
    /// # Errors
    /// [`Error::Refused`] if the connection ended, or after 10 s; [`Error::Interrupted`].
    pub(super) fn wait_announced<T>(
        &self,
        what: &str,
        find: impl Fn(&State) -> Option<T>,
    ) -> Result<T> {
        let mut deadline = None;
        loop {
            // SYNC(bell/ticket): read before the state, so that a change after the lookup ends the sleep.
            let ticket = self.interrupt.bell().ticket();
            let importing = {
                let state = lock(&self.state);
                if let Some(found) = find(&state) {
                    return Ok(found);
                }
                if let Some(Disconnect { reason, text }) = state.disconnect.clone() {
                    return Err(Error::Refused { key: self.key.clone(), reason, text });
                }
                state.importing
            };
            if self.interrupt.is_set() {
                return Err(Error::Interrupted);
            }
            let now = clock::now();
            let deadline = *deadline.get_or_insert(now + ANNOUNCE_TIMEOUT);
            // No timeout during an import: the first use of a GPU takes seconds, and many processes that
            // start with it wait for each other, which is not the publisher's fault. The bell rings when
            // the import is done.
            let left = (!importing).then(|| deadline.saturating_sub(now));
            if left.is_some_and(|left| left.is_zero()) {
                // The publisher may have no file descriptors or memory left, which may pass.
                return Err(Error::Refused {
                    key: self.key.clone(),
                    reason: RefusalReason::NoMemory,
                    text: format!("it did not announce the {what} within 10 s"),
                });
            }
            // Only the bell: new frames and packets do not matter.
            self.interrupt.bell().wait(ticket, left);
        }
    }

    /// Records why the connection ended; the first reason counts. Wakes the readers.
    fn close(&self, reason: RefusalReason, text: String) {
        lock(&self.state).disconnect.get_or_insert(Disconnect { reason, text });
        // SYNC(disconnect/head): pairs with the Acquire in `disconnect`.
        self.disconnected.store(true, Ordering::Release);
        self.interrupt.bell().ring();
    }

    /// Handles messages until the connection ends or `stop` is written to.
    pub(super) fn listen(&self, stop: &EventFd) {
        loop {
            let mut fds = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            ];
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                continue;
            }
            if fds[1].any().unwrap_or(true) {
                return;
            }
            let (message, fds) = match self.socket.receive(MAX_FDS) {
                Ok(Received::Nothing) => continue,
                Ok(Received::Message(message, fds)) => (message, fds),
                Ok(Received::Malformed(e)) => {
                    return self.close(RefusalReason::Malformed, e.to_string());
                }
                // A reason that may pass: another attempt can succeed.
                Err(e) if e.raw_os_error() == Some(Errno::EMFILE as i32) => {
                    return self.close(RefusalReason::NoMemory, NO_FDS.into());
                }
                Ok(Received::Closed) | Err(_) => {
                    return self.close(RefusalReason::Closing, "the publisher is gone".into());
                }
            };
            match self.handle_message(message, fds) {
                Ok(true) => self.interrupt.bell().ring(),
                Ok(false) => return,
                Err(Disconnect { reason, text }) => return self.close(reason, text),
            }
        }
    }

    /// Handles one message. Returns whether more messages follow.
    ///
    /// # Errors
    /// The message is invalid, or this process has no resources for it.
    fn handle_message(&self, message: Message, fds: Vec<OwnedFd>) -> Result<bool, Disconnect> {
        let mut fds = fds.into_iter();
        let mut fd = || fds.next().expect("decode has counted the fds");
        // Mappings are created and destroyed outside the lock, because readers take it.
        match message {
            Message::Format { generation, caps } => {
                let mut state = lock(&self.state);
                // Frames of recent generations may still arrive, frames of much older ones cannot.
                state.formats.add(generation, caps);
                self.announce();
            }
            // A subscriber without credit needs no memory for frames, and may have no GPU.
            Message::Chunk { .. } if self.credit == 0 => {}
            Message::Chunk { id, kind, device, slots, stride, size } => {
                let kind = Kind::try_from(kind)
                    .map_err(|k| invalid(format!("unknown memory kind {k}")))?;
                let geometry = Geometry { slots, stride, size };
                let info = ChunkInfo { kind, device: Uuid(device), geometry };
                self.import_chunk(id, info, fd())?;
            }
            Message::Retire { chunk } => {
                let mut state = lock(&self.state);
                let chunk = state.chunks.remove(&chunk);
                self.announce();
                drop(state);
                drop(chunk);
            }
            Message::Track { track, bytes } => self.map_track(track, bytes, fd())?,
            Message::TrackFormat { track, generation, caps } => {
                let state = lock(&self.state);
                let view =
                    state.tracks.get(&track).ok_or_else(|| invalid("caps of an unknown track"))?;
                lock(&view.formats).add(generation, caps);
                self.announce();
            }
            Message::Bye { reason, text } => {
                self.close(reason, text);
                return Ok(false);
            }
            Message::Hello(_)
            | Message::Welcome { .. }
            | Message::Refused { .. }
            | Message::Leave
            | Message::StatusRequest { .. }
            | Message::Status { .. } => {
                return Err(invalid("a message came out of order"));
            }
        }
        Ok(true)
    }

    /// Maps a chunk and adds it to the state. A chunk with the same id is replaced.
    fn import_chunk(&self, id: u32, info: ChunkInfo, fd: OwnedFd) -> Result<(), Disconnect> {
        let bytes = info.geometry.bytes().ok_or_else(|| invalid("a chunk of invalid size"))?;
        {
            let mut state = lock(&self.state);
            if state.chunks.len() >= MAX_ANNOUNCED || !state.has_room(bytes as u64) {
                return Err(invalid("too many chunks, or too big ones"));
            }
            state.importing = true;
        }
        let chunk = self.importer.import(info, fd);
        let mut state = lock(&self.state);
        state.importing = false;
        let chunk =
            chunk.map_err(|e| unmappable(&e, format!("the frames can't be mapped: {e}")))?;
        let replaced = state.chunks.insert(id, chunk);
        self.announce();
        drop(state);
        drop(replaced);
        Ok(())
    }

    /// Maps the segment of a track and adds it to the state. A track with the same number is replaced.
    fn map_track(&self, track: u32, bytes: u64, fd: OwnedFd) -> Result<(), Disconnect> {
        let size = TrackSegment::size(bytes).ok_or_else(|| invalid("an invalid track"))?;
        {
            let state = lock(&self.state);
            if state.tracks.len() >= MAX_TRACKS || !state.has_room(size as u64) {
                return Err(invalid("too many tracks, or too big ones"));
            }
        }
        let map = Mapping::import(fd.as_fd(), size, Sharing::ReadOnly)
            .map_err(|e| unmappable(&e, format!("the packets can't be mapped: {e}")))?;
        let segment = TrackSegment::new(map, bytes);
        let h = segment.header();
        check_segment(&h.magic, &h.version).map_err(|e| invalid(format!("a track {e}")))?;
        let view = Arc::new(TrackView { segment, formats: Mutex::default() });
        let mut state = lock(&self.state);
        let replaced = state.tracks.insert(track, view);
        self.announce();
        drop(state);
        drop(replaced);
        Ok(())
    }
}

/// Returns the end of a connection whose publisher sent something invalid.
fn invalid(text: impl Into<String>) -> Disconnect {
    Disconnect { reason: RefusalReason::Malformed, text: text.into() }
}

/// Returns the end of a connection whose memory could not be mapped. A lack of resources of this process may pass, and is
/// not the publisher's fault.
fn unmappable(e: &io::Error, text: String) -> Disconnect {
    let reason = match is_exhausted(e) {
        true => RefusalReason::NoMemory,
        false => RefusalReason::Malformed,
    };
    Disconnect { reason, text }
}

const NO_FDS: &str = "this process has no file descriptor left for what the publisher sends: raise its limit (ulimit -n)";

/// Checks the first two words of a segment.
pub(super) fn check_segment(magic: &AtomicU64, version: &AtomicU32) -> Result<(), String> {
    // SYNC(magic/open): pairs with the Release of the publisher, which writes the magic last. All other
    // words of the header are initialized.
    if magic.load(Ordering::Acquire) != MAGIC {
        return Err("has no valid header".into());
    }
    match version.load(Ordering::Relaxed) {
        LAYOUT_VERSION => Ok(()),
        v => Err(format!("has layout version {v}, this side knows {LAYOUT_VERSION}")),
    }
}

/// The thread that handles the messages of a connection. Dropping it stops and joins the thread.
#[derive(Debug)]
pub(super) struct Listener {
    stop: Arc<EventFd>,
    thread: Option<std::thread::JoinHandle<()>>,
    owner: Owner,
}

impl Listener {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error::System`] if the system has no eventfd or thread left.
    pub(super) fn start(connection: &Arc<Connection>) -> Result<Self> {
        use nix::sys::eventfd::EfdFlags;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("create an eventfd")?;
        let stop = Arc::new(stop);
        let (connection, stopped) = (connection.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("cuframes-client".into())
            .spawn(move || connection.listen(&stopped))
            .context("start the listening thread")?;
        Ok(Self { stop, thread: Some(thread), owner: Owner::this_process() })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if !self.owner.is_this_process() {
            // The thread is the parent's, and so is the eventfd. This process can neither join nor detach it.
            std::mem::forget(thread);
            return;
        }
        let _ = self.stop.write(1);
        let _ = thread.join();
    }
}
