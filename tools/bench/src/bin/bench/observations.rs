// SPDX-License-Identifier: LGPL-2.1-or-later
//! What a subscriber saw of the frames that it got.

use crate::timestamps::Stamp;
use crate::worker::{BEGIN, Usage};

/// The pixels are complete when a frame gets here, in device memory too: see [`crate::timestamps::Stamps::wait`].
#[derive(Default)]
pub struct Observations {
    /// In ns.
    pub latencies: Vec<i64>,
    /// Frames of which it can't be said how long they took: see [`crate::timestamps::Stamps`].
    pub late: u64,
    /// Frames since the start, and of these what was wrong.
    pub frames: u64,
    pub torn: u64,
    pub repeated: u64,
    /// Numbers that were left out.
    pub gaps: u64,
    /// The stamp of the last frame, and whether its latency counts.
    last: (i64, bool),
    pub number: Option<u64>,
    /// Before the first frame that counts.
    pub start: Option<Usage>,
    /// When the first and the last of them came.
    pub times: Option<(i64, i64)>,
    /// In another memory than that of the system.
    pub wrong: bool,
}

impl Observations {
    /// False if the frame does not count. Frames with a stamp are told apart up to `limit`, if at all.
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
        // No time crosses with what a camera drew, and as fast as it goes a page has none to tell.
        if stamp.time < 0 || limit == 0 {
            return true;
        }
        // Two frames in the time of one: the first was older than its stamp.
        if limit < i64::MAX && self.last == (stamp.time, true) {
            self.latencies.pop();
            self.late += 1;
        }
        let counts = now - stamp.time < limit;
        if counts {
            // As fast as it goes, and for long, there are millions.
            if self.latencies.len() < 1_000_000 {
                self.latencies.push(now - stamp.time);
            }
        } else {
            self.late += 1;
        }
        self.last = (stamp.time, counts);
        true
    }

    /// Frames a second.
    pub fn rate(&self) -> Option<f64> {
        let (first, last) = self.times.filter(|(first, last)| last > first)?;
        Some((self.frames - 1) as f64 * 1e9 / (last - first) as f64)
    }
}
