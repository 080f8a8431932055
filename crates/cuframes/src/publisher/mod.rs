// SPDX-License-Identifier: LGPL-2.1-or-later
//! The publisher: owns a key, lends slots, publishes frames and packets.
//!
//! [`frames`] lends and publishes slots, which [`pool`] manages. [`track`] writes packets. [`backpressure`] waits for
//! slow subscribers, [`waker`] wakes sleeping ones. [`registry`] has the subscribers and all announcements. [`server`] runs the
//! publisher's own thread, which accepts connections on the [`endpoint`].

mod backpressure;
mod endpoint;
mod frames;
mod handle;
mod info;
mod pool;
mod registry;
mod server;
mod state;
mod status;
mod track;
mod waker;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

pub use backpressure::Policy;
pub use endpoint::SocketAccess;
pub use frames::{Loan, PoolStats};
pub use info::{PublisherEvent, ReaderInfo, SubscriberInfo};
pub use track::{PushError, Track, TrackConfig, TrackStats};

use crate::error::{Context, Error, Result};
use crate::memory::Backend;
use crate::protocol::wire::check_caps;
use crate::shm::layout::MAX_SLOTS;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::process::Owner;
use crate::sync::{clock, lock};
use crate::types::frame::FrameInfo;
use endpoint::Endpoint;
use frames::{FramePublisher, FramePublisherConfig};
use info::{Tracks, track_stats};
use registry::Registry;
use server::Server;
use state::State;
use track::TrackWriter;

/// Configuration of a [`Publisher`].
#[derive(Debug, Clone)]
pub struct PublisherConfig {
    /// Key that subscribers ask for: 1 to 63 characters of `A-Za-z0-9_.-`, without a dot at the start.
    pub key: String,
    /// Directory of the socket; `None` for the first usable of [`runtime_dirs`](crate::runtime_dirs).
    pub runtime_dir: Option<PathBuf>,
    /// Name that other publishers of the key and observers see. Default: `publisher`.
    pub name: String,
    /// Number of newest frames that are kept for subscribers that are just waking up, at least 1. Default: 2.
    pub window: u32,
    /// What happens when subscribers are slower than the publisher. Default: [`Policy::Drop`].
    pub policy: Policy,
    /// Maximum number of connected subscribers. Default: 32.
    pub max_subscribers: u32,
    /// Maximum number of frames that one subscriber may hold at a time. Default: 8.
    ///
    /// `window` + `max_subscribers` × `max_frames_per_subscriber` is at most 4,096.
    pub max_frames_per_subscriber: u32,
    /// Time after which a subscriber that holds frames and takes none is evicted; `None` and
    /// [`Duration::MAX`] for never. Default: `None`.
    pub stall_timeout: Option<Duration>,
    /// Which processes may connect. Default: mode 0660, the group of the process.
    pub socket: SocketAccess,
    /// User ids that may subscribe; empty, the default, for all users that may connect.
    pub allowed_uids: Vec<u32>,
}

impl PublisherConfig {
    /// Returns a configuration with the defaults.
    pub fn new(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            runtime_dir: None,
            name: "publisher".into(),
            window: 2,
            policy: Policy::Drop,
            max_subscribers: 32,
            max_frames_per_subscriber: 8,
            stall_timeout: None,
            socket: SocketAccess { mode: 0o660, group: None },
            allowed_uids: Vec::new(),
        }
    }
}

/// Statistics of a [`Publisher`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublisherStats {
    /// The pool of frames.
    pub pool: PoolStats,
    /// The connected subscribers, in the order in which they joined.
    pub subscribers: Vec<SubscriberInfo>,
    /// The tracks, in the order of their numbers.
    pub tracks: Vec<TrackStats>,
}

/// Shared memory with words that a GPU writes: see [`Publisher::ready_words`].
#[derive(Clone)]
pub struct SharedWords {
    /// Start of the shared memory, which is page-aligned and mapped for reading and writing.
    pub base: *mut u8,
    /// Length of the shared memory in bytes.
    pub len: usize,
    /// Keeps the memory mapped. It has to outlive every use of `base`, also by a device.
    pub keep_alive: Arc<dyn Send + Sync>,
}

