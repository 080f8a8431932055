// SPDX-License-Identifier: LGPL-2.1-or-later
//! Frames, and work that keeps the GPU busy.

use cuframes::cuda::{Context, DeviceMemory, Result, Stream};

/// Bytes of a frame of 1920x1080 in NV12.
pub(crate) const FRAME: usize = 1920 * 1080 * 3 / 2;

/// Returns a frame whose bytes depend on their position and on `seed`, so that other content is unlikely
/// to match.
pub(crate) fn pattern(seed: usize) -> Vec<u8> {
    (0..FRAME).map(|i| ((i + seed) % 253) as u8).collect()
}

/// Device memory that is filled to keep the GPU busy, so that the order of later work shows.
pub(crate) struct Ballast(DeviceMemory);

impl Ballast {
    pub(crate) fn new(context: &Context) -> Result<Self> {
        Ok(Self(DeviceMemory::new(context, 512 << 20)?))
    }

    /// Enqueues work of some milliseconds.
    ///
    /// # Safety
    /// `self` must exist until the stream has executed the work.
    pub(crate) unsafe fn keep_busy(&self, stream: &Stream) -> Result<()> {
        for byte in 0..16 {
            // SAFETY: the caller's contract.
            unsafe { self.fill(stream, byte) }?;
        }
        Ok(())
    }

    /// Enqueues work of a fraction of a millisecond.
    ///
    /// # Safety
    /// As for [`Ballast::keep_busy`].
    pub(crate) unsafe fn fill(&self, stream: &Stream, byte: u8) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { stream.fill(self.0.address(), byte, self.0.len()) }
    }
}
