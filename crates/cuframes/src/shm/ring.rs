//! The ring of packets: one writer, any number of readers that only read.
//!
//! A packet is its header and its bytes, one behind the other; so nothing but bytes bounds how many there
//! are. Positions are 64-bit numbers of bytes that only grow; where they fall in the ring is their
//! remainder. Before the writer overwrites anything it moves `tail` past every packet that loses a word.
//! A reader copies first and looks at `tail` afterwards: a copy counts only if the packet was still
//! valid *behind* it. So a packet is never torn, wherever the ring wraps, and no reader can hold the
//! writer up.
//!
//! All shared words are atomics, the packets' bytes too: a copy that races with the writer is
//! thrown away, but it has to be a defined one until then.

use std::collections::VecDeque;

use super::layout::PACKET_META_WORDS;
use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// Bytes of a packet at most: far more than any picture has, and little enough to be allocated.
pub const MAX_PACKET: u64 = 256 << 20;

/// Bytes of a packet's header: its sequence number, its length, and the `META` words of the caller.
const fn header_bytes(meta: usize) -> u64 {
    (2 + meta as u64) * 8
}

/// The shared words of a ring, wherever they are mapped.
#[derive(Clone, Copy)]
pub struct Ring<'a, const META: usize = PACKET_META_WORDS> {
    /// Where the next packet begins.
    pub head: &'a AtomicU64,
    /// Where the oldest packet begins that is whole.
    pub tail: &'a AtomicU64,
    pub words: &'a [AtomicU64],
}

/// What stands before a packet's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<const META: usize = PACKET_META_WORDS> {
    /// Where the packet begins.
    pub position: u64,
    pub seq: u64,
    /// Bytes.
    pub len: usize,
    pub meta: [u64; META],
}

impl<const META: usize> Entry<META> {
    /// Where the next packet begins.
    pub fn end(&self) -> u64 {
        self.position.wrapping_add(room::<META>(self.len))
    }
}

/// The packet was overwritten before it was read whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overwritten;

/// The packet has more bytes than the ring, or than [`MAX_PACKET`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooBig;

/// What a packet of so many bytes takes.
fn room<const META: usize>(len: usize) -> u64 {
    header_bytes(META) + (len as u64).next_multiple_of(8)
}

impl<'a, const META: usize> Ring<'a, META> {
    fn word(&self, position: u64) -> &'a AtomicU64 {
        &self.words[(position / 8 % self.words.len() as u64) as usize]
    }

    /// The words from byte `position` on, in the two runs that the end of the ring makes of them.
    fn runs(&self, position: u64, words: usize) -> (&'a [AtomicU64], &'a [AtomicU64]) {
        let at = (position / 8 % self.words.len() as u64) as usize;
        let first = words.min(self.words.len() - at);
        (&self.words[at..at + first], &self.words[..words - first])
    }

    /// No ring has more packets than this. Who follows a writer that lies comes to an end by it.
    pub fn most_packets(&self) -> usize {
        (self.capacity() / header_bytes(META)).min(1 << 24) as usize
    }

    pub fn capacity(&self) -> u64 {
        self.words.len() as u64 * 8
    }

    /// Where the next packet begins: all before it are written.
    pub fn head(&self) -> u64 {
        // Pairs with the Release in `Writer::write`.
        self.head.load(Ordering::Acquire)
    }

    pub fn tail(&self) -> u64 {
        self.tail.load(Ordering::Acquire)
    }

    /// The header of the packet at `position`, which has to be before [`Ring::head`].
    pub fn read_entry(&self, position: u64) -> Result<Entry<META>, Overwritten> {
        let word =
            |i: usize| self.word(position.wrapping_add(i as u64 * 8)).load(Ordering::Relaxed);
        let (seq, len) = (word(0), word(1));
        let meta = std::array::from_fn(|i| word(i + 2));
        self.check(position)?;
        // A writer keeps to this; one that does not is a peer that lies.
        if len > self.capacity().min(MAX_PACKET) {
            return Err(Overwritten);
        }
        Ok(Entry { position, seq, len: len as usize, meta })
    }

    /// Copies a packet's bytes to `out`, which has the entry's length. On `Err`, `out` holds rubbish.
    pub fn read_bytes(&self, entry: &Entry<META>, out: &mut [u8]) -> Result<(), Overwritten> {
        assert_eq!(entry.len, out.len());
        let (a, b) =
            self.runs(entry.position.wrapping_add(header_bytes(META)), entry.len.div_ceil(8));
        let (first, second) = out.split_at_mut((a.len() * 8).min(entry.len));
        // Run by run: a chained iterator costs a branch a word.
        for (from, out) in [(a, first), (b, second)] {
            let mut whole = out.chunks_exact_mut(8);
            for (to, from) in whole.by_ref().zip(from) {
                to.copy_from_slice(&from.load(Ordering::Relaxed).to_ne_bytes());
            }
            let rest = whole.into_remainder();
            if let (false, Some(last)) = (rest.is_empty(), from.last()) {
                rest.copy_from_slice(&last.load(Ordering::Relaxed).to_ne_bytes()[..rest.len()]);
            }
        }
        self.check(entry.position)
    }

    fn check(&self, position: u64) -> Result<(), Overwritten> {
        // Pairs with the Release fence in `Writer::write`: if any word that was loaded before it is a
        // newer one, the `tail` that was stored before that word is seen here.
        fence(Ordering::Acquire);
        if self.tail.load(Ordering::Relaxed) <= position { Ok(()) } else { Err(Overwritten) }
    }
}

