//! The publishing end: owns the key, lends slots, publishes frames and packets.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
mod backpressure;
mod endpoint;
mod frames;
mod info;
mod pool;
mod registry;
mod server;
mod state;
mod status;
mod track;

pub use backpressure::Policy;
pub use endpoint::SocketAccess;
pub use frames::{Loan, PoolStats};
pub use info::{PublisherEvent, ReaderInfo, SubscriberInfo};
pub use track::{PushError, TrackConfig, TrackStats};

use crate::error::{Context, Error, Result};
use crate::memory::Backend;
use crate::shm::layout::MAX_SLOTS;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{clock, lock};
use crate::types::frame::FrameInfo;
use crate::types::packet::PacketInfo;
use endpoint::Endpoint;
use frames::FramePublisher;
use info::{Tracks, track_stats};
use registry::Registry;
use server::Server;
use state::State;

/// How a publisher is to be.
#[derive(Debug, Clone)]
pub struct PublisherConfig {
    /// What subscribers ask for: 1 to 63 of `A-Za-z0-9_.-`, no dot at the start.
    pub key: String,
    /// Where the socket is; `None` for the usual places.
    pub runtime_dir: Option<PathBuf>,
    /// What others are told when they want the key too.
    pub name: String,
    /// Newest frames that are kept for subscribers which are just waking up; at least 1.
    pub window: u32,
    pub policy: Policy,
    pub max_subscribers: u32,
    /// FramePublisher that one subscriber may hold at a time.
    pub max_frames_per_subscriber: u32,
    /// A subscriber that holds frames and does not move is sent away after this long.
    pub stall_timeout: Option<Duration>,
    /// Who may connect.
    pub socket: SocketAccess,
    /// Users who may subscribe, by number; empty for all who may connect.
    pub allowed_uids: Vec<u32>,
}

