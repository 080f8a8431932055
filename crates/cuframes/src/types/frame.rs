// SPDX-License-Identifier: LGPL-2.1-or-later
//! Metadata of a frame.

use super::packet::ReferenceTimestamp;

/// Layout of a plane within its slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Plane {
    /// Offset of the first row from the start of the slot, in bytes.
    pub offset: u32,
    /// Distance from one row to the next, in bytes.
    pub stride: i32,
}

/// The planes of a picture, at most [`Planes::MAX`]. Dereferences to a slice of [`Plane`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Planes {
    count: usize,
    planes: [Plane; Planes::MAX],
}

impl Planes {
    /// Maximum number of planes, as in GstVideoInfo.
    pub const MAX: usize = 4;

    /// Returns the planes for the offsets and strides of GstVideoInfo or GstVideoMeta, one of each per
    /// plane.
    pub fn new(offsets: &[usize], strides: &[i32]) -> Self {
        let plane =
            |(offset, stride): (&usize, &i32)| Plane { offset: *offset as u32, stride: *stride };
        offsets.iter().zip(strides).map(plane).collect()
    }

    /// Returns the same planes relative to an address that is `by` bytes lower.
    pub fn moved(self, by: u32) -> Self {
        let moved = |p: &Plane| Plane { offset: p.offset + by, stride: p.stride };
        self.iter().map(moved).collect()
    }

    /// Returns offsets and strides as arrays. Only the first [`Planes::len`](slice::len) entries of each
    /// are used.
    pub fn to_arrays(&self) -> ([usize; Self::MAX], [i32; Self::MAX]) {
        (self.planes.map(|p| p.offset as usize), self.planes.map(|p| p.stride))
    }
}

impl std::ops::Deref for Planes {
    type Target = [Plane];
    fn deref(&self) -> &[Plane] {
        &self.planes[..self.count]
    }
}

impl FromIterator<Plane> for Planes {
    /// Takes the first [`Planes::MAX`].
    fn from_iter<I: IntoIterator<Item = Plane>>(iter: I) -> Self {
        let mut all = Self::default();
        for plane in iter.into_iter().take(Self::MAX) {
            all.planes[all.count] = plane;
            all.count += 1;
        }
        all
    }
}

/// The visible rectangle of a picture, in pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Crop {
    /// Number of columns left of it.
    pub x: u32,
    /// Number of rows above it.
    pub y: u32,
    /// Number of columns.
    pub width: u32,
    /// Number of rows.
    pub height: u32,
}

/// The packet that a frame was decoded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketId {
    /// Number of the track, of the same publisher.
    pub track: u32,
    /// Sequence number of the packet in the track.
    pub seq: u64,
}

/// Metadata of a frame. All times are in ns of CLOCK_MONOTONIC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrameInfo {
    /// Presentation timestamp, in ns of CLOCK_MONOTONIC.
    pub pts: Option<i64>,
    /// Decoding timestamp, in ns of CLOCK_MONOTONIC.
    pub dts: Option<i64>,
    /// Duration, in ns.
    pub duration: Option<u64>,
    /// Time at which the frame reached the publisher, in ns of CLOCK_MONOTONIC.
    pub captured_ns: i64,
    /// The `GstBufferFlags` that are meaningful in another process (DISCONT, CORRUPTED, …).
    pub flags: u32,
    /// Number of bytes of the slot that are in use.
    pub size: usize,
    /// Layout of the pixels.
    pub planes: Planes,
    /// The visible part; `None` for the whole picture.
    pub crop: Option<Crop>,
    /// The packet from which the frame was decoded, if known.
    pub packet: Option<PacketId>,
    /// Timestamps of other clocks. Together they have room for 360 bytes: 24 bytes and the name of the clock for
    /// each. References that do not fit are omitted.
    pub references: Vec<ReferenceTimestamp>,
}
