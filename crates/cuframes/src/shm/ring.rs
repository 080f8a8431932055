// SPDX-License-Identifier: LGPL-2.1-or-later
//! The ring of packets: one writer, any number of readers that only read.
//!
//! A packet is a header followed by its bytes, so the number of packets is limited by bytes alone. Positions
//! are 64-bit byte counts that only grow; a position modulo the capacity is the offset in the ring.
//!
//! # Why no packet is torn
//!
//! Before the writer overwrites anything, it moves `tail` past every packet that loses a word. A reader
//! copies first and checks `tail` afterwards: a copy counts only if the packet was still valid *after*
//! the copy. The pair is named SYNC(overwrite/check): a reader that has seen one word of a newer packet
//! also sees the `tail` that gave up the older packet, because a Release fence separates the two in the
//! writer and an Acquire fence separates them in the reader. This holds wherever the ring wraps, and no
//! reader can block the writer.
//!
//! All shared words are atomics, including the packets' bytes. A copy that races with the writer is
//! discarded, but until then it has to be defined behaviour.
//!
//! # Why the head is never behind the tail
//!
//! A reader loads `tail` first and `head` second. A tail moves past a packet only after `head` has moved past
//! that packet, and the pair SYNC(tail/head) carries this order to the reader: a `head` that is loaded
//! after `tail` is at or after that tail. A reader may take the opposite for a protocol error of the publisher.

use std::collections::VecDeque;

use super::layout::PACKET_META_WORDS;
use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// Maximum size of a packet in bytes: far above any picture, and small enough to be allocated.
pub const MAX_PACKET: u64 = 256 << 20;

/// Bytes of a packet's header: sequence number, length, and `meta` words of the caller.
const fn header_bytes(meta: usize) -> u64 {
    (2 + meta as u64) * 8
}

/// The shared words of a ring. `META` is the number of the caller's words in each header.
#[derive(Debug, Clone, Copy)]
pub struct Ring<'a, const META: usize = PACKET_META_WORDS> {
    /// Position at which the next packet begins.
    pub head: &'a AtomicU64,
    /// Position of the oldest packet that is complete.
    pub tail: &'a AtomicU64,
    /// The packets.
    pub words: &'a [AtomicU64],
}

/// A packet's header, as a reader has loaded it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<const META: usize = PACKET_META_WORDS> {
    /// Position at which the packet begins.
    pub position: u64,
    /// Sequence number.
    pub seq: u64,
    /// Number of bytes.
    pub len: usize,
    /// The caller's words.
    pub meta: [u64; META],
}

impl<const META: usize> Entry<META> {
    /// Position at which the next packet begins.
    pub fn end(&self) -> u64 {
        self.position.wrapping_add(room::<META>(self.len))
    }
}

/// Error: the packet was overwritten before it was read completely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overwritten;

/// Error: the packet is larger than the ring or than [`MAX_PACKET`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooBig;

/// Bytes that a packet of `len` bytes occupies in the ring.
fn room<const META: usize>(len: usize) -> u64 {
    header_bytes(META) + (len as u64).next_multiple_of(8)
}

