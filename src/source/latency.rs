// SPDX-License-Identifier: LGPL-2.1-or-later
//! Latency statistics of a source.

use std::collections::VecDeque;

/// The newest samples of a latency.
#[derive(Debug, Default)]
pub(crate) struct Latency(VecDeque<u64>);

impl Latency {
    const SAMPLES: usize = 512;

    /// Adds a sample in ns, and removes the oldest one if there are more than 512. Negative values count
    /// as 0.
    pub(crate) fn add_ns(&mut self, ns: i64) {
        if self.0.len() == Self::SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(ns.max(0) as u64);
    }

    /// Returns the given quantiles (0.0 to 1.0) of the samples in ns; 0 before the first sample.
    pub(crate) fn quantiles_ns<const N: usize>(&self, quantiles: [f64; N]) -> [u64; N] {
        let mut sorted: Vec<_> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        quantiles.map(|q| sorted.get((last as f64 * q).round() as usize).copied().unwrap_or(0))
    }
}
