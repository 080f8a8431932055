// SPDX-License-Identifier: LGPL-2.1-or-later
//! Layout of the structures in shared memory; docs/protocol.md describes them for other implementations.
//!
//! All values are native-endian because both sides run on one host. The structures contain no pointers.
//! They consist of atomics, because the other side may write any word at any time. Sizes and offsets are
//! asserted at compile time.

use crate::sync::atomic::{AtomicU32, AtomicU64};
#[cfg(not(loom))]
use std::mem::{offset_of, size_of};

/// First word of every segment: the bytes of "cuframes".
pub const MAGIC: u64 = u64::from_ne_bytes(*b"cuframes");
/// Version of these structures, raised by every change that an older peer would misread.
pub const LAYOUT_VERSION: u32 = 4;

/// A value on a cache line of its own, which avoids false sharing.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct CacheAligned<T>(pub T);

impl<T> std::ops::Deref for CacheAligned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// Header of the control segment. Written by the publisher; subscribers map it read-only.
///
/// The header is followed by `slots` times [`SlotWords`] and `index` index entries of one word (both padded to a
/// cache line), then by `slots` records of [`RECORD_WORDS`](super::record::RECORD_WORDS) words.
#[repr(C)]
#[derive(Debug)]
pub struct ControlHeader {
    /// [`MAGIC`], stored last. The other fields are valid once it is set.
    pub magic: AtomicU64,
    /// [`LAYOUT_VERSION`] of the publisher.
    pub version: AtomicU32,
    /// Number of slots, at most [`MAX_SLOTS`].
    pub slots: AtomicU32,
    /// Number of index entries, a power of two.
    pub index: AtomicU32,
    /// Zero.
    pub _reserved: AtomicU32,
    /// Number of this run of the publisher.
    pub epoch: AtomicU64,
    /// Sequence number of the newest published frame; 0 before the first.
    pub head: CacheAligned<AtomicU64>,
    /// Rarely written fields.
    pub status: CacheAligned<StreamFlags>,
}

/// The words of a slot in the control segment.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SlotWords {
    /// The slot's number: the sequence number of the frame in it, or [`EMPTY`](super::claim::EMPTY).
    pub number: AtomicU64,
    /// Sequence number of the last frame in this slot whose pixels are complete. For device memory the GPU
    /// writes it.
    pub ready: AtomicU64,
}

/// Rarely written fields of the control segment, kept off the hot cache lines.
#[repr(C)]
#[derive(Debug, Default)]
pub struct StreamFlags {
    /// Number of the publisher's threads that wait for a subscriber, under the policy *wait*.
    pub publisher_waits: AtomicU32,
    /// 1 when the stream has ended after `head`, else 0.
    pub eos: AtomicU32,
    /// Number of frames that were dropped because no slot was free.
    pub dropped: AtomicU64,
    /// Maximum delay between a frame's timestamp and its publication, in ns.
    pub latency_ns: AtomicU64,
}

/// Header of a subscriber's page, which only that subscriber and the publisher map.
///
/// The header is followed by `slots` claims of one word each.
#[repr(C)]
#[derive(Debug)]
pub struct PageHeader {
    /// [`MAGIC`], stored last. The other fields are valid once it is set.
    pub magic: AtomicU64,
    /// [`LAYOUT_VERSION`] of the publisher.
    pub version: AtomicU32,
    /// Number of claims.
    pub slots: AtomicU32,
    /// Futex that the publisher sleeps on while it waits for this subscriber.
    pub futex: CacheAligned<AtomicU32>,
    /// Sequence number of the last frame that was taken. Shares a cache line with the fields up to `joined_ns`:
    /// the subscriber writes most of them for each frame.
    pub cursor: AtomicU64,
    /// Which threads of the subscriber sleep: bit n for the packet reader in entry n of `readers`,
    /// [`FRAME_READER`] for the reader of frames. See [`sleeper`](super::sleeper).
    pub sleeping: AtomicU32,
    /// Futex that the reader of frames sleeps on.
    pub wake: AtomicU32,
    /// Number of frames that the subscriber has taken.
    pub received: AtomicU64,
    /// Number of frames that the subscriber has missed.
    pub skipped: AtomicU64,
    /// Number of taken frames that the subscriber has copied.
    pub copied: AtomicU64,
    /// Time at which the last frame was taken, ns of CLOCK_MONOTONIC.
    pub heartbeat_ns: AtomicU64,
    /// Time at which the publisher added the subscriber, ns of CLOCK_MONOTONIC.
    pub joined_ns: AtomicU64,
    /// The subscriber's readers of packets.
    pub readers: [ReaderWords; MAX_READERS],
}

/// Bit of [`PageHeader::sleeping`] for the reader of frames.
pub const FRAME_READER: u32 = 31;

/// Maximum number of packet readers of one subscriber.
pub const MAX_READERS: usize = 16;

