//! What is known of a packet beside its bytes.

use std::sync::Arc;

/// What is known of a packet beside its bytes. Times are CLOCK_MONOTONIC in ns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PacketInfo {
    pub pts: Option<i64>,
    pub dts: Option<i64>,
    pub duration: Option<u64>,
    /// Decoding can start here.
    pub keyframe: bool,
    /// `GstBufferFlags` that mean something to others (DISCONT, HEADER, …).
    pub flags: u32,
    /// Its times on other clocks.
    pub references: Vec<ReferenceTimestamp>,
}

/// A packet's time on another clock, such as the camera's own by NTP: what GstReferenceTimestampMeta has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferenceTimestamp {
    /// Which clock, as GStreamer's caps: `timestamp/x-ntp`.
    pub clock: Arc<str>,
    /// In ns.
    pub timestamp: u64,
    /// In ns.
    pub duration: Option<u64>,
}
