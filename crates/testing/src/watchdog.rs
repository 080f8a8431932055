// SPDX-License-Identifier: LGPL-2.1-or-later
//! Waits without a time limit of their own, and the watchdog that ends them.

use std::panic::Location;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// After this long a test counts as hung.
const LIMIT: Duration = Duration::from_secs(60);

/// Aborts the process when a test takes too long, because a thread that hangs cannot be stopped.
///
/// The limit is multiplied by `CUFRAMES_TIMEOUT_FACTOR`, for machines and tools that are slow.
#[derive(Debug)]
pub struct Watchdog(#[expect(dead_code, reason = "dropping it stops the thread")] Sender<()>);

impl Watchdog {
    /// Starts a watchdog for a test that takes a few seconds.
    pub fn new(test: &str) -> Self {
        Self::with_limit(test, LIMIT)
    }

    /// Starts a watchdog for a test that takes half a minute when all is well.
    pub fn slow(test: &str) -> Self {
        Self::with_limit(test, 3 * LIMIT)
    }

    /// Starts a watchdog for a test that takes this long at most when all is well.
    pub fn with_limit(test: &str, limit: Duration) -> Self {
        let (alive, ended) = channel();
        let (test, limit) = (test.to_owned(), limit * factor());
        std::thread::spawn(move || {
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{test} hangs");
                // Children get SIGTERM or SIGKILL through PR_SET_PDEATHSIG.
                std::process::abort();
            }
        });
        Self(alive)
    }
}

fn factor() -> u32 {
    let factor = std::env::var("CUFRAMES_TIMEOUT_FACTOR").ok();
    factor.map_or(1, |n| n.parse().expect("CUFRAMES_TIMEOUT_FACTOR is a whole number"))
}

/// Waits until the condition holds. The watchdog of the test limits the wait.
#[track_caller]
pub fn until(mut condition: impl FnMut() -> bool) {
    let (caller, began) = (Location::caller(), Instant::now());
    let mut reported = false;
    while !condition() {
        if !reported && began.elapsed() > LIMIT / 2 {
            reported = true;
            eprintln!("still waiting at {caller}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
