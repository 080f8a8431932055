//! The subscribing end: joins a publisher and takes its frames and packets.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
mod announcements;
mod connection;
mod frame;
mod frame_reader;
mod handshake;
mod keyframes;
mod pace;
mod packet_reader;
mod wait;

pub use frame::Frame;
pub use packet_reader::{Packet, PacketReader, ResumePoint, Start};
pub use wait::{Next, Wait};

use crate::error::Result;
use crate::memory::Importer;
use crate::protocol::message::{Hello, VERSIONS};
use crate::protocol::wire::MAX_NAME;
use crate::sync::atomic::Ordering;
use crate::sync::interrupt::Interrupt;
use crate::types::code::Mode;
use connection::{Connection, Listener};
use frame_reader::FrameReader;
use handshake::connect;

/// How a subscriber is to be.
#[derive(Debug, Clone)]
pub struct SubscriberConfig {
    pub key: String,
    /// Where the socket is; `None` for the usual places.
    pub runtime_dir: Option<PathBuf>,
    /// How the publisher's statistics call it.
    pub name: String,
    pub mode: Mode,
    /// Frames that it may hold at a time; 0 for one that takes packets only.
    pub max_frames: u32,
    /// Which memory it can map.
    pub importer: Importer,
}

impl SubscriberConfig {
    /// Takes the newest frame each time, and holds up to 4.
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

/// A subscriber of one life of a publisher. Frames that it handed out outlive it.
///
/// ```no_run
/// use cuframes::{Interrupt, Next, Subscriber, SubscriberConfig, Wait};
///
/// let interrupt = Interrupt::new()?;
/// let mut subscriber = Subscriber::connect(SubscriberConfig::new("cam1"), None, &interrupt)?;
/// while let Next::Item(frame) = subscriber.next_frame(&Wait::forever(&interrupt))? {
///     println!("frame {} of {}: {} bytes", frame.seq, frame.caps, frame.bytes().len());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Subscriber {
    reader: FrameReader,
    shared: Arc<Connection>,
    _listener: Listener,
}

impl Subscriber {
    /// Joins the publisher of a key; waits for one that is not there yet, `timeout` at most.
    ///
    /// Everything that this subscriber waits for later has to be given the same `interrupt`.
    ///
    /// Errors: [`super::Error::Interrupted`], [`super::Error::NoPublisher`] after `timeout`,
    /// [`super::Error::Refused`] and why, [`super::Error::Protocol`], a bad key, no permission.
    pub fn connect(
        config: SubscriberConfig,
        timeout: Option<Duration>,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        // What the publisher would refuse: logs and C strings have no place for it.
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
        let shared =
            Arc::new(connect(&config.key, dir, (hello, config.importer), timeout, interrupt)?);
        Ok(Self {
            reader: FrameReader::new(shared.clone(), config.mode),
            _listener: Listener::start(&shared)?,
            shared,
        })
    }

    /// The next frame that the mode wants.
    ///
    /// Errors: the publisher broke the protocol, or went away in the middle of a frame.
    pub fn next_frame(&mut self, wait: &Wait<'_>) -> Result<Next<Frame>> {
        self.reader.next(wait)
    }

    /// Which life of a publisher this is: two that are equal are the same.
    pub fn epoch(&self) -> u64 {
        self.shared.epoch
    }

    /// Reads the packets of a track, from `start` on. With [`Mode::Strict`], a publisher under
    /// [`crate::Policy::Wait`] overwrites none that this reader has still to take.
    pub fn packets(&self, track: u32, start: Start) -> PacketReader {
        PacketReader::new(self.shared.clone(), track, start)
    }

    /// Frames that were handed out, and those that were missed since the first.
    pub fn counters(&self) -> (u64, u64) {
        self.reader.counters()
    }

    /// The page that holds the claims, and what keeps it mapped: for [`Frame::release_with`].
    pub fn page(&self) -> (*mut u8, usize, Arc<dyn Send + Sync>) {
        let memory = self.shared.page.memory();
        (memory.as_ptr(), memory.size(), self.shared.clone())
    }

    /// Says that a frame was copied instead of held, for the publisher's statistics.
    pub fn count_copied(&self) {
        self.shared.copied.fetch_add(1, Ordering::Relaxed);
    }

    /// How far behind its timestamps the publisher publishes frames at most.
    pub fn latency(&self) -> Duration {
        let h = self.shared.control.header();
        Duration::from_nanos(h.status.latency_ns.load(Ordering::Relaxed))
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.shared.leave();
    }
}