// SAFETY: `base` points to a mapping that is valid in every thread of the process while `keep_alive` exists, and that
// consists of atomics. The struct only carries the address, and each access through it is unsafe code of the caller.
unsafe impl Send for SharedWords {}
// SAFETY: as above. A shared reference gives access to the address and nothing else.
unsafe impl Sync for SharedWords {}

impl fmt::Debug for SharedWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base, len, .. } = self;
        f.debug_struct("SharedWords").field("base", base).field("len", len).finish_non_exhaustive()
    }
}

/// The owner of a key, which publishes frames and packets to all subscribers of the key.
///
/// A publisher runs one thread, which serves connections. Dropping the publisher disconnects the subscribers and
/// releases the key. Loans, and frames that subscribers hold, stay valid.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
///
/// use cuframes::memory::host::HostBackend;
/// use cuframes::{FrameInfo, Plane, Publisher, PublisherConfig};
///
/// const WIDTH: usize = 64;
/// const HEIGHT: usize = 48;
///
/// # let dir = std::env::temp_dir().join(format!("cuframes-doc-publisher-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// let config = PublisherConfig { runtime_dir: Some(dir.clone()), ..PublisherConfig::new("camera") };
/// let publisher = Publisher::open(config, Arc::new(HostBackend), |event| println!("{event:?}"))?;
/// let caps = "video/x-raw,format=GRAY8,width=64,height=48,framerate=25/1";
/// publisher.set_format(caps, WIDTH * HEIGHT)?;
///
/// // Write a frame into a slot and publish it. The subscribers read the slot itself.
/// let mut loan = publisher.loan(WIDTH * HEIGHT)?.expect("a free slot");
/// loan.bytes_mut()[..WIDTH * HEIGHT].fill(128);
/// let info = FrameInfo {
///     size: WIDTH * HEIGHT,
///     planes: [Plane { offset: 0, stride: WIDTH as i32 }].into_iter().collect(),
///     ..Default::default()
/// };
/// assert_eq!(publisher.publish(loan, &info), 1);
/// # drop(publisher);
/// # let _ = std::fs::remove_dir_all(dir);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Publisher {
    frames: Arc<FramePublisher>,
    registry: Arc<Registry>,
    tracks: Tracks,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
    owner: Owner,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

impl Publisher {
    /// Takes the key and starts to accept subscribers. `backend` allocates the memory for frames. `events` is called
    /// from the publisher's own thread, which also serves the subscribers: it has to return soon.
    ///
    /// # Errors
    /// The key is invalid ([`Error::Key`]) or taken ([`Error::Busy`]), the runtime directory is unusable
    /// ([`Error::RuntimeDir`]), a number is out of range, or the system has no memory, threads or
    /// file descriptors left.
    pub fn open(
        config: PublisherConfig,
        backend: Arc<dyn Backend>,
        events: impl Fn(PublisherEvent) + Send + Sync + 'static,
    ) -> Result<Self> {
        let credits = config.max_subscribers.saturating_mul(config.max_frames_per_subscriber);
        if config.window == 0 || credits.saturating_add(config.window) > MAX_SLOTS / 4 {
            return Err(Error::InvalidConfig {
                what: "The frame pool",
                problem: format!(
                    "is not possible with a window of {} frames and max-subscribers × max-frames-per-subscriber = {credits}: together they have to be 1 to {}",
                    config.window,
                    MAX_SLOTS / 4
                ),
            });
        }
        let dir = config.runtime_dir.as_deref();
        let endpoint = Endpoint::open(dir, &config.key, &config.name, &config.socket)?;
        let registry = Arc::new(Registry::new()?);
        let epoch = new_epoch();
        let PublisherConfig { window, policy, .. } = config;
        let frames = FramePublisher::new(
            backend,
            registry.clone(),
            FramePublisherConfig { window, policy, credits, epoch },
        )?;
        let frames = Arc::new(frames);
        let stop = Arc::new(AtomicBool::new(false));
        let tracks = Tracks::default();
        let state = State {
            key: config.key,
            name: config.name,
            epoch,
            registry: registry.clone(),
            frames: frames.clone(),
            tracks: tracks.clone(),
            max_subscribers: config.max_subscribers,
            max_frames_per_subscriber: config.max_frames_per_subscriber,
        };
        let server = Server {
            state,
            endpoint,
            allowed_uids: config.allowed_uids,
            stall_timeout: config.stall_timeout,
            events: Box::new(events),
            stop: stop.clone(),
        };
        let server = std::thread::Builder::new()
            .name("cuframes-server".into())
            .spawn(move || server.run())
            .context("start the server thread")?;
        let owner = Owner::this_process();
        Ok(Self { frames, registry, tracks, stop, server: Some(server), owner })
    }

