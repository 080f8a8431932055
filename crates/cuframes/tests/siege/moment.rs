// SPDX-License-Identifier: LGPL-2.1-or-later
//! Time, without that in which a thread waits for a CPU: any process can use up CPU time without cuframes.

use std::time::{Duration, Instant};

/// A moment in the present thread.
pub(crate) struct Moment {
    pub(crate) time: Instant,
    /// How long the thread has waited for a CPU so far.
    waited: Duration,
}

/// The time between two moments.
#[derive(Clone, Copy, Default)]
pub(crate) struct Elapsed {
    /// The time in which the thread ran or slept.
    pub(crate) own: Duration,
    /// The time in which the thread waited for a CPU.
    pub(crate) waited: Duration,
}

impl Moment {
    pub(crate) fn now() -> Self {
        // The second number, in ns. A kernel without these statistics has waits count as the thread's own time.
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let waited = stat.split(' ').nth(1).and_then(|ns| ns.parse().ok()).unwrap_or(0);
        Self { time: Instant::now(), waited: Duration::from_nanos(waited) }
    }

    /// Returns the time since the last lap, and starts another one.
    pub(crate) fn lap(&mut self) -> Elapsed {
        let before = std::mem::replace(self, Self::now());
        let waited = self.waited.saturating_sub(before.waited);
        Elapsed { own: (self.time - before.time).saturating_sub(waited), waited }
    }
}
