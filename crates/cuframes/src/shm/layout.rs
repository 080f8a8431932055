//! What lies where in shared memory. docs/protocol.md describes the same in words.
//!
//! Everything is native-endian: peers share a host. Nothing here is a pointer, and no reference is
//! ever made to memory that the other side may write except to atomics.

use crate::sync::atomic::{AtomicU32, AtomicU64};
#[cfg(not(loom))]
use std::mem::{offset_of, size_of};

/// First word of every segment: "cuframes".
pub const MAGIC: u64 = u64::from_ne_bytes(*b"cuframes");
/// Raised by every change of these structures that an older peer would misread.
pub const LAYOUT_VERSION: u32 = 3;

/// Apart from each other by this much, two words don't slow each other's writers down.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct CacheAligned<T>(pub T);

impl<T> std::ops::Deref for CacheAligned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// Head of the control segment. The publisher writes it, subscribers map it read-only.
///
/// Behind it: `slots` words of slot numbers, `index` words of the index (both padded to a line),
/// then `slots` records of [`RECORD_WORDS`].
#[repr(C)]
#[derive(Debug)]
pub struct ControlHeader {
    /// Written last, with Release: before it is [`MAGIC`], nothing else counts.
    pub magic: AtomicU64,
    pub version: AtomicU32,
    pub slots: AtomicU32,
    /// A power of two.
    pub index: AtomicU32,
    pub _reserved: AtomicU32,
    pub epoch: AtomicU64,
    /// Sequence number of the last published frame.
    pub head: CacheAligned<AtomicU64>,
    /// Sequence number of the last frame whose pixels are complete; for device memory, the GPU writes it.
    pub ready: CacheAligned<AtomicU64>,
    /// Changes with every frame and at the end of the stream; subscribers sleep on it.
    pub futex: CacheAligned<AtomicU32>,
    pub status: CacheAligned<StreamFlags>,
}

/// What seldom changes.
#[repr(C)]
#[derive(Debug, Default)]
pub struct StreamFlags {
    /// How many of the publisher's threads sleep until a subscriber moves on.
    pub publisher_waits: AtomicU32,
    /// The stream has ended after `head`.
    pub eos: AtomicU32,
    /// Frames that were not published for lack of a slot.
    pub dropped: AtomicU64,
    /// How far behind its timestamps the publisher hands frames over at most, in ns.
    pub latency_ns: AtomicU64,
}

/// A page of one subscriber. It and the publisher write it, nobody else maps it.
///
/// Behind it: `slots` words, the claims.
#[repr(C)]
#[derive(Debug)]
pub struct PageHeader {
    pub magic: AtomicU64,
    pub version: AtomicU32,
    pub slots: AtomicU32,
    /// The publisher sleeps on it while it waits for this subscriber.
    pub futex: CacheAligned<AtomicU32>,
    /// Sequence number of the frame that was taken last.
    pub cursor: CacheAligned<AtomicU64>,
    pub received: AtomicU64,
    pub skipped: AtomicU64,
    pub copied: AtomicU64,
    /// CLOCK_MONOTONIC at which the last frame was taken, in ns.
    pub heartbeat_ns: AtomicU64,
    /// CLOCK_MONOTONIC at which the publisher welcomed the subscriber, in ns.
    pub joined_ns: AtomicU64,
    pub _reserved: [AtomicU64; 3],
    pub readers: [ReaderWords; MAX_READERS],
}

/// Readers of packets that have a place in a subscriber's page.
pub const MAX_READERS: usize = 16;

/// A reader of packets, as its publisher sees it.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ReaderWords {
    /// The number of the track, and [`READER_IN_USE`] and the other flags; 0 for a place that is free.
    pub track: AtomicU64,
    /// Where the packet begins that it takes next.
    pub next: AtomicU64,
    pub received: AtomicU64,
    pub lost: AtomicU64,
}

pub const READER_IN_USE: u64 = 1 << 32;
/// A publisher that waits keeps its packets from `next` on.
pub const READER_LOSSLESS: u64 = 1 << 33;
/// It has not yet said which track it takes.
pub const READER_ANY_TRACK: u64 = 1 << 34;

/// Words of a packet's header behind its number and its length.
pub const PACKET_META_WORDS: usize = 14;

/// Head of a track's segment. Behind it, the ring of packets.
#[repr(C)]
#[derive(Debug)]
pub struct TrackHeader {
    pub magic: AtomicU64,
    pub version: AtomicU32,
    pub _reserved: AtomicU32,
    /// Bytes of the ring.
    pub bytes: AtomicU64,
    /// Where the next packet begins.
    pub head: CacheAligned<AtomicU64>,
    /// Where the oldest packet begins that is whole.
    pub tail: CacheAligned<AtomicU64>,
    /// Where the newest keyframe begins plus one; 0 before the first.
    pub keyframe: CacheAligned<AtomicU64>,
    /// Changes with every packet and at the end of the stream; readers sleep on it.
    pub futex: CacheAligned<AtomicU32>,
    pub eos: AtomicU32,
    pub _reserved2: AtomicU32,
    /// A publisher that waits is about to give up all packets before this one.
    pub reclaim: AtomicU64,
}

// The atomics of loom are larger.
#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<ControlHeader>() == 320);
    assert!(offset_of!(ControlHeader, head) == 64);
    assert!(offset_of!(ControlHeader, ready) == 128);
    assert!(offset_of!(ControlHeader, futex) == 192);
    assert!(offset_of!(ControlHeader, status) == 256);
    assert!(size_of::<PageHeader>() == 768);
    assert!(offset_of!(PageHeader, futex) == 64);
    assert!(offset_of!(PageHeader, cursor) == 128);
    assert!(offset_of!(PageHeader, received) == 192);
    assert!(offset_of!(PageHeader, joined_ns) == 224);
    assert!(offset_of!(PageHeader, readers) == 256);
    assert!(size_of::<ReaderWords>() == 32);
    assert!(size_of::<TrackHeader>() == 384);
    assert!(offset_of!(TrackHeader, head) == 64);
    assert!(offset_of!(TrackHeader, tail) == 128);
    assert!(offset_of!(TrackHeader, keyframe) == 192);
    assert!(offset_of!(TrackHeader, futex) == 256);
    assert!(offset_of!(TrackHeader, eos) == 320);
    assert!(offset_of!(TrackHeader, reclaim) == 328);
};

/// Slots that one publisher can have at most; the index packs a slot's number into 16 bits.
pub const MAX_SLOTS: u32 = 1 << 14;

/// Frames have 48 bits in the index: enough for thousands of years.
pub const MAX_SEQ: u64 = u64::MAX >> 16;

/// An entry of the index: which slot holds frame `seq`.
pub fn pack_index(seq: u64, slot: u32) -> u64 {
    seq << 16 | u64::from(slot)
}

/// The slot, if the entry is still the one of frame `seq`.
pub fn unpack_index(entry: u64, seq: u64) -> Option<u32> {
    (entry >> 16 == seq & MAX_SEQ).then_some(entry as u32 & 0xffff)
}