    /// Sets the caps of all later frames, and the size that each needs in bytes.
    ///
    /// Slots of another size are allocated if `frame_size` exceeds the present size or is less than half of it. Old
    /// slots are freed when their frames are no longer needed.
    ///
    /// # Errors
    /// The caps are longer than 61,440 bytes or contain control characters ([`Error::InvalidConfig`]); the previous
    /// format then stays in effect. Or there is no memory or no slot number for a single slot.
    pub fn set_format(&self, caps: &str, frame_size: usize) -> Result<()> {
        check_caps(caps)?;
        self.frames.set_format(caps, frame_size, None)
    }

    /// Like [`Publisher::set_format`], and also sets the backend that allocates all later slots.
    ///
    /// # Errors
    /// As for [`Publisher::set_format`].
    pub fn set_format_in(
        &self,
        backend: Arc<dyn Backend>,
        caps: &str,
        frame_size: usize,
    ) -> Result<()> {
        check_caps(caps)?;
        self.frames.set_format(caps, frame_size, Some(backend))
    }

    /// Returns a slot for a frame of `size` bytes, or `None` if all slots are in use. Under [`Policy::Wait`] this
    /// function waits for subscribers.
    ///
    /// # Errors
    /// There is no memory or no slot number for a single slot.
    pub fn loan(&self, size: usize) -> Result<Option<Loan>> {
        self.frames.loan(size, None, &|| false)
    }

