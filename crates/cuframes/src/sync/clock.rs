//! The clock that all processes of a host share.

use std::time::Duration;

/// CLOCK_MONOTONIC since its origin: the time that all processes of a host share.
pub fn now() -> Duration {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("CLOCK_MONOTONIC exists on every Linux");
    Duration::from(t)
}

/// As [`now`], in nanoseconds.
pub fn now_ns() -> i64 {
    now().as_nanos() as i64
}
