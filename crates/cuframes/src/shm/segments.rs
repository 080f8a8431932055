//! The three kinds of segments.

use super::layout::{ControlHeader, PageHeader, TrackHeader};
use super::mapping::Mapping;
use super::record::RECORD_WORDS;
use super::ring::Ring;
use crate::sync::atomic::{AtomicU64, Ordering};

const LINE: usize = 64;

/// The control segment: header, slot numbers, index, records.
#[derive(Debug)]
pub struct Control {
    map: Mapping,
    slots: usize,
    index: usize,
}

impl Control {
    /// Bytes of a segment for so many slots and index entries.
    pub fn size(slots: u32, index: u32) -> usize {
        Self::records_at(slots as usize, index as usize) + slots as usize * RECORD_WORDS * 8
    }

    fn index_at(slots: usize) -> usize {
        size_of::<ControlHeader>() + (slots * 8).next_multiple_of(LINE)
    }

    fn records_at(slots: usize, index: usize) -> usize {
        Self::index_at(slots) + (index * 8).next_multiple_of(LINE)
    }

    pub fn new(map: Mapping, slots: u32, index: u32) -> Self {
        assert!(index.is_power_of_two() && map.size() >= Self::size(slots, index));
        Self { map, slots: slots as usize, index: index as usize }
    }

    pub fn header(&self) -> &ControlHeader {
        self.map.header()
    }

    /// All of it.
    pub fn memory(&self) -> &Mapping {
        &self.map
    }

    /// Entries of the index.
    pub fn index_len(&self) -> u32 {
        self.index as u32
    }

    pub fn slots(&self) -> u32 {
        self.slots as u32
    }

    /// The sequence number of the frame in the slot.
    pub fn slot(&self, slot: u32) -> &AtomicU64 {
        &self.map.words(size_of::<ControlHeader>(), self.slots)[slot as usize]
    }

    /// The index entry of frame `seq`.
    pub fn index_entry(&self, seq: u64) -> &AtomicU64 {
        let at = seq as usize & (self.index - 1);
        &self.map.words(Self::index_at(self.slots), self.index)[at]
    }

    pub fn record(&self, slot: u32) -> &[AtomicU64] {
        assert!((slot as usize) < self.slots);
        let at = Self::records_at(self.slots, self.index) + slot as usize * RECORD_WORDS * 8;
        self.map.words(at, RECORD_WORDS)
    }
}

/// A subscriber's page: header, claims.
#[derive(Debug)]
pub struct SubscriberPage {
    map: Mapping,
    slots: usize,
}

impl SubscriberPage {
    pub fn size(slots: u32) -> usize {
        size_of::<PageHeader>() + slots as usize * 8
    }

    pub fn new(map: Mapping, slots: u32) -> Self {
        assert!(map.size() >= Self::size(slots));
        Self { map, slots: slots as usize }
    }

    pub fn header(&self) -> &PageHeader {
        self.map.header()
    }

    /// Where the claim on the slot is, in bytes.
    pub fn held_offset(slot: u32) -> usize {
        size_of::<PageHeader>() + slot as usize * 8
    }

    /// All of it.
    pub fn memory(&self) -> &Mapping {
        &self.map
    }

    /// The claim on the slot.
    pub fn held(&self, slot: u32) -> &AtomicU64 {
        &self.map.words(size_of::<PageHeader>(), self.slots)[slot as usize]
    }

    /// The claims on all slots.
    pub fn claims(&self) -> Vec<u64> {
        let claims = self.map.words(size_of::<PageHeader>(), self.slots);
        claims.iter().map(|h| h.load(Ordering::Relaxed)).collect()
    }

    /// How many slots are claimed.
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
    /// Bytes of a segment, or `None` where that overflows. `bytes` has to be a multiple of 8.
    pub fn size(bytes: u64) -> Option<usize> {
        let bytes = usize::try_from(bytes).ok().filter(|b| *b > 0 && b.is_multiple_of(8))?;
        size_of::<TrackHeader>().checked_add(bytes).filter(|b| *b <= isize::MAX as usize)
    }

    pub fn new(map: Mapping, bytes: u64) -> Self {
        assert!(Self::size(bytes).is_some_and(|size| map.size() >= size));
        Self { map, bytes: bytes as usize }
    }

    pub fn header(&self) -> &TrackHeader {
        self.map.header()
    }

    /// All of it.
    pub fn memory(&self) -> &Mapping {
        &self.map
    }

    pub fn ring(&self) -> Ring<'_> {
        Ring {
            head: &self.header().head,
            tail: &self.header().tail,
            words: self.map.words(size_of::<TrackHeader>(), self.bytes / 8),
        }
    }
}
