// SPDX-License-Identifier: LGPL-2.1-or-later
//! A frame that a subscriber holds.

use std::fmt;
use std::sync::Arc;

use super::connection::Connection;
use crate::memory::{Imported, Kind};
use crate::shm::segments::SubscriberPage;
use crate::types::frame::FrameInfo;

/// The claim on a slot. Dropping it releases the slot to the publisher.
pub(super) struct Lease {
    pub(super) connection: Arc<Connection>,
    pub(super) slot: u32,
    /// A device clears the claim: see [`Leases::hand_over`](super::leases::Leases::hand_over).
    pub(super) handed_over: bool,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The claim is the parent's if this process was forked.
        if !self.connection.owner.is_this_process() {
            return;
        }
        let connection = &*self.connection;
        if !self.handed_over {
            connection.leases.release(connection.page.held(self.slot));
            connection.notify_publisher();
        }
        connection.leases.wake_reader(connection.interrupt.bell());
    }
}

/// Number of frames that a subscriber may hold and holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    /// Maximum number of frames held at a time: [`SubscriberConfig::max_frames`](crate::SubscriberConfig).
    pub max: u32,
    /// Number of frames held now.
    pub held: u32,
}

/// A frame in the publisher's memory, held by a subscriber. The publisher does not write to it before it is
/// dropped.
///
/// The pixels are shared with all subscribers and must not be written.
pub struct Frame {
    // Declared first: the slot is released before the memory can be unmapped.
    pub(super) lease: Lease,
    pub(super) memory: Arc<dyn Imported>,
    pub(super) address: u64,
    /// Sequence number. The first frame of a run of the publisher has number 1.
    pub seq: u64,
    /// Format of the frame, as GStreamer caps.
    pub caps: Arc<str>,
    /// Number of the format; changes whenever `caps` change.
    pub generation: u32,
    /// Time of publication, in ns of CLOCK_MONOTONIC.
    pub published_ns: i64,
    /// Number of frames that this subscriber skipped immediately before this one.
    pub skipped: u64,
    /// Timestamps, layout and other metadata.
    pub info: FrameInfo,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("seq", &self.seq)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl Frame {
    /// Returns the address of the first byte: a CPU address for host memory, otherwise a device address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Returns the bytes of a frame in host memory; `None` for device memory. [`FrameInfo::planes`] gives
    /// the offsets of the planes.
    pub fn bytes(&self) -> Option<&[u8]> {
        if self.memory.kind() != Kind::Host {
            return None;
        }
        // SAFETY: `FrameReader::take` checked that `info.size` bytes from `address` on are within the
        // slot, and `memory` keeps it mapped. The claim keeps the publisher from writing there while the
        // lease lives. (A publisher that breaks the protocol can change the bytes, which have no invalid
        // values; it can't unmap them, as the memfd is sealed.)
        Some(unsafe { std::slice::from_raw_parts(self.address as *const u8, self.info.size) })
    }

    /// Returns the memory that contains the frame.
    pub fn memory(&self) -> &Arc<dyn Imported> {
        &self.memory
    }

    /// Releases the frame from a device: the device clears the frame's claim after the work that still
    /// reads the frame, in stream order.
    ///
    /// `clear` is called with the offset in bytes of a 64-bit word in the subscriber's page (see
    /// [`Subscriber::page`](crate::Subscriber::page)). It enqueues a write of 0 to that word and returns
    /// `true`. If it returns `false`, the frame is released immediately.
    pub fn release_with(mut self, clear: impl FnOnce(usize) -> bool) {
        let Lease { connection, slot, handed_over } = &mut self.lease;
        // The claim is the parent's if this process was forked.
        if !connection.owner.is_this_process() {
            return;
        }
        // Before the device can clear the claim. It also stays so if `clear` panics, because the device may have been
        // told already.
        connection.leases.hand_over(*slot);
        *handed_over = true;
        // SYNC(release/is_held): the device clears the claim after the work that still reads the frame. No doorbell
        // rings then, so a reader that waits for this frame has to poll.
        if !clear(SubscriberPage::held_offset(*slot)) {
            *handed_over = !connection.leases.take_back(*slot);
        }
    }

    /// Returns how many frames the subscriber may hold, and how many it holds, this one included.
    pub fn credit(&self) -> Credit {
        let connection = &self.lease.connection;
        Credit { max: connection.credit, held: connection.leases.count() }
    }
}
