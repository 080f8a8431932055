// SPDX-License-Identifier: LGPL-2.1-or-later
//! The three kinds of shared memory segments: control segment, subscriber page, track.

use super::layout::{ControlHeader, PageHeader, SlotWords, TrackHeader};
use super::mapping::Mapping;
use super::record::RECORD_WORDS;
use super::ring::Ring;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Arrays start on a cache line.
const LINE: usize = 64;

/// The control segment: header, words of the slots, index, records. Written by the publisher only.
#[derive(Debug)]
pub struct Control {
    map: Mapping,
    slots: usize,
    index: usize,
}

impl Control {
    /// Size of a segment with this many slots and index entries, in bytes.
    pub fn size(slots: u32, index: u32) -> usize {
        Self::records_at(slots as usize, index as usize) + slots as usize * RECORD_WORDS * 8
    }

    fn index_at(slots: usize) -> usize {
        size_of::<ControlHeader>() + (slots * size_of::<SlotWords>()).next_multiple_of(LINE)
    }

    fn records_at(slots: usize, index: usize) -> usize {
        Self::index_at(slots) + (index * 8).next_multiple_of(LINE)
    }

    /// Interprets a mapping as a control segment.
    ///
    /// # Panics
    /// If `index` is no power of two, or the mapping is too short.
    pub fn new(map: Mapping, slots: u32, index: u32) -> Self {
        assert!(index.is_power_of_two() && map.size() >= Self::size(slots, index));
        Self { map, slots: slots as usize, index: index as usize }
    }

    /// The header at the start of the segment.
    pub fn header(&self) -> &ControlHeader {
        self.map.header()
    }

    /// The mapping of the whole segment.
    pub fn memory(&self) -> &Mapping {
        &self.map
    }

    /// Number of entries of the index, a power of two.
    pub fn index_len(&self) -> u32 {
        self.index as u32
    }

    /// Number of slots.
    pub fn slots(&self) -> u32 {
        self.slots as u32
    }

    /// The slot's number: the sequence number of the frame in it, or [`EMPTY`](super::claim::EMPTY).
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn slot(&self, slot: u32) -> &AtomicU64 {
        &self.slot_words(slot).number
    }

    /// Sequence number of the last frame in the slot whose pixels are complete.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn ready(&self, slot: u32) -> &AtomicU64 {
        &self.slot_words(slot).ready
    }

    /// Offset of [`Control::ready`] from the start of the segment, in bytes.
    pub fn ready_offset(slot: u32) -> usize {
        size_of::<ControlHeader>()
            + slot as usize * size_of::<SlotWords>()
            + std::mem::offset_of!(SlotWords, ready)
    }

    fn slot_words(&self, slot: u32) -> &SlotWords {
        &self.map.array(size_of::<ControlHeader>(), self.slots)[slot as usize]
    }

    /// The index entry of frame `seq`.
    pub fn index_entry(&self, seq: u64) -> &AtomicU64 {
        let at = seq as usize & (self.index - 1);
        &self.map.words(Self::index_at(self.slots), self.index)[at]
    }

    /// The words of the slot's record.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn record(&self, slot: u32) -> &[AtomicU64] {
        assert!((slot as usize) < self.slots);
        let at = Self::records_at(self.slots, self.index) + slot as usize * RECORD_WORDS * 8;
        self.map.words(at, RECORD_WORDS)
    }
}

/// A subscriber's page: header, claims. Written by that subscriber; only it and the publisher map it.
#[derive(Debug)]
pub struct SubscriberPage {
    map: Mapping,
    slots: usize,
}

impl SubscriberPage {
    /// Size of a page with claims for this many slots, in bytes.
    pub fn size(slots: u32) -> usize {
        size_of::<PageHeader>() + slots as usize * 8
    }

    /// Interprets a mapping as a subscriber's page.
    ///
    /// # Panics
    /// If the mapping is too short.
    pub fn new(map: Mapping, slots: u32) -> Self {
        assert!(map.size() >= Self::size(slots));
        Self { map, slots: slots as usize }
    }

    /// The header at the start of the page.
    pub fn header(&self) -> &PageHeader {
        self.map.header()
    }

    /// Offset of the claim on the slot, in bytes from the start of the page.
    pub fn held_offset(slot: u32) -> usize {
        size_of::<PageHeader>() + slot as usize * 8
    }

    /// The mapping of the whole segment.
    pub fn memory(&self) -> &Mapping {
        &self.map
    }

    /// The claim on the slot.
    pub fn held(&self, slot: u32) -> &AtomicU64 {
        &self.map.words(size_of::<PageHeader>(), self.slots)[slot as usize]
    }

    /// Counts the slots that are claimed.
    pub fn count_held(&self) -> u32 {
        let claims = self.map.words(size_of::<PageHeader>(), self.slots);
        claims.iter().filter(|h| h.load(Ordering::Relaxed) != 0).count() as u32
    }
}

/// A track's segment: header, ring of packets.
#[derive(Debug)]
pub struct TrackSegment {
    map: Mapping,
    bytes: usize,
}

impl TrackSegment {
    /// Size of a segment with a ring of `bytes`; `None` if `bytes` is 0 or no multiple of 8, or if the size
    /// overflows.
    pub fn size(bytes: u64) -> Option<usize> {
        let bytes = usize::try_from(bytes).ok().filter(|b| *b > 0 && b.is_multiple_of(8))?;
        size_of::<TrackHeader>().checked_add(bytes).filter(|b| *b <= isize::MAX as usize)
    }

    /// Interprets a mapping as a track with a ring of `bytes`.
    ///
    /// # Panics
    /// If the mapping is too short, or `bytes` is not a size that [`TrackSegment::size`] accepts.
    pub fn new(map: Mapping, bytes: u64) -> Self {
        assert!(Self::size(bytes).is_some_and(|size| map.size() >= size));
        Self { map, bytes: bytes as usize }
    }

    /// The header at the start of the segment.
    pub fn header(&self) -> &TrackHeader {
        self.map.header()
    }

    /// The mapping of the whole segment.
    pub fn memory(&self) -> &Mapping {
        &self.map
    }

    /// The ring of packets.
    pub fn ring(&self) -> Ring<'_> {
        Ring {
            head: &self.header().head,
            tail: &self.header().tail,
            words: self.map.words(size_of::<TrackHeader>(), self.bytes / 8),
        }
    }
}
