// SPDX-License-Identifier: LGPL-2.1-or-later
//! What a subscriber observed of its frames.

use crate::timestamps::Stamp;
use crate::worker::{BEGIN, Usage};

/// The pixels of a frame are complete when it is added, also in device memory: see
/// [`crate::timestamps::Stamps::wait`].
#[derive(Default)]
pub struct Observations {
    /// In ns.
    pub latencies: Vec<i64>,
    /// Frames without a known latency: see [`crate::timestamps::Stamps`].
    pub late: u64,
    /// Frames since the start, and those that were torn or repeated.
    pub frames: u64,
    pub torn: u64,
    pub repeated: u64,
    /// Numbers that are missing.
    pub gaps: u64,
    /// The time of the last frame, and whether its latency counts.
    last: (i64, bool),
    pub number: Option<u64>,
    /// Usage before the first frame that counts.
    pub start: Option<Usage>,
    /// When the first and the last frame arrived.
    pub times: Option<(i64, i64)>,
    /// A frame was in other memory than that of the system.
    pub wrong: bool,
}

impl Observations {
    /// Adds a frame. Returns false if it does not count. Latencies from `limit` on are unknown.
    pub fn add(&mut self, now: i64, stamp: Option<Stamp>, limit: i64) -> bool {
        let Some(stamp) = stamp else {
            self.wrong = true;
            return false;
        };
        if stamp.time == 0 {
            return false;
        }
        self.start.get_or_insert_with(|| Usage::at(BEGIN));
        self.frames += 1;
        self.times = Some((self.times.map_or(now, |t| t.0), now));
        self.torn += u64::from(stamp.torn);
        if let Some(number) = stamp.number {
            match self.number.map(|last| number.wrapping_sub(last)) {
                Some(0) => self.repeated += 1,
                Some(step) if step < 1 << 31 => self.gaps += step - 1,
                _ => {}
            }
            self.number = Some(number);
        }
        // Numbers that a camera drew have no time, and at full speed neither has a page.
        if stamp.time < 0 || limit == 0 {
            return true;
        }
        // Two frames have the same time, so that the first was older than its stamp.
        if limit < i64::MAX && self.last == (stamp.time, true) {
            self.latencies.pop();
            self.late += 1;
        }
        let counts = now - stamp.time < limit;
        if counts {
            // At full speed there are millions of frames in a long turn.
            if self.latencies.len() < 1_000_000 {
                self.latencies.push(now - stamp.time);
            }
        } else {
            self.late += 1;
        }
        self.last = (stamp.time, counts);
        true
    }

    /// Returns frames per second.
    pub fn rate(&self) -> Option<f64> {
        let (first, last) = self.times.filter(|(first, last)| last > first)?;
        Some((self.frames - 1) as f64 * 1e9 / (last - first) as f64)
    }
}
