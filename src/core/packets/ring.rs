//! The byte ring with an index: one writer, any number of readers that only read.
//!
//! Positions are 64-bit numbers that only grow; where they fall in the ring is their remainder. Before
//! the writer overwrites anything it moves `tail` past every packet that loses a byte or its entry.
//! A reader copies first and looks at `tail` afterwards: a copy counts only if the packet was still
//! valid *behind* it. So a packet is never torn, whichever of the two rings wraps first, and no
//! reader can hold the writer up.
//!
//! All shared words are atomics, the packets' bytes too: a copy that races with the writer is
//! thrown away, but it has to be a defined one until then.

use crate::core::sync::{AtomicU64, Ordering, fence};

/// Words of one index entry: position, length, and the caller's.
pub const ENTRY_WORDS: usize = 16;
/// Words of an entry that are the caller's.
pub const META_WORDS: usize = ENTRY_WORDS - 2;

/// The shared words of a ring, wherever they are mapped.
#[derive(Clone, Copy)]
pub struct Ring<'a> {
    /// Sequence number of the next packet.
    pub head: &'a AtomicU64,
    /// Sequence number of the oldest packet that is whole.
    pub tail: &'a AtomicU64,
    /// [`ENTRY_WORDS`] a packet.
    pub entries: &'a [AtomicU64],
    pub bytes: &'a [AtomicU64],
}

/// A packet's place and the caller's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub seq: u64,
    position: u64,
    /// Bytes.
    pub len: usize,
    pub meta: [u64; META_WORDS],
}

/// The packet was overwritten before it was read whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overwritten;

/// The packet has more bytes than the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooBig;

impl<'a> Ring<'a> {
    fn entry(&self, seq: u64) -> &'a [AtomicU64] {
        let count = (self.entries.len() / ENTRY_WORDS) as u64;
        let at = (seq % count) as usize * ENTRY_WORDS;
        &self.entries[at..at + ENTRY_WORDS]
    }

    /// The words from byte `position` on, in the two runs that the end of the ring makes of them.
    fn runs(&self, position: u64, words: usize) -> (&'a [AtomicU64], &'a [AtomicU64]) {
        let at = (position / 8 % self.bytes.len() as u64) as usize;
        let first = words.min(self.bytes.len() - at);
        (&self.bytes[at..at + first], &self.bytes[..words - first])
    }

    fn capacity(&self) -> u64 {
        self.bytes.len() as u64 * 8
    }

    /// The sequence number of the next packet: all before it are written.
    pub fn head(&self) -> u64 {
        // Pairs with the Release in `Writer::write`.
        self.head.load(Ordering::Acquire)
    }

    pub fn tail(&self) -> u64 {
        self.tail.load(Ordering::Acquire)
    }

    /// What the index says of packet `seq`, which has to be before [`Ring::head`].
    pub fn read_entry(&self, seq: u64) -> Result<Entry, Overwritten> {
        let words = self.entry(seq);
        let position = words[0].load(Ordering::Relaxed);
        let len = words[1].load(Ordering::Relaxed);
        let meta = std::array::from_fn(|i| words[i + 2].load(Ordering::Relaxed));
        self.check(seq)?;
        // A writer keeps to this; one that does not is a peer that lies.
        if len > self.capacity() {
            return Err(Overwritten);
        }
        Ok(Entry { seq, position, len: len as usize, meta })
    }

    /// Copies a packet's bytes to `out`, which has the entry's length. On `Err`, `out` holds rubbish.
    pub fn read_bytes(&self, entry: &Entry, out: &mut [u8]) -> Result<(), Overwritten> {
        assert_eq!(entry.len, out.len());
        let (a, b) = self.runs(entry.position, entry.len.div_ceil(8));
        let mut words = a.iter().chain(b);
        let mut whole = out.chunks_exact_mut(8);
        // Run by run: a chained iterator costs a branch a word.
        for (to, from) in whole.by_ref().zip(words.by_ref()) {
            to.copy_from_slice(&from.load(Ordering::Relaxed).to_ne_bytes());
        }
        let rest = whole.into_remainder();
        if !rest.is_empty() {
            let last = b.last().or(a.last()).expect("len > 0 has a word");
            rest.copy_from_slice(&last.load(Ordering::Relaxed).to_ne_bytes()[..rest.len()]);
        }
        self.check(entry.seq)
    }

    fn check(&self, seq: u64) -> Result<(), Overwritten> {
        // Pairs with the Release fence in `Writer::write`: if any word that was loaded before it is a
        // newer one, the `tail` that was stored before that word is seen here.
        fence(Ordering::Acquire);
        if self.tail.load(Ordering::Relaxed) <= seq { Ok(()) } else { Err(Overwritten) }
    }
}

