// SPDX-License-Identifier: LGPL-2.1-or-later
//! Statistics of `cuframespacketsrc`.

use crate::source::latency::Latency;

/// Counters of one run, from PAUSED to READY.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) received: u64,
    pub(super) lost: u64,
    pub(super) bytes: u64,
    pub(super) reconnects: u64,
    pub(super) latency: Latency,
}

impl Stats {
    /// Returns the value of the property `stats`.
    pub(super) fn to_structure(&self) -> gst::Structure {
        let [p50, p99] = self.latency.quantiles_ns([0.5, 0.99]);
        gst::Structure::builder("application/x-cuframes-packet-src-stats")
            .field("received", self.received)
            .field("lost", self.lost)
            .field("bytes", self.bytes)
            .field("reconnects", self.reconnects)
            .field("latency-p50", p50)
            .field("latency-p99", p99)
            .build()
    }
}