/// The writer's own memory of a ring; nothing that it relies on is read from shared memory.
#[derive(Debug, Default)]
pub struct Writer {
    /// The sequence number that the next packet gets.
    seq: u64,
    /// Where the next packet goes.
    head: u64,
    /// Where each of the packets in the ring begins.
    starts: VecDeque<u64>,
}

impl Writer {
    /// The sequence number that the next packet gets.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    pub fn head(&self) -> u64 {
        self.head
    }

    pub fn tail(&self) -> u64 {
        self.starts.front().copied().unwrap_or(self.head)
    }

    /// Packets in the ring.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Where the packet begins that is the `nth` from the oldest on.
    pub fn start(&self, nth: usize) -> u64 {
        self.starts.get(nth).copied().unwrap_or(self.head)
    }

    /// Leaves out a sequence number: its packet is not to be had.
    pub fn skip(&mut self) {
        self.seq += 1;
    }

    /// Forgets the packets before `position`.
    pub fn forget_before<const META: usize>(&mut self, ring: Ring<'_, META>, position: u64) {
        let count = self.starts.partition_point(|start| *start < position);
        if count > 0 {
            self.starts.drain(..count);
            ring.tail.store(self.tail(), Ordering::Relaxed);
        }
    }

    /// Where the packets begin that are left when one of `len` bytes is written.
    pub fn tail_after<const META: usize>(
        &self,
        ring: Ring<'_, META>,
        len: usize,
    ) -> Result<u64, TooBig> {
        let end = self.head + room::<META>(len);
        if room::<META>(len) > ring.capacity() || len as u64 > MAX_PACKET {
            return Err(TooBig);
        }
        Ok(self.start(self.starts.partition_point(|start| end - start > ring.capacity())))
    }

    /// Appends a packet and gives its sequence number.
    pub fn write<const META: usize>(
        &mut self,
        ring: Ring<'_, META>,
        data: [&[u8]; 2],
        meta: &[u64; META],
    ) -> Result<u64, TooBig> {
        let len = data[0].len() + data[1].len();
        let tail = self.tail_after(ring, len)?;
        self.forget_before(ring, tail);
        // Pairs with the Acquire fence in `Ring::check`: whoever sees a word from below sees this tail.
        fence(Ordering::Release);

        let header = [self.seq, len as u64];
        for (i, word) in header.iter().chain(meta).enumerate() {
            ring.word(self.head + i as u64 * 8).store(*word, Ordering::Relaxed);
        }
        let (a, b) = ring.runs(self.head + header_bytes(META), len.div_ceil(8));
        write_words([a, b], data);

        self.starts.push_back(self.head);
        self.head += room::<META>(len);
        let seq = self.seq;
        self.seq += 1;
        // Pairs with the Acquire in `Ring::head`.
        ring.head.store(self.head, Ordering::Release);
        Ok(seq)
    }
}

/// Writes two pieces one behind the other into two runs of words; the rest of the last word is zero.
fn write_words(runs: [&[AtomicU64]; 2], data: [&[u8]; 2]) {
    let mut data = data.into_iter().filter(|d| !d.is_empty());
    let mut piece = data.next().unwrap_or_default();
    for mut run in runs {
        while let Some((first, _)) = run.split_first() {
            // Whole words of one piece: the bulk of it, in a loop without a branch a word.
            let whole = run.len().min(piece.len() / 8);
            let (words, bytes) = (run.split_at(whole), piece.split_at(whole * 8));
            for (to, from) in words.0.iter().zip(bytes.0.chunks_exact(8)) {
                let word = u64::from_ne_bytes(from.try_into().expect("a chunk has 8 bytes"));
                to.store(word, Ordering::Relaxed);
            }
            if whole > 0 {
                (run, piece) = (words.1, bytes.1);
                continue;
            }
            // The end of a piece, and with it the start of the next.
            let (mut word, mut filled) = ([0; 8], 0);
            while filled < 8 {
                let count = piece.len().min(8 - filled);
                word[filled..filled + count].copy_from_slice(&piece[..count]);
                (filled, piece) = (filled + count, &piece[count..]);
                if piece.is_empty() {
                    let Some(next) = data.next() else { break };
                    piece = next;
                }
            }
            first.store(u64::from_ne_bytes(word), Ordering::Relaxed);
            run = &run[1..];
        }
    }
}