/// The writer's own memory of a ring; nothing that it relies on is read from shared memory.
#[derive(Debug, Default)]
pub struct Writer {
    head: u64,
    tail: u64,
    /// Where the next packet goes.
    position: u64,
    /// Where each of the packets from `tail` to `head` begins.
    starts: std::collections::VecDeque<u64>,
}

impl Writer {
    /// The sequence number that the next packet gets.
    pub fn head(&self) -> u64 {
        self.head
    }

    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Forgets the packets before `seq`.
    pub fn forget_before(&mut self, ring: Ring<'_>, seq: u64) {
        let seq = seq.min(self.head);
        if seq > self.tail {
            self.starts.drain(..(seq - self.tail) as usize);
            self.tail = seq;
            ring.tail.store(seq, Ordering::Relaxed);
        }
    }

    /// The packets that are left when one of `len` bytes is written: from this number on.
    pub fn tail_after(&self, ring: Ring<'_>, len: usize) -> Result<u64, TooBig> {
        let len = (len as u64).next_multiple_of(8);
        if len > ring.capacity() {
            return Err(TooBig);
        }
        let entries = (ring.entries.len() / ENTRY_WORDS) as u64;
        let mut tail = self.tail.max((self.head + 1).saturating_sub(entries));
        // What has to fit is everything from the oldest packet's first byte on.
        while tail < self.head
            && self.position + len - self.starts[(tail - self.tail) as usize] > ring.capacity()
        {
            tail += 1;
        }
        Ok(tail)
    }

    /// Appends a packet and gives its sequence number. `meta` is handed the number, for what depends on it.
    pub fn write(
        &mut self,
        ring: Ring<'_>,
        data: &[u8],
        meta: &[u64; META_WORDS],
    ) -> Result<u64, TooBig> {
        let tail = self.tail_after(ring, data.len())?;
        self.forget_before(ring, tail);
        // Pairs with the Acquire fence in `Ring::check`: whoever sees a word from below sees this tail.
        fence(Ordering::Release);

        let (a, b) = ring.runs(self.position, data.len().div_ceil(8));
        let mut whole = data.chunks_exact(8);
        let mut words = a.iter().chain(b);
        for (from, to) in whole.by_ref().zip(words.by_ref()) {
            let word = u64::from_ne_bytes(from.try_into().expect("a chunk has 8 bytes"));
            to.store(word, Ordering::Relaxed);
        }
        let rest = whole.remainder();
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            let last = b.last().or(a.last()).expect("data has a word");
            last.store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }

        let seq = self.head;
        let entry = ring.entry(seq);
        entry[0].store(self.position, Ordering::Relaxed);
        entry[1].store(data.len() as u64, Ordering::Relaxed);
        for (to, from) in entry[2..].iter().zip(meta) {
            to.store(*from, Ordering::Relaxed);
        }
        self.starts.push_back(self.position);
        self.position += (data.len() as u64).next_multiple_of(8);
        self.head += 1;
        // Pairs with the Acquire in `Ring::head`.
        ring.head.store(self.head, Ordering::Release);
        Ok(seq)
    }
}
