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

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    fn expect_ms(pace: &Pace, around: u64) -> Option<(u128, u128)> {
        let around = pace.expect(Duration::from_millis(around))?;
        Some((around.start.as_millis(), around.end.as_millis()))
    }

    #[test]
    fn interval_is_centred_on_next_frame() {
        let mut pace = Pace::default();
        assert_eq!(expect_ms(&pace, 10), None);
        pace.record(7, 1000 * MS);
        assert_eq!(expect_ms(&pace, 10), None, "one frame has no period");
        pace.record(8, 1080 * MS);
        assert_eq!(expect_ms(&pace, 10), Some((1155, 1165)));
        assert_eq!(expect_ms(&pace, 0), None);
        // Three frames in three periods.
        pace.record(11, 1320 * MS);
        assert_eq!(expect_ms(&pace, 20), Some((1390, 1410)));
        assert_eq!(pace.expect(Duration::MAX).unwrap().start, Duration::ZERO);
    }

    #[test]
    fn period_is_smoothed() {
        let mut pace = Pace::default();
        for (seq, ms) in [(1, 0), (2, 80), (3, 240)] {
            pace.record(seq, ms * MS);
        }
        // 80 ms and an eighth of the difference.
        assert_eq!(expect_ms(&pace, 2), Some((329, 331)));
    }

    #[test]
    fn invalid_times_give_no_interval() {
        let frames: [&[(u64, i64)]; 5] = [
            &[(1, 100), (2, 100)],
            &[(1, 100), (2, 50)],
            &[(1, i64::MIN), (2, i64::MAX)],
            &[(1, -500), (2, -400)],
            &[(1, i64::MAX - 10), (2, i64::MAX)],
        ];
        for frames in frames {
            let mut pace = Pace::default();
            frames.iter().for_each(|(seq, ns)| pace.record(*seq, *ns));
            assert_eq!(pace.expect(Duration::from_millis(1)), None, "{frames:?}");
        }
        // Numbers that do not ascend count as one period.
        let mut pace = Pace::default();
        pace.record(5, 0);
        pace.record(5, 80 * MS);
        assert_eq!(expect_ms(&pace, 2), Some((159, 161)));
    }
}
