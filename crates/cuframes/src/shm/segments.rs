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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::mapping::Sharing;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn map(len: usize) -> Mapping {
        Mapping::create("test", len, Sharing::ReadWrite).unwrap().0
    }

    /// Returns the offset of a word in a mapping.
    fn offset(map: &Mapping, word: &AtomicU64) -> usize {
        std::ptr::from_ref(word) as usize - map.as_ptr() as usize
    }

    fn panics<T>(f: impl FnOnce() -> T) -> bool {
        catch_unwind(AssertUnwindSafe(|| drop(f()))).is_err()
    }

    #[test]
    fn control_segment_has_documented_layout() {
        let header = size_of::<ControlHeader>();
        // The words of 11 slots take three cache lines, 16 index entries another two.
        assert_eq!(Control::size(11, 16), header + 3 * LINE + 2 * LINE + 11 * 512);
        let control = Control::new(map(Control::size(11, 16)), 11, 16);
        assert_eq!((control.slots(), control.index_len()), (11, 16));
        assert_eq!(control.memory().size(), Control::size(11, 16));
        let at = |word| offset(control.memory(), word);
        assert_eq!(at(&control.header().magic), 0);
        for slot in [0, 1, 10] {
            let words = header + slot as usize * 16;
            assert_eq!((at(control.slot(slot)), at(control.ready(slot))), (words, words + 8));
            assert_eq!(Control::ready_offset(slot), words + 8);
        }
        for seq in [0, 1, 15, 16, 1 << 40 | 7] {
            let entry = header + 3 * LINE + (seq as usize % 16) * 8;
            assert_eq!(at(control.index_entry(seq)), entry, "{seq}");
        }
        for slot in [0, 1, 10] {
            let record = control.record(slot);
            let start = header + 5 * LINE + slot as usize * 512;
            assert_eq!((at(&record[0]), record.len()), (start, RECORD_WORDS));
        }
        assert!(panics(|| control.slot(11)) && panics(|| control.record(11)));
        assert!(panics(|| Control::new(map(Control::size(11, 16) - 1), 11, 16)));
        assert!(panics(|| Control::new(map(Control::size(11, 16)), 11, 15)));
    }

    #[test]
    fn page_has_documented_layout() {
        let header = size_of::<PageHeader>();
        assert_eq!(SubscriberPage::size(5), header + 40);
        let page = SubscriberPage::new(map(SubscriberPage::size(5)), 5);
        assert_eq!(page.memory().size(), header + 40);
        assert_eq!(offset(page.memory(), &page.header().magic), 0);
        for slot in 0..5 {
            let at = header + slot as usize * 8;
            assert_eq!(offset(page.memory(), page.held(slot)), at);
            assert_eq!(SubscriberPage::held_offset(slot), at);
        }
        assert!(panics(|| page.held(5)));
        assert_eq!(page.count_held(), 0);
        page.held(1).store(7, Ordering::Relaxed);
        page.held(4).store(9, Ordering::Relaxed);
        assert_eq!(page.count_held(), 2);
        assert!(panics(|| SubscriberPage::new(map(header + 39), 5)));
    }

    #[test]
    fn track_has_documented_layout() {
        let header = size_of::<TrackHeader>();
        assert_eq!(TrackSegment::size(8), Some(header + 8));
        assert_eq!(TrackSegment::size(4096), Some(header + 4096));
        let most = (isize::MAX as usize - header) / 8 * 8;
        assert!(TrackSegment::size(most as u64).is_some());
        for bytes in [0, 4, 4095, most as u64 + 8, u64::MAX - 7] {
            assert_eq!(TrackSegment::size(bytes), None, "{bytes}");
        }
        let track = TrackSegment::new(map(header + 4096), 4096);
        assert_eq!(track.memory().size(), header + 4096);
        assert_eq!(offset(track.memory(), &track.header().magic), 0);
        let ring = track.ring();
        assert_eq!(ring.capacity(), 4096);
        assert_eq!(offset(track.memory(), &ring.words[0]), header);
        assert!(std::ptr::eq(ring.head, &*track.header().head));
        assert!(std::ptr::eq(ring.tail, &*track.header().tail));
        assert!(panics(|| TrackSegment::new(map(header + 4088), 4096)));
        assert!(panics(|| TrackSegment::new(map(header + 4096), 4095)));
    }
}