impl<'a, const META: usize> Ring<'a, META> {
    fn word(&self, position: u64) -> &'a AtomicU64 {
        &self.words[(position / 8 % self.words.len() as u64) as usize]
    }

    /// Returns `words` words from `position` on, in two runs: up to the end of the ring, and from its start.
    fn runs(&self, position: u64, words: usize) -> (&'a [AtomicU64], &'a [AtomicU64]) {
        let at = (position / 8 % self.words.len() as u64) as usize;
        let first = words.min(self.words.len() - at);
        (&self.words[at..at + first], &self.words[..words - first])
    }

    /// Maximum number of packets in the ring. It limits the loops of a reader whose writer is malicious.
    pub fn most_packets(&self) -> usize {
        (self.capacity() / header_bytes(META)).min(1 << 24) as usize
    }

    /// Size of the ring in bytes.
    pub fn capacity(&self) -> u64 {
        self.words.len() as u64 * 8
    }

    /// Position at which the next packet begins. All packets before it are written.
    pub fn head(&self) -> u64 {
        // SYNC(head/append): pairs with the Release in `Writer::write`.
        self.head.load(Ordering::Acquire)
    }

    /// Position of the oldest packet that is complete.
    pub fn tail(&self) -> u64 {
        // SYNC(tail/head): pairs with the Release in `Writer::discard_before`.
        self.tail.load(Ordering::Acquire)
    }

    /// Reads the header of the packet at `position`, which has to be before [`Ring::head`].
    ///
    /// # Errors
    /// The packet was overwritten, or its length is impossible.
    pub fn read_entry(&self, position: u64) -> Result<Entry<META>, Overwritten> {
        let word =
            |i: usize| self.word(position.wrapping_add(i as u64 * 8)).load(Ordering::Relaxed);
        let (seq, len) = (word(0), word(1));
        let meta = std::array::from_fn(|i| word(i + 2));
        self.check(position)?;
        // A larger length can only come from a malicious writer.
        if len > self.capacity().min(MAX_PACKET) {
            return Err(Overwritten);
        }
        Ok(Entry { position, seq, len: len as usize, meta })
    }

    /// Copies a packet's bytes to `out`.
    ///
    /// # Errors
    /// The packet was overwritten; the content of `out` is then undefined.
    ///
    /// # Panics
    /// If `out` does not have the entry's length.
    pub fn read_bytes(&self, entry: &Entry<META>, out: &mut [u8]) -> Result<(), Overwritten> {
        assert_eq!(entry.len, out.len());
        let (a, b) =
            self.runs(entry.position.wrapping_add(header_bytes(META)), entry.len.div_ceil(8));
        let (first, second) = out.split_at_mut((a.len() * 8).min(entry.len));
        // Run by run, because a chained iterator costs a branch per word.
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

    /// Checks that the packet at `position` was still complete when it was read.
    fn check(&self, position: u64) -> Result<(), Overwritten> {
        // SYNC(overwrite/check): pairs with the Release fence in `Writer::write`. If any word that was loaded
        // before this fence belongs to a newer packet, the `tail` that was stored before that word is
        // visible here.
        fence(Ordering::Acquire);
        if self.tail.load(Ordering::Relaxed) <= position { Ok(()) } else { Err(Overwritten) }
    }
}

/// The writer's private state of a ring. The writer reads nothing from shared memory.
#[derive(Debug, Default)]
pub struct Writer {
    /// Sequence number of the next packet.
    seq: u64,
    /// Position of the next packet.
    head: u64,
    /// Position of each packet in the ring, oldest first.
    starts: VecDeque<u64>,
}

impl Writer {
    /// Sequence number of the next packet.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Position of the next packet.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Position of the oldest packet in the ring.
    pub fn tail(&self) -> u64 {
        self.starts.front().copied().unwrap_or(self.head)
    }

    /// Number of packets in the ring.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Returns whether the ring has no packets.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Position of the packet that is the `nth` from the oldest on.
    pub fn start(&self, nth: usize) -> u64 {
        self.starts.get(nth).copied().unwrap_or(self.head)
    }

    /// Skips a sequence number, whose packet is not published.
    pub fn skip(&mut self) {
        self.seq += 1;
    }

    /// Discards the packets before `position`.
    pub fn discard_before<const META: usize>(&mut self, ring: Ring<'_, META>, position: u64) {
        let count = self.starts.partition_point(|start| *start < position);
        if count > 0 {
            self.starts.drain(..count);
            // SYNC(tail/head): pairs with the Acquire in `Ring::tail`. The `head` past the discarded packets
            // was stored before.
            ring.tail.store(self.tail(), Ordering::Release);
        }
    }

    /// Returns the position of the oldest packet that remains when a packet of `len` bytes is appended.
    ///
    /// # Errors
    /// A packet of that length never fits.
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

    /// Appends a packet, given in two pieces, and returns its sequence number. Discards the oldest packets as
    /// needed.
    ///
    /// # Errors
    /// A packet of that length never fits.
    pub fn write<const META: usize>(
        &mut self,
        ring: Ring<'_, META>,
        data: [&[u8]; 2],
        meta: &[u64; META],
    ) -> Result<u64, TooBig> {
        let len = data[0].len() + data[1].len();
        let tail = self.tail_after(ring, len)?;
        self.discard_before(ring, tail);
        // SYNC(overwrite/check): pairs with the Acquire fence in `Ring::check`. A reader that sees a word that
        // is stored below also sees this tail.
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
        // SYNC(head/append): pairs with the Acquire in `Ring::head`.
        ring.head.store(self.head, Ordering::Release);
        Ok(seq)
    }
}

/// Writes two pieces of data into two runs of words, one after the other. The rest of the last word is zero.
fn write_words(runs: [&[AtomicU64]; 2], data: [&[u8]; 2]) {
    let mut data = data.into_iter().filter(|d| !d.is_empty());
    let mut piece = data.next().unwrap_or_default();
    for mut run in runs {
        while let Some((first, _)) = run.split_first() {
            // Whole words of one piece, in a loop without a branch per word: the bulk of the data.
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
            // A word that contains the end of one piece and the start of the next.
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
