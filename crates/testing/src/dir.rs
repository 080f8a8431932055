// SPDX-License-Identifier: LGPL-2.1-or-later
//! A runtime directory of one test's own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cuframes::memory::{Backend, Importer};
use cuframes::{Interrupt, Publisher, PublisherConfig, Subscriber, SubscriberConfig};

use crate::{NOBODY, TestSubscriber, Watchdog};

/// Bytes of a frame.
pub const SIZE: usize = 6000;
/// Caps of the frames. The library does not interpret them.
pub const CAPS: &str = "video/x-raw";

/// A test's own runtime directory, with publishers and subscribers that use it, and its watchdog.
#[derive(Debug)]
pub struct TestDir {
    /// The runtime directory.
    pub dir: PathBuf,
    /// Maps the memory of the publishers under test.
    pub importer: Importer,
    owned: bool,
    _watchdog: Option<Watchdog>,
}

impl TestDir {
    /// Creates the directory, which is removed when this is dropped.
    pub fn new(test: &str) -> Self {
        Self::create(test, Some(Watchdog::new(test)))
    }

    /// As [`new`](Self::new), for tests that take half a minute when all is well.
    pub fn slow(test: &str) -> Self {
        Self::create(test, Some(Watchdog::slow(test)))
    }

    /// As [`new`](Self::new), for tests whose duration is set by an environment variable.
    pub fn no_timeout(test: &str) -> Self {
        Self::create(test, None)
    }

    fn create(test: &str, watchdog: Option<Watchdog>) -> Self {
        // Several tests may have the same name.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (pid, n) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(format!("cuframes-{test}-{pid}-{n}"));
        std::fs::create_dir_all(&dir).unwrap();
        Self { dir, importer: Importer::host(), owned: true, _watchdog: watchdog }
    }

    /// Gives the directory to the user that [`drop_root`](crate::drop_root) changes to.
    pub fn unprivileged(self) -> Self {
        if nix::unistd::getuid().is_root() {
            std::os::unix::fs::chown(&self.dir, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        self
    }

    /// Uses a directory that belongs to another process or value, and leaves it there.
    pub fn at(dir: &Path, test: &str) -> Self {
        let (dir, importer) = (dir.to_owned(), Importer::host());
        Self { dir, importer, owned: false, _watchdog: Some(Watchdog::new(test)) }
    }

    /// As [`at`](Self::at), in a process whose parent has a watchdog.
    pub fn at_no_timeout(dir: &Path) -> Self {
        let (dir, importer) = (dir.to_owned(), Importer::host());
        Self { dir, importer, owned: false, _watchdog: None }
    }

    /// Returns the path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns the names in the directory, sorted.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Returns the configuration of a publisher of `cam`.
    pub fn config(&self) -> PublisherConfig {
        PublisherConfig { runtime_dir: Some(self.dir.clone()), ..PublisherConfig::new("cam") }
    }

    /// Opens a publisher of frames of [`SIZE`] bytes.
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

    /// Returns the configuration of a subscriber to `cam` that holds 2 frames at most.
    pub fn subscriber_config(&self) -> SubscriberConfig {
        SubscriberConfig {
            runtime_dir: Some(self.dir.clone()),
            max_frames: 2,
            importer: self.importer.clone(),
            ..SubscriberConfig::new("cam")
        }
    }

    /// Connects a subscriber.
    pub fn subscriber(&self, adjust: impl FnOnce(&mut SubscriberConfig)) -> TestSubscriber {
        let mut config = self.subscriber_config();
        adjust(&mut config);
        let interrupt = Interrupt::new().unwrap();
        let subscriber = Subscriber::connect(config, None, &interrupt).unwrap();
        TestSubscriber { subscriber, interrupt }
    }

    /// Returns a command for a program that uses this directory: see [`command`](crate::command).
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        crate::command(&self.dir, program)
    }

    /// Returns a command for `gst-launch-1.0` with this pipeline, whose words spaces separate.
    pub fn launch(&self, pipeline: &str) -> Command {
        let mut command = self.command("gst-launch-1.0");
        command.arg("-q").args(pipeline.split_whitespace());
        command
    }

    /// Returns a command for a script in `pipelines/`.
    pub fn script(&self, name: &str) -> Command {
        self.command(crate::root().join("pipelines").join(name))
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        if self.owned {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
