//! When frames come, by when they came.

use std::ops::Range;
use std::time::Duration;

/// When frames come, by when they came.
#[derive(Default)]
pub(super) struct Pace {
    /// Sequence number and time of publication of the last frame.
    last: Option<(u64, i64)>,
    /// From one frame to the next, in ns; 0 while that is not known.
    period: i64,
}

impl Pace {
    pub fn note(&mut self, seq: u64, published: i64) {
        if let Some((before, then)) = self.last {
            // The times are the publisher's, so they may be anything.
            let period = published.wrapping_sub(then) / seq.wrapping_sub(before).max(1) as i64;
            // Smoothed, as cameras and networks are not that regular.
            let old = if self.period == 0 { period } else { self.period };
            self.period = old - old / 8 + period / 8;
        }
        self.last = Some((seq, published));
    }

    /// The time around the next frame, as long as `around`. `None` if that is zero, or nothing is known.
    pub fn expect(&self, around: Duration) -> Option<Range<Duration>> {
        let (_, last) = self.last.filter(|_| !around.is_zero() && self.period > 0)?;
        let next = Duration::from_nanos(u64::try_from(last.checked_add(self.period)?).ok()?);
        Some(next.saturating_sub(around / 2)..next + around / 2)
    }
}
