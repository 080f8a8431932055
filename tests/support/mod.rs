//! What the tests of the core share: a place for a test, frames that show tearing, and a watchdog.

// Each test that includes this file uses a part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use cuframes::memory::{Backend, Importer};
use cuframes::{
    Frame, FrameInfo, Interrupt, Loan, Next, Publisher, PublisherConfig, Subscriber,
    SubscriberConfig, Wait,
};

/// Bytes of a frame.
pub const SIZE: usize = 6000;
pub const CAPS: &str = "video/x-raw";
const HANGS: Duration = Duration::from_secs(60);

/// After this long a test counts as hung; tools that slow everything down need more.
fn patience() -> Duration {
    let times = std::env::var("CUFRAMES_PATIENCE").ok().and_then(|n| n.parse().ok());
    HANGS * times.unwrap_or(1)
}

/// Ends the process when a test takes too long: a thread that hangs can't be told to stop.
struct Watchdog(#[expect(dead_code, reason = "dropping it is what counts")] Sender<()>);

impl Watchdog {
    fn new(test: &str, hangs: Duration) -> Self {
        let (alive, gone) = channel();
        let test = test.to_owned();
        std::thread::spawn(move || {
            if gone.recv_timeout(hangs) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{test} hangs");
                std::process::abort();
            }
        });
        Self(alive)
    }
}