    /// Like [`Publisher::loan`], in memory of `backend`. Returns `None` soon after `cancelled` returns true while the
    /// publisher waits; it is polled about every 20 ms. The first loan from another backend retires all slots of the
    /// previous one.
    ///
    /// # Errors
    /// As for [`Publisher::loan`].
    pub fn loan_in(
        &self,
        backend: &Arc<dyn Backend>,
        size: usize,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Loan>> {
        self.frames.loan(size, Some(backend), cancelled)
    }

    /// Publishes the frame in a slot, ends the loan, and returns the frame's sequence number, which starts at 1.
    ///
    /// # Panics
    /// If the loan is of another publisher, or was published by [`Publisher::publish_in_place`].
    pub fn publish(&self, loan: Loan, info: &FrameInfo) -> u64 {
        self.publish_owned(loan, info, true)
    }

    /// Like [`Publisher::publish`], for a frame that a device is still writing. When the pixels are complete, the device
    /// has to write the returned sequence number to the word at [`Loan::ready_offset`] in [`Publisher::ready_words`].
    /// Frames may become complete in any order.
    ///
    /// # Panics
    /// As for [`Publisher::publish`].
    pub fn publish_unready(&self, loan: Loan, info: &FrameInfo) -> u64 {
        self.publish_owned(loan, info, false)
    }

    fn publish_owned(&self, loan: Loan, info: &FrameInfo, ready: bool) -> u64 {
        assert!(loan.is_of(&self.frames), "a loan of another publisher");
        loan.publish(info, ready).expect("a loan that was published before")
    }

    /// Publishes the frame in a slot whose loan has another owner, such as a buffer that upstream still reads.
    ///
    /// Returns the sequence number, or `None` if the loan is of another publisher or was published before; the caller
    /// then copies the frame into a new loan. The slot stays on loan until the loan is dropped, and its owner must no
    /// longer write to it, except by a device before the frame is `ready`. With `ready` the pixels are
    /// complete; otherwise the device completes them as in [`Publisher::publish_unready`].
    pub fn publish_in_place(&self, loan: &Loan, info: &FrameInfo, ready: bool) -> Option<u64> {
        if !loan.is_of(&self.frames) {
            return None;
        }
        loan.publish_in_place(info, ready)
    }

    /// The memory of the words to which a device writes when the pixels of a frame are complete; see
    /// [`Publisher::publish_unready`]. There is one word of 8 bytes for each slot, at [`Loan::ready_offset`]. The rest
    /// of the memory must not be written.
    pub fn ready_words(&self) -> SharedWords {
        let memory = self.frames.slots.control.memory();
        SharedWords { base: memory.as_ptr(), len: memory.size(), keep_alive: self.frames.clone() }
    }

    /// Counts a frame that the application dropped because no slot was free.
    pub fn count_dropped(&self) {
        self.frames.count_dropped();
    }

    /// Ends all waits for subscribers, now and later: calls to [`Publisher::loan`] and [`Track::push`] that would wait
    /// return within about 20 ms.
    pub fn stop_waiting(&self) {
        self.frames.backpressure.close();
    }

    /// Sets the maximum delay between a frame's timestamp and its publication, which subscribers report as their
    /// latency.
    pub fn set_latency(&self, latency: Duration) {
        let ns = latency.as_nanos().min(u64::MAX.into()) as u64;
        self.frames.slots.control.header().status.latency_ns.store(ns, Ordering::Relaxed);
    }

    /// Marks the end of the stream after the newest frame. A later frame removes the mark.
    pub fn end_of_frames(&self) {
        self.frames.end();
    }

    /// Adds a track for packets, with `caps` for its first packet. If the track exists already it is returned with
    /// these caps; its packets and its configuration stay, so that its readers continue.
    ///
    /// # Errors
    /// `config.bytes` is impossible, the caps are as described at [`Track::set_caps`], or the system has no memory or
    /// file descriptors left ([`Error::System`]). An existing track then keeps its caps.
    pub fn add_track(&self, track: u32, caps: &str, config: TrackConfig) -> Result<Track> {
        check_caps(caps)?;
        let mut tracks = lock(&self.tracks);
        if let Some(existing) = tracks.iter().find(|t| t.id() == track) {
            existing.set_caps(caps);
            return Ok(Track(existing.clone()));
        }
        let writer = TrackWriter::new(track, config, self.registry.clone(), self.frames.clone())?;
        let writer = Arc::new(writer);
        writer.set_caps(caps);
        tracks.push(writer.clone());
        Ok(Track(writer))
    }

    /// Returns the statistics of the publisher.
    pub fn stats(&self) -> PublisherStats {
        PublisherStats {
            pool: self.frames.stats(),
            subscribers: self
                .registry
                .subscribers()
                .iter()
                .map(|s| SubscriberInfo::of(s))
                .collect(),
            tracks: track_stats(&self.tracks),
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let server = self.server.take();
        if !self.owner.is_this_process() {
            // The thread is the parent's, and so are the connections. This process can neither join nor detach it.
            std::mem::forget(server);
            return;
        }
        self.frames.backpressure.close();
        // SYNC(stop/run): pairs with the Acquire in `Server::run`.
        self.stop.store(true, Ordering::Release);
        self.registry.wake_server();
        // The receiver of an event may drop the last reference, on the server thread itself. That thread then ends
        // without being joined.
        if let Some(server) = server.filter(|s| s.thread().id() != std::thread::current().id()) {
            let _ = server.join();
        }
    }
}

/// Returns a number that no other run of a publisher on this host has.
fn new_epoch() -> u64 {
    // A static of this process, which loom does not model.
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    clock::now_ns() as u64
        ^ u64::from(std::process::id()) << 40
        ^ COUNT.fetch_add(1, Ordering::Relaxed)
}
