//! What lies where in shared memory. docs/protocol.md describes the same in words.
//!
//! Everything is native-endian: peers share a host. Nothing here is a pointer, and no reference is
//! ever made to memory that the other side may write except to atomics.

use std::mem::{offset_of, size_of};

use super::packets::{Reference, decode_references, encode_references};
use super::sync::{AtomicU32, AtomicU64, Ordering};

/// First word of every segment: "cuframes".
pub const MAGIC: u64 = u64::from_ne_bytes(*b"cuframes");
/// Raised by every change of these structures that an older peer would misread.
pub const LAYOUT_VERSION: u32 = 3;

/// Apart from each other by this much, two words don't slow each other's writers down.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Line<T>(pub T);

impl<T> std::ops::Deref for Line<T> {
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
    pub head: Line<AtomicU64>,
    /// Sequence number of the last frame whose pixels are complete; for device memory, the GPU writes it.
    pub ready: Line<AtomicU64>,
    /// Changes with every frame and at the end of the stream; subscribers sleep on it.
    pub futex: Line<AtomicU32>,
    pub status: Line<Status>,
}

/// What seldom changes.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Status {
    /// How many of the publisher's threads sleep until a subscriber moves on.
    pub publisher_waits: AtomicU32,
    /// The stream has ended after `head`.
    pub eos: AtomicU32,
    /// Frames that were not published for lack of a slot.
    pub dropped: AtomicU64,
    /// How far behind its timestamps the publisher hands frames over at most, in ns.
    pub latency_ns: AtomicU64,
}

/// Words of a frame's record.
pub const RECORD_WORDS: usize = 64;
/// Where in a record the references begin, behind their length in bytes.
const REFERENCES: usize = 19;
/// Bytes of all references of a frame at most: 24 for each and the name of its clock.
pub const REFERENCE_BYTES: usize = (RECORD_WORDS - REFERENCES) * 8;

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
    pub futex: Line<AtomicU32>,
    /// Sequence number of the frame that was taken last.
    pub cursor: Line<AtomicU64>,
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
    pub head: Line<AtomicU64>,
    /// Where the oldest packet begins that is whole.
    pub tail: Line<AtomicU64>,
    /// Where the newest keyframe begins plus one; 0 before the first.
    pub keyframe: Line<AtomicU64>,
    /// Changes with every packet and at the end of the stream; readers sleep on it.
    pub futex: Line<AtomicU32>,
    pub eos: AtomicU32,
    pub _reserved2: AtomicU32,
    /// A publisher that waits is about to give up all packets before this one.
    pub reclaim: AtomicU64,
}

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

/// Where a plane lies in its slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Plane {
    /// Bytes from the slot's start.
    pub offset: u32,
    /// Bytes from one row to the next.
    pub stride: i32,
}

/// Planes that a picture has at most, as in GstVideoInfo.
pub const MAX_PLANES: usize = 4;

/// The planes of a picture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Planes {
    count: usize,
    planes: [Plane; MAX_PLANES],
}

impl Planes {
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
    pub fn to_arrays(&self) -> ([usize; MAX_PLANES], [i32; MAX_PLANES]) {
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
    /// Takes the first [`MAX_PLANES`].
    fn from_iter<I: IntoIterator<Item = Plane>>(iter: I) -> Self {
        let mut all = Self::default();
        for plane in iter.into_iter().take(MAX_PLANES) {
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
    pub references: Vec<Reference>,
}

/// A frame's record in shared memory; [`FrameInfo`] and where the pixels are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub seq: u64,
    pub generation: u32,
    pub chunk: u32,
    pub slot_in_chunk: u32,
    /// When it was published.
    pub published: i64,
    pub info: FrameInfo,
}

const NO_TIME: i64 = i64::MIN;
const NO_DURATION: u64 = u64::MAX;
const HAS_CROP: u64 = 1;
const HAS_PACKET: u64 = 2;

fn pair(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn halves(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

pub(crate) fn time_to_word(t: Option<i64>) -> u64 {
    t.unwrap_or(NO_TIME) as u64
}

pub(crate) fn time_from_word(w: u64) -> Option<i64> {
    Some(w as i64).filter(|t| *t != NO_TIME)
}

pub(crate) fn duration_to_word(d: Option<u64>) -> u64 {
    d.unwrap_or(NO_DURATION)
}

pub(crate) fn duration_from_word(w: u64) -> Option<u64> {
    Some(w).filter(|d| *d != NO_DURATION)
}

impl Record {
    /// Writes the record. The caller owns the slot, and publishes its number afterwards.
    pub fn store(&self, words: &[AtomicU64]) {
        let i = &self.info;
        let crop = i.crop.unwrap_or_default();
        let packet = i.packet.unwrap_or(PacketId { track: 0, seq: 0 });
        let has =
            u64::from(i.crop.is_some()) * HAS_CROP + u64::from(i.packet.is_some()) * HAS_PACKET;
        let plane = |n: usize| i.planes.get(n).map_or(0, |p| pair(p.offset, p.stride as u32));
        let all = [
            self.seq,
            pair(self.generation, self.chunk),
            pair(self.slot_in_chunk, i.flags),
            time_to_word(i.pts),
            time_to_word(i.dts),
            duration_to_word(i.duration),
            i.captured as u64,
            self.published as u64,
            i.size as u64,
            has << 32 | i.planes.len() as u64,
            plane(0),
            plane(1),
            plane(2),
            plane(3),
            pair(crop.x, crop.y),
            pair(crop.width, crop.height),
            u64::from(packet.track),
            packet.seq,
        ];
        let references = encode_references(&i.references, REFERENCE_BYTES);
        let text = references.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        let all = all.into_iter().chain([references.len() as u64]).chain(text);
        for (to, from) in words.iter().zip(all) {
            // The slot's number is stored with Release behind these.
            to.store(from, Ordering::Relaxed);
        }
    }

    /// Reads the record of a slot that the caller has claimed. `None` if it makes no sense.
    pub fn load(words: &[AtomicU64]) -> Option<Self> {
        // The slot's number was loaded with Acquire before these.
        let w = |n: usize| words[n].load(Ordering::Relaxed);
        let (generation, chunk) = halves(w(1));
        let (slot_in_chunk, flags) = halves(w(2));
        let (has, planes) = (w(9) >> 32, w(9) as u32 as usize);
        if planes > MAX_PLANES {
            return None;
        }
        let (x, y) = halves(w(14));
        let (width, height) = halves(w(15));
        let len = usize::try_from(w(REFERENCES - 1)).ok().filter(|len| *len <= REFERENCE_BYTES)?;
        let bytes: Vec<u8> =
            (0..len.div_ceil(8)).flat_map(|n| w(REFERENCES + n).to_ne_bytes()).take(len).collect();
        Some(Self {
            seq: w(0),
            generation,
            chunk,
            slot_in_chunk,
            published: w(7) as i64,
            info: FrameInfo {
                pts: time_from_word(w(3)),
                dts: time_from_word(w(4)),
                duration: duration_from_word(w(5)),
                captured: w(6) as i64,
                flags,
                size: usize::try_from(w(8)).ok()?,
                planes: (0..planes)
                    .map(|n| halves(w(10 + n)))
                    .map(|(offset, stride)| Plane { offset, stride: stride as i32 })
                    .collect(),
                crop: (has & HAS_CROP != 0).then_some(Crop { x, y, width, height }),
                packet: (has & HAS_PACKET != 0)
                    .then(|| PacketId { track: w(16) as u32, seq: w(17) }),
                references: decode_references(&bytes)?,
            },
        })
    }
}
