// SPDX-License-Identifier: LGPL-2.1-or-later
//! The subscribing side: connects to a publisher and takes its frames and packets.

mod announcements;
mod connection;
mod frame;
mod frame_reader;
mod handshake;
mod keyframes;
#[doc(hidden)]
pub mod leases;
mod pace;
mod packet_reader;
mod wait;

pub use frame::{Credit, Frame};
pub use packet_reader::{Packet, PacketReader, ResumePoint, Start};
pub use wait::{Next, Wait};

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::memory::Importer;
use crate::protocol::message::{Hello, VERSIONS};
use crate::protocol::wire::MAX_NAME;
use crate::sync::atomic::Ordering;
use crate::sync::interrupt::Interrupt;
use crate::types::mode::Mode;
use connection::{Connection, Listener};
use frame_reader::FrameReader;
use handshake::{Offer, connect};
use wait::refused_is_lost;

/// Configuration of a [`Subscriber`].
#[derive(Debug, Clone)]
pub struct SubscriberConfig {
    /// Key of the publisher: 1 to 63 of the characters `A-Za-z0-9_.-`, without a dot at the start.
    pub key: String,
    /// Directory that contains the publisher's socket. `None` searches
    /// [`runtime_dirs(None)`](crate::runtime_dirs).
    pub runtime_dir: Option<PathBuf>,
    /// Name of this subscriber in the publisher's statistics and logs. At most 255 bytes; a longer name is
    /// truncated. Control characters are replaced. Default: `subscriber`.
    pub name: String,
    /// Which frames to take. With [`Mode::Strict`], a publisher with [`Policy::Wait`](crate::Policy) also
    /// waits for this subscriber's packet readers. Default: [`Mode::Newest`].
    pub mode: Mode,
    /// Number of frames that may be held at a time, up to the publisher's `max_frames_per_subscriber`. 0 for
    /// a subscriber of packets only, which maps no memory of frames. Default: 4.
    pub max_frames: u32,
    /// Kinds of memory that can be mapped. Default: host memory.
    pub importer: Importer,
}

impl SubscriberConfig {
    /// Returns the default configuration for a key.
    pub fn new(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            runtime_dir: None,
            name: "subscriber".into(),
            mode: Mode::Newest,
            max_frames: 4,
            importer: Importer::host(),
        }
    }
}

/// Number of frames or packets that were taken and missed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames or packets that were returned.
    pub received: u64,
    /// Frames or packets that were missed since the first one was returned.
    pub skipped: u64,
}

/// The page that a subscriber shares with the publisher, for a device that clears claims: see
/// [`Frame::release_with`].
pub struct SharedPage {
    /// Address of the page. Only the 64-bit words that [`Frame::release_with`] names may be written.
    pub base: *mut u8,
    /// Length of the page in bytes.
    pub len: usize,
    /// Keeps the page mapped. Keep it until the device has finished its last write.
    pub keep_alive: Arc<dyn Send + Sync>,
}

impl fmt::Debug for SharedPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedPage")
            .field("base", &self.base)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// A subscriber of one run of a publisher. When the publisher is restarted, connect again.
///
/// Frames and packet readers can outlive the subscriber.
///
/// ```no_run
/// use cuframes::{Interrupt, Next, Subscriber, SubscriberConfig, Wait};
///
/// let interrupt = Interrupt::new()?;
/// let mut subscriber = Subscriber::connect(SubscriberConfig::new("cam1"), None, &interrupt)?;
/// while let Next::Item(frame) = subscriber.next_frame(&Wait::default())? {
///     println!("frame {} of {}: {} bytes", frame.seq, frame.caps, frame.info.size);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Subscriber {
    reader: FrameReader,
    connection: Arc<Connection>,
    _listener: Listener,
}

impl Subscriber {
    /// Connects to the publisher of a key. Waits at most `timeout` for a publisher that is not running;
    /// `None` and [`Duration::MAX`] wait forever.
    ///
    /// `interrupt` ends this and all later waits of the subscriber and its packet readers.
    ///
    /// # Errors
    /// - [`Error::Interrupted`](crate::Error::Interrupted) if `interrupt` is set.
    /// - [`Error::NoPublisher`](crate::Error::NoPublisher) after `timeout`.
    /// - [`Error::Refused`](crate::Error::Refused) if the publisher refused this subscriber.
    /// - [`Error::Protocol`](crate::Error::Protocol) if it broke the protocol.
    /// - [`Error::Key`](crate::Error::Key) if the key is invalid.
    /// - [`Error::RuntimeDir`](crate::Error::RuntimeDir) if this user may not connect, or the directory
    ///   cannot be trusted.
    /// - [`Error::System`](crate::Error::System) if the process has no file descriptors, memory or
    ///   threads left.
    pub fn connect(
        config: SubscriberConfig,
        timeout: Option<Duration>,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        // The publisher rejects control characters and longer names, because names end up in logs and C
        // strings.
        let mut name = config.name.replace(char::is_control, "\u{fffd}");
        while name.len() > MAX_NAME {
            name.pop();
        }
        let hello = Hello {
            versions: (*VERSIONS.start(), *VERSIONS.end()),
            mode: config.mode,
            credit: config.max_frames,
            gpu: config.importer.gpu().0,
            name,
        };
        let dir = config.runtime_dir.as_deref();
        let offer = Offer { hello, importer: config.importer };
        let connection = Arc::new(connect(&config.key, dir, &offer, timeout, interrupt)?);
        Ok(Self {
            reader: FrameReader::new(connection.clone(), config.mode),
            _listener: Listener::start(&connection)?,
            connection,
        })
    }

    /// Waits for the next frame that the mode selects. While the subscriber holds as many frames as its
    /// credit allows, waits until one is dropped.
    ///
    /// # Errors
    /// - [`Error::Protocol`](crate::Error::Protocol) if the publisher broke the protocol.
    /// - [`Error::Interrupted`](crate::Error::Interrupted) if the interrupt was set while waiting for the
    ///   frame to be completed.
    /// - [`Error::Device`](crate::Error::Device) if the GPU reports an error.
    pub fn next_frame(&mut self, wait: &Wait) -> Result<Next<Frame>> {
        refused_is_lost(self.reader.next(wait))
    }

    /// Returns the epoch, a number that identifies one run of a publisher. It changes when the publisher is
    /// restarted.
    pub fn epoch(&self) -> u64 {
        self.connection.epoch
    }

    /// Returns a reader for the packets of a track. With [`Mode::Strict`], a publisher with
    /// [`Policy::Wait`](crate::Policy) retains the packets that this reader has not taken yet.
    pub fn packets(&self, track: u32, start: Start) -> PacketReader {
        PacketReader::new(self.connection.clone(), track, start)
    }

    /// Returns how many frames were returned, and how many were skipped since the first one.
    pub fn counters(&self) -> Counters {
        Counters { received: self.reader.received(), skipped: self.reader.skipped() }
    }

    /// Returns the page that contains the claims, for [`Frame::release_with`].
    pub fn page(&self) -> SharedPage {
        let memory = self.connection.page.memory();
        SharedPage {
            base: memory.as_ptr(),
            len: memory.size(),
            keep_alive: self.connection.clone(),
        }
    }

    /// Counts a frame that was copied instead of held, in the publisher's statistics.
    pub fn count_copied(&self) {
        self.connection.copied.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the publisher's latency: the maximum time from a frame's timestamp to its publication.
    pub fn latency(&self) -> Duration {
        let h = self.connection.control.header();
        Duration::from_nanos(h.status.latency_ns.load(Ordering::Relaxed))
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.connection.leave();
    }
}
