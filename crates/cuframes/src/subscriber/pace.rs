// SPDX-License-Identifier: LGPL-2.1-or-later
//! Predicts when the next frame is published, from the times of the previous frames.

use std::ops::Range;
use std::time::Duration;

/// Estimate of the publisher's frame period.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Sequence number and publication time (CLOCK_MONOTONIC, ns) of the last frame.
    last: Option<(u64, i64)>,
    /// Smoothed time from one frame to the next; 0 while it is unknown.
    period_ns: i64,
}

impl Pace {
    /// Records the publication time of a frame.
    pub(super) fn record(&mut self, seq: u64, published_ns: i64) {
        if let Some((last_seq, last_ns)) = self.last {
            // The publisher writes these times, so every value is possible.
            let period =
                published_ns.wrapping_sub(last_ns) / seq.wrapping_sub(last_seq).max(1) as i64;
            // Smoothed, because cameras and networks deliver frames irregularly.
            let old = if self.period_ns == 0 { period } else { self.period_ns };
            self.period_ns = old - old / 8 + period / 8;
        }
        self.last = Some((seq, published_ns));
    }

    /// Returns the interval of length `around` (CLOCK_MONOTONIC) centred on the expected publication of the
    /// next frame. `None` if `around` is zero or the period is unknown.
    pub(super) fn expect(&self, around: Duration) -> Option<Range<Duration>> {
        let (_, last_ns) = self.last.filter(|_| !around.is_zero() && self.period_ns > 0)?;
        let next = Duration::from_nanos(u64::try_from(last_ns.checked_add(self.period_ns)?).ok()?);
        Some(next.saturating_sub(around / 2)..next.saturating_add(around / 2))
    }
}
