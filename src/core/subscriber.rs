//! The subscribing end: joins a publisher and takes its frames and packets.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::channel::client::{Listener, Shared, connect};
use super::channel::message::{Code, Hello, MAX_NAME, Mode, VERSIONS};
use super::error::Result;
pub use super::frames::reader::Frame;
use super::frames::reader::Reader;
pub use super::packets::reader::{Packet, PacketReader, Place, Start};
use super::sync::Ordering;
use super::wake::Interrupt;
use crate::memory::Importer;

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
    pub credit: u32,
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
            credit: 4,
            importer: Importer::host(),
        }
    }
}

/// How long to wait, and what ends the wait.
#[derive(Debug, Clone, Copy)]
pub struct Wait<'a> {
    pub interrupt: &'a Interrupt,
    /// `None` is forever.
    pub timeout: Option<Duration>,
    /// How long to look for a frame without sleeping, around the time at which the next is expected by
    /// the pace of those before; costs as much CPU time and saves the wake-up.
    pub spin: Duration,
    /// At the end of the stream, go on waiting for a publisher that starts it again.
    pub past_eos: bool,
}

impl<'a> Wait<'a> {
    /// Until there is something, without spinning.
    pub fn forever(interrupt: &'a Interrupt) -> Self {
        Self { interrupt, timeout: None, spin: Duration::ZERO, past_eos: false }
    }
}

/// What a wait came to.
#[derive(Debug)]
pub enum Next<T> {
    Item(T),
    /// The stream has ended, unless the publisher starts it again.
    Eos,
    TimedOut,
    /// The interrupt is set.
    Interrupted,
    /// The publisher is gone, or has sent this subscriber away. A new [`Subscriber`] may join the next.
    Lost {
        code: Code,
        text: String,
    },
}

/// A subscriber of one life of a publisher. Frames that it handed out outlive it.
///
/// ```no_run
/// use gstcuframes::{Interrupt, Next, Subscriber, SubscriberConfig, Wait};
///
/// let interrupt = Interrupt::new()?;
/// let mut subscriber = Subscriber::connect(SubscriberConfig::new("cam1"), None, &interrupt)?;
/// while let Next::Item(frame) = subscriber.next_frame(&Wait::forever(&interrupt))? {
///     println!("frame {} of {}: {} bytes", frame.seq, frame.caps, frame.bytes().len());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Subscriber {
    reader: Reader,
    shared: Arc<Shared>,
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
            credit: config.credit,
            gpu: config.importer.gpu().0,
            name,
        };
        let dir = config.runtime_dir.as_deref();
        let shared =
            Arc::new(connect(&config.key, dir, (hello, config.importer), timeout, interrupt)?);
        Ok(Self {
            reader: Reader::new(shared.clone(), config.mode),
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
        (memory.as_ptr(), memory.len(), self.shared.clone())
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
