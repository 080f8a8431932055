//! What is known of a frame beside its pixels.

use super::packet::ReferenceTimestamp;

/// Where a plane lies in its slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Plane {
    /// Bytes from the slot's start.
    pub offset: u32,
    /// Bytes from one row to the next.
    pub stride: i32,
}

/// The planes of a picture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Planes {
    count: usize,
    planes: [Plane; Planes::MAX],
}

impl Planes {
    /// Planes that a picture has at most, as in GstVideoInfo.
    pub const MAX: usize = 4;

    /// From what GstVideoInfo and GstVideoMeta have: as many of both as there are planes.
    pub fn new(offsets: &[usize], strides: &[i32]) -> Self {
        let plane =
            |(offset, stride): (&usize, &i32)| Plane { offset: *offset as u32, stride: *stride };
        offsets.iter().zip(strides).map(plane).collect()
    }

    /// The same planes in memory that begins this many bytes earlier.
    pub fn moved(self, by: u32) -> Self {
        let moved = |p: &Plane| Plane { offset: p.offset + by, stride: p.stride };
        self.iter().map(moved).collect()
    }

    /// Offsets and strides; the first [`Planes::len`](slice::len) of each count.
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

/// The part of the picture that is to be shown, in pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Crop {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

/// The access unit that a frame was decoded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketId {
    pub track: u32,
    pub seq: u64,
}

/// What is known of a frame beside its pixels. Times are CLOCK_MONOTONIC in ns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrameInfo {
    pub pts: Option<i64>,
    pub dts: Option<i64>,
    pub duration: Option<u64>,
    /// When the frame reached the publisher.
    pub captured: i64,
    /// `GstBufferFlags` that mean something to others (DISCONT, CORRUPTED, …).
    pub flags: u32,
    /// Bytes in use of the slot.
    pub size: usize,
    pub planes: Planes,
    pub crop: Option<Crop>,
    /// What it was decoded from.
    pub packet: Option<PacketId>,
    /// Its times on other clocks: as many of the first as fit into [`REFERENCE_BYTES`].
    pub references: Vec<ReferenceTimestamp>,
}
