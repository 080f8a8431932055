// SPDX-License-Identifier: LGPL-2.1-or-later
//! CLOCK_MONOTONIC, which all processes of a host share.

use std::time::Duration;

/// Returns the time of CLOCK_MONOTONIC since its origin.
///
/// # Panics
/// If the system has no CLOCK_MONOTONIC, which all versions of Linux have.
pub fn now() -> Duration {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("CLOCK_MONOTONIC exists on every Linux");
    Duration::from(t)
}

/// Returns the time of CLOCK_MONOTONIC at which a wait of `timeout` that begins now has to end. Returns `None`,
/// no deadline, if a [`Duration`] cannot represent that time, such as for [`Duration::MAX`].
///
/// # Panics
/// As [`now`].
pub fn deadline_after(timeout: Duration) -> Option<Duration> {
    now().checked_add(timeout)
}

/// Returns the time of CLOCK_MONOTONIC in ns, as [`now`].
///
/// # Panics
/// As [`now`].
pub fn now_ns() -> i64 {
    now().as_nanos() as i64
}
