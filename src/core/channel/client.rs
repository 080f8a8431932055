//! The subscriber's side of the connection: the way to a publisher, and the thread that listens to it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{Shutdown, shutdown};

use super::directory::{Attempt, Watch, candidates, check_key, try_connect};
use super::message::{Code, Hello, Message, Mode, VERSIONS};
use super::socket::{Connection, Received};
use crate::core::board::lock;
use crate::core::error::{Context, Error, Result};
use crate::core::frames::claim;
use crate::core::layout::{LAYOUT_VERSION, MAGIC, MAX_SLOTS};
use crate::core::shm::{Control, Mapping, Page, Sharing, TrackSegment};
use crate::core::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use crate::core::wake::{self, Doorbell, Interrupt};
use crate::gpu::Uuid;
use crate::memory::{Geometry, Imported, Importer, Kind};

/// A publisher that accepted the connection has this long to answer.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(2);
/// What a frame refers to has come by this time.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(10);
/// Where a directory can't be watched, and for whatever a watch may miss.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_WATCHED: Duration = Duration::from_secs(2);
/// Chunks, and generations of frames or of a track, that a publisher may have at a time, before it is
/// taken for one that wants to fill our memory.
const MAX_ANNOUNCED: usize = 4096;
pub(super) const MAX_TRACKS: usize = 256;
/// Bytes of caps that are kept, of frames and for each track.
const MAX_CAPS: usize = 1 << 20;
/// Bytes that a publisher may have us map: a part of the address space, which this process needs, too.
const MAX_MAPPED: u64 = 1 << 42;
/// Fds that come with a message at most.
const MAX_FDS: usize = 2;

/// Caps by generation, as many of the newest as there is room for.
#[derive(Default)]
pub(crate) struct Formats {
    all: VecDeque<(u32, Arc<str>)>,
    bytes: usize,
}

impl Formats {
    fn add(&mut self, generation: u32, caps: String) {
        self.bytes += caps.len();
        self.all.push_back((generation, caps.into()));
        while self.all.len() > MAX_ANNOUNCED || self.bytes > MAX_CAPS {
            self.bytes -= self.all.pop_front().map_or(self.bytes, |(_, caps)| caps.len());
        }
    }

    pub fn get(&self, generation: u32) -> Option<Arc<str>> {
        self.all.iter().rev().find(|(g, _)| *g == generation).map(|(_, caps)| caps.clone())
    }
}

/// A track as this subscriber sees it.
pub(crate) struct TrackView {
    pub segment: TrackSegment,
    formats: Mutex<Formats>,
}

impl TrackView {
    /// The caps of a generation.
    pub fn caps(&self, generation: u32) -> Option<Arc<str>> {
        lock(&self.formats).get(generation)
    }
}

#[derive(Default)]
pub(crate) struct State {
    pub formats: Formats,
    pub chunks: HashMap<u32, Arc<dyn Imported>>,
    pub tracks: HashMap<u32, Arc<TrackView>>,
    pub closed: Option<(Code, String)>,
    /// A chunk is being mapped.
    importing: bool,
}

impl State {
    /// Whether `more` bytes may be mapped.
    fn has_room(&self, more: u64) -> bool {
        let chunks = self.chunks.values().filter_map(|c| c.geometry().bytes());
        let tracks = self.tracks.values().map(|t| t.segment.memory().len());
        let mapped: u64 = chunks.chain(tracks).map(|bytes| bytes as u64).sum();
        more <= MAX_MAPPED.saturating_sub(mapped)
    }
}

/// One connection to one life of a publisher. Frames that are in use keep it, and with it the place.
pub(crate) struct Shared {
    pub key: String,
    pub mode: Mode,
    pub credit: u32,
    /// Which life of a publisher this is.
    pub epoch: u64,
    pub control: Control,
    pub page: Page,
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
    importer: Importer,
    /// A process that was forked off has this, too, and is not the one that subscribed.
    process: u32,
    /// Closed last: that is what tells the publisher that no claim counts any more.
    connection: Connection,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // To close it is not enough where a process was forked off, which has it open still.
        if self.process == std::process::id() {
            let _ = shutdown(self.connection.as_fd().as_raw_fd(), Shutdown::Both);
        }
    }
}

