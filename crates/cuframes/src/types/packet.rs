// SPDX-License-Identifier: LGPL-2.1-or-later
//! Metadata of a packet.

use std::sync::Arc;

/// Metadata of a packet. All times are in ns of CLOCK_MONOTONIC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PacketInfo {
    /// Presentation timestamp, in ns of CLOCK_MONOTONIC.
    pub pts: Option<i64>,
    /// Decoding timestamp, in ns of CLOCK_MONOTONIC.
    pub dts: Option<i64>,
    /// Duration, in ns.
    pub duration: Option<u64>,
    /// Decoding can start at this packet.
    pub keyframe: bool,
    /// The `GstBufferFlags` that are meaningful in another process (DISCONT, HEADER, …).
    pub flags: u32,
    /// Timestamps of other clocks.
    pub references: Vec<ReferenceTimestamp>,
}

/// Timestamp of another clock, such as a camera's own clock by NTP: the content of a
/// GstReferenceTimestampMeta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferenceTimestamp {
    /// The clock, as GStreamer caps such as `timestamp/x-ntp`.
    pub clock: Arc<str>,
    /// Time of that clock, in ns.
    pub timestamp: u64,
    /// Duration by that clock, in ns.
    pub duration: Option<u64>,
}