/// State of a packet reader that its publisher sees, on a cache line of its own.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct ReaderWords {
    /// Number of the track in the low 32 bits, [`READER_IN_USE`] and the other flags above; 0 if this entry is
    /// free.
    pub track: AtomicU64,
    /// Position of the packet that the reader takes next.
    pub next: AtomicU64,
    /// Number of packets that the reader has taken.
    pub received: AtomicU64,
    /// Number of packets that the reader has missed.
    pub lost: AtomicU64,
    /// Futex that the reader sleeps on.
    pub wake: AtomicU32,
}

/// Flag of [`ReaderWords::track`]: the entry is in use.
pub const READER_IN_USE: u64 = 1 << 32;
/// Flag of [`ReaderWords::track`]: under the policy *wait* the publisher keeps packets from `next` on.
pub const READER_LOSSLESS: u64 = 1 << 33;
/// Flag of [`ReaderWords::track`]: the reader has yet to choose a track, so it counts for all tracks.
pub const READER_ANY_TRACK: u64 = 1 << 34;

/// Words of a packet's header after sequence number and length.
pub const PACKET_META_WORDS: usize = 14;

/// Header of a track's segment, which the ring of packets follows. Written by the publisher; subscribers map
/// it read-only.
#[repr(C)]
#[derive(Debug)]
pub struct TrackHeader {
    /// [`MAGIC`], stored last. The other fields are valid once it is set.
    pub magic: AtomicU64,
    /// [`LAYOUT_VERSION`] of the publisher.
    pub version: AtomicU32,
    /// Zero.
    pub _reserved: AtomicU32,
    /// Size of the ring in bytes.
    pub bytes: AtomicU64,
    /// Position at which the next packet begins.
    pub head: CacheAligned<AtomicU64>,
    /// Position of the oldest packet that is complete.
    pub tail: CacheAligned<AtomicU64>,
    /// Position of the newest keyframe plus 1; 0 before the first keyframe.
    pub keyframe: CacheAligned<AtomicU64>,
    /// 1 when the stream has ended after `head`, else 0.
    pub eos: CacheAligned<AtomicU32>,
    /// Under the policy *wait*: position before which the publisher is about to reclaim all packets.
    pub reclaim: AtomicU64,
}

// Loom's atomics are larger.
#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<ControlHeader>() == 192);
    assert!(offset_of!(ControlHeader, head) == 64);
    assert!(offset_of!(ControlHeader, status) == 128);
    assert!(size_of::<SlotWords>() == 16);
    assert!(size_of::<PageHeader>() == 1216);
    assert!(offset_of!(PageHeader, futex) == 64);
    assert!(offset_of!(PageHeader, cursor) == 128);
    assert!(offset_of!(PageHeader, sleeping) == 136);
    assert!(offset_of!(PageHeader, wake) == 140);
    assert!(offset_of!(PageHeader, received) == 144);
    assert!(offset_of!(PageHeader, joined_ns) == 176);
    assert!(offset_of!(PageHeader, readers) == 192);
    assert!(size_of::<ReaderWords>() == 64);
    assert!(offset_of!(ReaderWords, wake) == 32);
    assert!(size_of::<TrackHeader>() == 384);
    assert!(offset_of!(TrackHeader, head) == 64);
    assert!(offset_of!(TrackHeader, tail) == 128);
    assert!(offset_of!(TrackHeader, keyframe) == 192);
    assert!(offset_of!(TrackHeader, eos) == 256);
    assert!(offset_of!(TrackHeader, reclaim) == 320);
};

/// Maximum number of slots of a publisher. The index packs a slot's number into 16 bits.
pub const MAX_SLOTS: u32 = 1 << 14;

/// Bits of a sequence number in an index entry: 48, enough for thousands of years.
pub const MAX_SEQ: u64 = u64::MAX >> 16;

/// Returns the index entry of frame `seq` in `slot`.
pub fn pack_index(seq: u64, slot: u32) -> u64 {
    seq << 16 | u64::from(slot)
}

/// Returns the slot of an index entry, if the entry is still that of frame `seq`.
pub fn unpack_index(entry: u64, seq: u64) -> Option<u32> {
    (entry >> 16 == seq & MAX_SEQ).then_some(entry as u32 & 0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_entry_names_frame_and_slot() {
        assert_eq!(pack_index(3, 5), 0x3_0005);
        for seq in [1, 2, 1 << 40 | 7, MAX_SEQ] {
            for slot in [0, 1, MAX_SLOTS - 1] {
                let entry = pack_index(seq, slot);
                assert_eq!(unpack_index(entry, seq), Some(slot));
                for other in [seq - 1, seq + 1, seq ^ 1 << 47, 0] {
                    assert_eq!(unpack_index(entry, other), None, "{seq} {other}");
                }
            }
        }
        assert_eq!(unpack_index(0, 1), None);
    }

    /// docs/protocol.md has these numbers.
    #[test]
    fn limits_and_flags_are_as_documented() {
        assert_eq!((MAX_SLOTS, MAX_SEQ), (16384, 0xffff_ffff_ffff));
        let flags = [READER_IN_USE, READER_LOSSLESS, READER_ANY_TRACK];
        assert_eq!(flags, [0x1_0000_0000, 0x2_0000_0000, 0x4_0000_0000]);
    }
}
