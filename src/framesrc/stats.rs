// SPDX-License-Identifier: LGPL-2.1-or-later
//! Statistics of `cuframessrc`.

use crate::source::latency::Latency;

/// Counters of one run, from PAUSED to READY.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) received: u64,
    pub(super) skipped: u64,
    pub(super) duplicates: u64,
    pub(super) copied: u64,
    pub(super) downloaded: u64,
    pub(super) reconnects: u64,
    pub(super) latency: Latency,
}

impl Stats {
    /// Returns the value of the property `stats`.
    pub(super) fn to_structure(&self) -> gst::Structure {
        let [p50, p99] = self.latency.quantiles_ns([0.5, 0.99]);
        gst::Structure::builder("application/x-cuframes-src-stats")
            .field("received", self.received)
            .field("skipped", self.skipped)
            .field("duplicates", self.duplicates)
            .field("copied", self.copied)
            .field("downloaded", self.downloaded)
            .field("reconnects", self.reconnects)
            .field("latency-p50", p50)
            .field("latency-p99", p99)
            .build()
    }
}
