//! A frame in a subscriber's hands.

use std::sync::Arc;

use super::connection::Connection;
use crate::memory::{Imported, Kind};
use crate::shm::claim;
use crate::shm::segments::SubscriberPage;
use crate::sync::atomic::{Ordering, fence};
use crate::sync::lock;
use crate::types::frame::FrameInfo;

/// The claim on a slot; dropped, the slot is the publisher's again.
pub(super) struct Lease {
    pub(super) shared: Arc<Connection>,
    pub(super) slot: u32,
    /// Somebody else clears the claim.
    pub(super) handed_over: bool,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let held = self.shared.page.held(self.slot);
        if self.handed_over {
            // The device clears the claim behind the work that still reads the frame. A reader that waits
            // for it has to look by itself.
            lock(&self.shared.clearing).push(self.slot);
        } else {
            claim::release(held);
            // Behind the release: who sees the lease gone may claim again.
            self.shared.leases.fetch_sub(1, Ordering::Release);
            self.shared.moved();
        }
        // A reader that holds all it may waits for this. The others sleep on, or do not sleep: a ring
        // for each frame would be a system call, and wake those who wait for the publisher.
        // Pairs with the fence in `Reader::next`: either we see that it waits, or it sees this release.
        fence(Ordering::SeqCst);
        if self.shared.awaits_release.load(Ordering::Relaxed) {
            self.shared.bell.ring();
        }
    }
}

/// A frame of the publisher. Its pixels stay as they are while it lives, and are to be read only.
pub struct Frame {
    pub(super) lease: Lease,
    pub(super) memory: Arc<dyn Imported>,
    pub(super) address: u64,
    /// Counts up from 1 in one life of a publisher.
    pub seq: u64,
    pub caps: Arc<str>,
    /// Changes with the caps.
    pub generation: u32,
    /// When it was published: CLOCK_MONOTONIC in ns.
    pub published: i64,
    /// Frames that this subscriber missed right before this one.
    pub skipped: u64,
    pub info: FrameInfo,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame").field("seq", &self.seq).field("info", &self.info).finish()
    }
}

impl Frame {
    /// Where the frame begins: an address of the CPU or of the device, by the memory's kind.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The frame's bytes, of a publisher of host memory; planes lie in them as [`FrameInfo::planes`] says.
    pub fn bytes(&self) -> &[u8] {
        assert_eq!(self.memory.kind(), Kind::Host);
        // SAFETY: `Reader::take` checked that `info.size` bytes from `address` on are in the slot, and
        // `memory` keeps it mapped. The claim keeps the publisher from writing there while the lease
        // lives. (A publisher that breaks the protocol can change the bytes, which have no invalid
        // values; it can't take them away, as the memfd is sealed.)
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.info.size) }
    }

    /// Where the pixels live.
    pub fn memory(&self) -> &Arc<dyn Imported> {
        &self.memory
    }

    /// Gives the frame back by writing [`claim::EMPTY`] to a word of the subscriber's page (see
    /// [`crate::Subscriber::page`]) when what reads the frame is done: for devices, which do both in the
    /// order of a stream. `clear` is handed the word's distance from the page's start in bytes, and
    /// says whether it will be written; otherwise the frame is given back at once.
    pub fn release_with(mut self, clear: impl FnOnce(usize) -> bool) {
        self.lease.handed_over = clear(SubscriberPage::held_offset(self.lease.slot));
    }

    /// Frames that the subscriber may hold, and holds now.
    pub fn credit(&self) -> (u32, u32) {
        (self.lease.shared.credit, self.lease.shared.leases.load(Ordering::Relaxed))
    }
}