impl Shared {
    /// To be called after the cursor was moved or a claim released: wakes a publisher that waits for it.
    pub fn moved(&self) {
        // Pairs with the fence in `Patience::wait_for`.
        fence(Ordering::SeqCst);
        if self.control.header().status.publisher_waits.load(Ordering::Relaxed) != 0 {
            let futex = &self.page.header().futex;
            futex.fetch_add(1, Ordering::Release);
            wake::wake_all(futex);
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
        let deadline = wake::now() + ANNOUNCE_TIMEOUT;
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
            let left = deadline.saturating_sub(wake::now());
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

    fn close(&self, code: Code, text: String) {
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
                Ok(Received::Malformed(e)) => return self.close(Code::Malformed, e.to_string()),
                // Another try may have more luck.
                Err(e) if e.raw_os_error() == Some(Errno::EMFILE as i32) => {
                    return self.close(Code::NoMemory, NO_FDS.into());
                }
                Ok(Received::Closed) | Err(_) => {
                    return self.close(Code::Closing, "the publisher is gone".into());
                }
            };
            match self.hear(message.0, message.1) {
                Ok(true) => self.bell.ring(),
                Ok(false) => return,
                Err(text) => return self.close(Code::Malformed, text),
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
                let chunk = self.importer.import((kind, Uuid(device)), fd(), geometry);
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
            | Message::Ask { .. }
            | Message::Status { .. } => {
                return Err("a message came out of order".into());
            }
        }
        Ok(true)
    }
}

const NO_FDS: &str = "this process has no file descriptor left for what the publisher sends: raise its limit (ulimit -n)";

fn check_segment(magic: &AtomicU64, version: &AtomicU32) -> Result<(), String> {
    // Pairs with the Release of the publisher: everything else was written before.
    if magic.load(Ordering::Acquire) != MAGIC {
        return Err("is not what it claims to be".into());
    }
    match version.load(Ordering::Relaxed) {
        LAYOUT_VERSION => Ok(()),
        v => Err(format!("has layout version {v}, this side knows {LAYOUT_VERSION}")),
    }
}

/// Waits for the publisher of a key and joins it.
///
/// `timeout` bounds the wait for a publisher that is not there; `None` is forever. Errors:
/// [`Error::Interrupted`], [`Error::NoPublisher`] after `timeout`, [`Error::Refused`],
/// [`Error::Protocol`], a bad key, or a socket that this user may not write to.
pub(crate) fn connect(
    key: &str,
    runtime_dir: Option<&std::path::Path>,
    (hello, importer): (Hello, Importer),
    timeout: Option<Duration>,
    interrupt: &Interrupt,
) -> Result<Shared> {
    check_key(key)?;
    let dirs = candidates(runtime_dir);
    let deadline = timeout.map(|t| wake::now() + t);
    // Watching begins before the first look, so nothing that comes in between is missed.
    let watch = Watch::new(&dirs);
    loop {
        if interrupt.is_set() {
            return Err(Error::Interrupted);
        }
        let attempt = try_connect(runtime_dir, key)?;
        let crowded = matches!(attempt, Attempt::Crowded);
        if let Attempt::Connected(connection) = attempt
            && let Some(shared) = shake_hands(key, connection, (&hello, &importer), interrupt)?
        {
            return Ok(shared);
        }
        // A queue that gets shorter is no change of the directory.
        let mut pause = if watch.complete && !crowded { RETRY_WATCHED } else { RETRY };
        if let Some(deadline) = deadline {
            let left = deadline.saturating_sub(wake::now());
            if left.is_zero() {
                return Err(no_publisher(key, dirs));
            }
            pause = pause.min(left);
        }
        interrupt.poll(watch.fd().as_slice(), pause);
        watch.drain();
    }
}

fn no_publisher(key: &str, searched: Vec<PathBuf>) -> Error {
    Error::NoPublisher { key: key.to_owned(), searched }
}

/// `None` if the publisher went away during it.
fn shake_hands(
    key: &str,
    connection: Connection,
    (hello, importer): (&Hello, &Importer),
    interrupt: &Interrupt,
) -> Result<Option<Shared>> {
    let protocol = |problem: String| Error::Protocol { key: key.to_owned(), problem };
    if connection.send(&Message::Hello(hello.clone()), &[]).is_err() {
        return Ok(None);
    }
    let deadline = wake::now() + WELCOME_TIMEOUT;
    loop {
        if interrupt.is_set() {
            return Err(Error::Interrupted);
        }
        let left = deadline.saturating_sub(wake::now());
        if left.is_zero() {
            // It may be stopped; whoever waits for a publisher waits for this one as well.
            return Ok(None);
        }
        interrupt.poll(&[connection.as_fd()], left);
        let (message, fds) = match connection.receive(MAX_FDS) {
            Ok(Received::Nothing) => continue,
            Err(e) if e.raw_os_error() == Some(Errno::EMFILE as i32) => {
                return Err(Error::System { what: "take what a publisher sends", source: e });
            }
            Ok(Received::Closed) | Err(_) => return Ok(None),
            Ok(Received::Malformed(e)) => return Err(protocol(e.to_string())),
            Ok(Received::Message(message, fds)) => (message, fds),
        };
        return match message {
            Message::Refused { code, text } => {
                Err(Error::Refused { key: key.to_owned(), code, text })
            }
            Message::Welcome { version, epoch, slots, index, .. } => {
                if !VERSIONS.contains(&version) {
                    return Err(protocol(format!(
                        "it chose version {version} of it, this side speaks {} to {}",
                        VERSIONS.start(),
                        VERSIONS.end()
                    )));
                }
                let own = (hello.mode, hello.credit, importer.clone());
                open(key, connection, own, (epoch, slots, index), fds, interrupt).map(Some).map_err(
                    |e| match e.raw_os_error() {
                        // Not what it sent, but what there is no room for.
                        Some(_) => Error::System { what: "map what a publisher sends", source: e },
                        None => protocol(e.to_string()),
                    },
                )
            }
            _ => Err(protocol("its first message is not WELCOME".into())),
        };
    }
}

fn open(
    key: &str,
    connection: Connection,
    (mode, credit, importer): (Mode, u32, Importer),
    (epoch, slots, index): (u64, u32, u32),
    fds: Vec<OwnedFd>,
    interrupt: &Interrupt,
) -> io::Result<Shared> {
    let bad = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    if slots == 0 || slots > MAX_SLOTS || !index.is_power_of_two() || index > MAX_SLOTS {
        return Err(bad(format!("{slots} slots and {index} index entries are not possible")));
    }
    let map = |fd: &OwnedFd, size, sharing| Mapping::import(fd.as_fd(), size, sharing);
    let control = map(&fds[0], Control::size(slots, index), Sharing::ReadOnly)?;
    let control = Control::new(control, slots, index);
    let page = Page::new(map(&fds[1], Page::size(slots), Sharing::ReadWrite)?, slots);
    let (c, p) = (control.header(), page.header());
    check_segment(&c.magic, &c.version).map_err(|e| bad(format!("the control segment {e}")))?;
    check_segment(&p.magic, &p.version).map_err(|e| bad(format!("the page {e}")))?;
    Ok(Shared {
        key: key.to_owned(),
        mode,
        credit,
        epoch,
        control,
        page,
        bell: interrupt.bell().clone(),
        state: Mutex::default(),
        leases: AtomicU32::new(0),
        awaits_release: AtomicBool::new(false),
        clearing: Mutex::default(),
        copied: AtomicU64::new(0),
        readers: Mutex::default(),
        importer,
        process: std::process::id(),
        connection,
    })
}

/// The thread that listens; dropped, it ends.
pub(crate) struct Listener {
    stop: Arc<EventFd>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Listener {
    pub fn start(shared: &Arc<Shared>) -> Result<Self> {
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