/// Waits for a condition that is certain to come; the watchdog ends a wait that is not over in time.
#[track_caller]
pub fn until(mut condition: impl FnMut() -> bool) {
    let (here, began) = (std::panic::Location::caller(), Instant::now());
    let mut told = false;
    while !condition() {
        if began.elapsed() > HANGS / 2 && !told {
            told = true;
            eprintln!("still waiting at {here}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A test's own runtime directory, and its watchdog.
pub struct Site {
    pub dir: PathBuf,
    /// What the subscribers of this site can map.
    pub importer: Importer,
    owned: bool,
    _watchdog: Watchdog,
}

impl Site {
    /// Makes the directory, and removes it in the end.
    pub fn new(test: &str) -> Self {
        Self::with(test, patience())
    }

    /// For tests that take half a minute when all is well.
    pub fn slow(test: &str) -> Self {
        Self::with(test, 3 * patience())
    }

    /// For tests that are run for as long as one likes.
    pub fn patient(test: &str) -> Self {
        Self::with(test, Duration::from_secs(24 * 3600))
    }

    fn with(test: &str, hangs: Duration) -> Self {
        let dir = std::env::temp_dir().join(format!("cuframes-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let importer = Importer::host();
        Self { dir, importer, owned: true, _watchdog: Watchdog::new(test, hangs) }
    }

    /// Uses a directory that belongs to another process.
    pub fn at(dir: &Path, test: &str) -> Self {
        let (dir, importer) = (dir.to_owned(), Importer::host());
        Self { dir, importer, owned: false, _watchdog: Watchdog::new(test, patience()) }
    }

    pub fn config(&self) -> PublisherConfig {
        PublisherConfig { runtime_dir: Some(self.dir.clone()), ..PublisherConfig::new("cam") }
    }

    /// A publisher of frames of [`SIZE`] bytes.
    pub fn publisher(
        &self,
        backend: Arc<dyn Backend>,
        adjust: impl FnOnce(&mut PublisherConfig),
    ) -> Publisher {
        let mut config = self.config();
        adjust(&mut config);
        let publisher = Publisher::open(config, backend, |_| {}).unwrap();
        publisher.set_format(CAPS, SIZE).unwrap();
        publisher
    }

    /// A subscriber that holds 2 frames at most.
    pub fn subscriber_config(&self) -> SubscriberConfig {
        SubscriberConfig {
            runtime_dir: Some(self.dir.clone()),
            max_frames: 2,
            importer: self.importer.clone(),
            ..SubscriberConfig::new("cam")
        }
    }

    pub fn viewer(&self, adjust: impl FnOnce(&mut SubscriberConfig)) -> Viewer {
        let mut config = self.subscriber_config();
        adjust(&mut config);
        let interrupt = Arc::new(Interrupt::new().unwrap());
        let subscriber = Subscriber::connect(config, None, &interrupt).unwrap();
        Viewer { subscriber, interrupt }
    }

    /// Names in the runtime directory.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.owned {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// A subscriber and what its waits need.
pub struct Viewer {
    pub subscriber: Subscriber,
    pub interrupt: Arc<Interrupt>,
}

impl Viewer {
    pub fn next(&mut self) -> Next<Frame> {
        self.subscriber.next_frame(&Wait::forever(&self.interrupt)).unwrap()
    }

    /// What there is without waiting.
    pub fn look(&mut self) -> Next<Frame> {
        let wait = Wait {
            timeout: Some(Duration::ZERO),
            past_eos: true,
            ..Wait::forever(&self.interrupt)
        };
        self.subscriber.next_frame(&wait).unwrap()
    }

    #[track_caller]
    pub fn frame(&mut self) -> Frame {
        item(self.next())
    }
}

#[track_caller]
pub fn item<T: std::fmt::Debug>(next: Next<T>) -> T {
    match next {
        Next::Item(item) => item,
        other => panic!("there should be one, not {other:?}"),
    }
}

/// Writes the number to every word.
pub fn fill(bytes: &mut [u8], n: u64) {
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&n.to_ne_bytes());
    }
}

/// The number that is in every word; `None` if they differ.
pub fn number(bytes: &[u8]) -> Option<u64> {
    let mut words = bytes.chunks_exact(8).map(|w| u64::from_ne_bytes(w.try_into().unwrap()));
    let n = words.next()?;
    words.all(|w| w == n).then_some(n)
}

/// Publishes frame `n`, for which there has to be a slot.
#[track_caller]
pub fn publish(publisher: &Publisher, n: u64, write: impl FnOnce(&mut Loan, u64)) {
    let loan = publisher.loan(SIZE).unwrap();
    let mut loan = loan.expect("there is a slot while everybody keeps within its credit");
    write(&mut loan, n);
    assert_eq!(publisher.publish(loan, &info(n, SIZE)), n);
}

/// Frame `n` in the record as well.
pub fn info(n: u64, size: usize) -> FrameInfo {
    FrameInfo { pts: Some(n as i64), size, ..Default::default() }
}

/// What a subscriber saw of a stream.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub first: u64,
    pub last: u64,
    pub received: u64,
    pub skipped: u64,
}

/// Takes frames to the end of the stream and checks all that can be said of them: each is whole when
/// it comes and still is when it has been held for a while, they are in order, and what was skipped is
/// counted to the frame.
pub fn watch(viewer: &mut Viewer, read: impl Fn(&Frame) -> Option<u64>) -> Seen {
    let check = |frame: &Frame| {
        assert_eq!(read(frame), Some(frame.seq), "a torn frame");
        assert_eq!(frame.info.pts, Some(frame.seq as i64), "another frame's record");
    };
    let mut seen = Seen { first: 0, last: 0, received: 0, skipped: 0 };
    let mut held: Option<Frame> = None;
    loop {
        match viewer.next() {
            Next::Item(frame) => {
                check(&frame);
                if seen.received == 0 {
                    seen.first = frame.seq;
                    assert_eq!(frame.skipped, 0);
                } else {
                    assert!(frame.seq > seen.last);
                    assert_eq!(frame.skipped, frame.seq - seen.last - 1);
                }
                seen.last = frame.seq;
                seen.received += 1;
                seen.skipped += frame.skipped;
                if let Some(before) = held.replace(frame) {
                    check(&before);
                }
            }
            Next::Eos => break,
            other => panic!("the stream should have ended: {other:?}"),
        }
    }
    held.iter().for_each(check);
    assert_eq!(seen.received + seen.skipped, seen.last - seen.first + 1);
    assert_eq!(viewer.subscriber.counters(), (seen.received, seen.skipped));
    seen
}