impl PublisherConfig {
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublisherStats {
    pub pool: PoolStats,
    pub subscribers: Vec<SubscriberInfo>,
    pub tracks: Vec<TrackStats>,
}

/// The owner of a key. Dropping it tells the subscribers and frees the key; loans may live on.
pub struct Publisher {
    frames: Arc<FramePublisher>,
    registry: Arc<Registry>,
    tracks: Tracks,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Publisher {
    /// Takes the key. `events` is called from the publisher's own thread.
    ///
    /// Errors: the key is bad ([`Error::Key`]) or taken ([`Error::Busy`]), the runtime directory can't
    /// be used, a number is out of range, the system has no memory or fds left.
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
        let frames = FramePublisher::new(
            backend,
            registry.clone(),
            config.window,
            config.policy,
            credits,
            epoch,
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
        Ok(Self { frames, registry, tracks, stop, server: Some(server) })
    }

    /// FramePublisher from now on have these caps, and need slots of this many bytes.
    pub fn set_format(&self, caps: &str, frame_size: usize) -> Result<()> {
        self.frames.set_format(caps, frame_size, None)
    }

    /// As [`Publisher::set_format`], and frames are in another kind of memory from now on.
    pub fn set_format_in(
        &self,
        backend: Arc<dyn Backend>,
        caps: &str,
        frame_size: usize,
    ) -> Result<()> {
        self.frames.set_format(caps, frame_size, Some(backend))
    }

    /// A slot for a frame of `size` bytes; `None` where all are in use. Under [`Policy::Wait`] this is
    /// where the publisher waits.
    pub fn loan(&self, size: usize) -> Result<Option<Loan>> {
        self.frames.loan(size, None, &|| false)
    }

    /// As [`Publisher::loan`], in memory of this backend, and gives up waiting soon after `cancelled`
    /// says so. All slots move to another backend with the first loan from it.
    pub fn loan_in(
        &self,
        backend: &Arc<dyn Backend>,
        size: usize,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Loan>> {
        self.frames.loan(size, Some(backend), cancelled)
    }

    /// Publishes what was written to a slot, and gives its sequence number, which starts at 1.
    pub fn publish(&self, loan: Loan, info: &FrameInfo) -> u64 {
        loan.publish(info, true).expect("a loan that was not published belongs to its owner")
    }

    /// Publishes a frame that a device is still writing: the device has to write the number that this
    /// gives to the word [`Publisher::ready_word`] when it is done, in the order of publication.
    pub fn publish_unready(&self, loan: Loan, info: &FrameInfo) -> u64 {
        loan.publish(info, false).expect("a loan that was not published belongs to its owner")
    }

    /// The memory that is shared with all subscribers, where in it the device writes the number of the
    /// newest frame that is complete, and what keeps it mapped.
    pub fn ready_word(&self) -> (*mut u8, usize, usize, Arc<dyn Send + Sync>) {
        let memory = self.frames.slots.control.memory();
        let offset = std::mem::offset_of!(crate::shm::layout::ControlHeader, ready);
        (memory.as_ptr(), memory.size(), offset, self.frames.clone())
    }

    /// Publishes the loan that the address falls into; its owner goes on reading it. If the frame is
    /// `ready`, the owner has to write no more; otherwise as in [`Publisher::publish_unready`]. `info` is
    /// handed the distance from the slot's start in bytes. `None` if the address is in no slot on loan,
    /// or the slot was published already.
    pub fn publish_at(
        &self,
        address: u64,
        ready: bool,
        info: impl FnOnce(u64) -> FrameInfo,
    ) -> Option<u64> {
        self.frames.publish_at(address, ready, info)
    }

    /// Counts a frame that could not be published.
    pub fn count_dropped(&self) {
        self.frames.count_dropped();
    }

    /// Waits for subscribers no more: threads in [`Publisher::loan`] return soon.
    pub fn stop_waiting(&self) {
        self.frames.backpressure.close();
    }

    /// How far behind its timestamps frames are published at most.
    pub fn set_latency(&self, latency: Duration) {
        let ns = latency.as_nanos().min(u64::MAX.into()) as u64;
        self.frames.slots.control.header().status.latency_ns.store(ns, Ordering::Relaxed);
    }

    /// No frame comes any more; subscribers see the end behind the last one.
    pub fn end_of_frames(&self) {
        self.frames.end();
    }

    /// A track for packets, which starts with these caps. One that was there before goes on as it was.
    pub fn add_track(&self, track: u32, caps: &str, config: TrackConfig) -> Result<Track> {
        let mut tracks = lock(&self.tracks);
        // A track that comes again goes on where it was, for those who read it.
        if let Some(old) = tracks.iter().find(|t| t.stats().track == track) {
            old.set_caps(caps);
            return Ok(Track(old.clone()));
        }
        let new =
            Arc::new(track::Track::new(track, config, self.registry.clone(), self.frames.clone())?);
        new.set_caps(caps);
        tracks.push(new.clone());
        Ok(Track(new))
    }

    pub fn stats(&self) -> PublisherStats {
        PublisherStats {
            pool: self.frames.stats(),
            subscribers: self.registry.peers().1.iter().map(|p| SubscriberInfo::of(p)).collect(),
            tracks: track_stats(&self.tracks),
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.frames.backpressure.close();
        self.stop.store(true, Ordering::Release);
        self.registry.wake_server();
        // The last owner may be an event's receiver, on the server thread itself.
        let server = self.server.take();
        if let Some(server) = server.filter(|s| s.thread().id() != std::thread::current().id()) {
            let _ = server.join();
        }
    }
}

/// A track of a publisher.
#[derive(Clone)]
pub struct Track(Arc<track::Track>);

impl Track {
    /// Packets from now on have these caps.
    pub fn set_caps(&self, caps: &str) {
        self.0.set_caps(caps);
    }

    /// Publishes a packet, and gives its sequence number, which starts at 0. Under [`Policy::Wait`] it
    /// waits for readers of [`Mode::Strict`] that have still to take what has to make room.
    ///
    /// Errors: the packet has more bytes than the track's ring, or depends on one that had; or the
    /// publisher waits no more ([`Publisher::stop_waiting`]).
    pub fn push(&self, info: PacketInfo, data: &[u8]) -> Result<u64, PushError> {
        self.0.push(info, data, &|| false)
    }

    /// As [`Track::push`], but gives up waiting soon after `cancelled` says so.
    pub fn push_unless(
        &self,
        info: PacketInfo,
        data: &[u8],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<u64, PushError> {
        self.0.push(info, data, cancelled)
    }

    /// What it has, and had to refuse.
    pub fn stats(&self) -> TrackStats {
        self.0.stats()
    }

    /// No packet comes any more.
    pub fn end(&self) {
        self.0.end();
    }
}

/// A number that no other life of a publisher on this host has.
fn new_epoch() -> u64 {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    clock::now_ns() as u64
        ^ u64::from(std::process::id()) << 40
        ^ COUNT.fetch_add(1, Ordering::Relaxed)
}
