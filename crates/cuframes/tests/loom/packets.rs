// SPDX-License-Identifier: LGPL-2.1-or-later
//! The ring of packets, and the packets that lossless readers retain.

use super::*;
use cuframes::shm::retention::{advance, is_retained, needs_before, try_reclaim};
use cuframes::shm::ring::{self, Overwritten, Writer};
use loom::cell::UnsafeCell;
use loom::sync::atomic::Ordering;

/// Number of the caller's words. Each word that a reader may find old or new doubles the number of executions.
const META: usize = 1;
type Ring<'a> = ring::Ring<'a, META>;

struct Track {
    head: Word,
    tail: Word,
    reclaim: Word,
    words: Vec<Word>,
    /// Length of each packet that is written, in bytes.
    lens: &'static [usize],
}

impl Track {
    fn new(words: usize, lens: &'static [usize]) -> Arc<Self> {
        Arc::new(Self {
            head: Word::new(0),
            tail: Word::new(0),
            reclaim: Word::new(0),
            words: (0..words).map(|_| Word::new(0)).collect(),
            lens,
        })
    }

    fn ring(&self) -> Ring<'_> {
        let Self { head, tail, words, .. } = self;
        Ring { head, tail, words }
    }

    /// Position of packet `seq`. A header has three words here.
    fn position(&self, seq: u64) -> u64 {
        self.lens[..seq as usize].iter().map(|len| 24 + len.next_multiple_of(8) as u64).sum()
    }

    /// Bytes and words of packet `seq`. No two packets have a word in common.
    fn content(&self, seq: u64) -> (Vec<u8>, [u64; META]) {
        let len = self.lens[seq as usize] as u64;
        let data = (0..len).map(|i| (seq * 32 + i + 1) as u8).collect();
        (data, [seq + 1; META])
    }

    fn write(&self, writer: &mut Writer, seq: u64) {
        let (data, meta) = self.content(seq);
        assert_eq!(writer.write(self.ring(), [&data, &[]], &meta), Ok(seq));
        assert_eq!((writer.tail(), writer.seq()), (self.ring().tail(), seq + 1));
    }

    /// Reads packet `seq`, which is before the head.
    fn read(&self, seq: u64) -> Result<(), Overwritten> {
        let (ring, position) = (self.ring(), self.position(seq));
        let (data, meta) = self.content(seq);
        let copy = || {
            let entry = ring.read_entry(position)?;
            // The header alone has to be valid, because a reader may skip a packet because of it.
            assert_eq!((entry.seq, entry.len, entry.meta), (seq, data.len(), meta));
            let mut copy = vec![0; entry.len];
            ring.read_bytes(&entry, &mut copy)?;
            assert_eq!(copy, data);
            Ok(())
        };
        let read = copy();
        if read.is_err() {
            assert!(ring.tail() > position, "only overwritten packets are lost");
        }
        read
    }

    /// Sequence number of the packet at a position.
    fn seq_at(&self, position: u64) -> u64 {
        (0..=self.lens.len() as u64).find(|seq| self.position(*seq) == position).unwrap()
    }

    /// Reads from the oldest packet on, with `polls` attempts.
    fn follow(&self, polls: usize, outcomes: &Outcomes) {
        let ring = self.ring();
        let mut next = 0;
        for _ in 0..polls {
            let (tail, head) = (ring.tail(), ring.head());
            assert!(tail <= head, "the head is behind a tail that was loaded before");
            if tail > self.position(next) {
                outcomes.add("lost");
                next = self.seq_at(tail);
            }
            if self.position(next) >= head {
                outcomes.add("nothing new");
                continue;
            }
            match self.read(next) {
                Ok(()) => {
                    outcomes.add("read");
                    next += 1;
                }
                Err(Overwritten) => outcomes.add("overwritten"),
            }
        }
    }
}

/// Writes the first packet before the readers start, and the others meanwhile.
fn write_under_readers(track: Arc<Track>, readers: usize, polls: usize, outcomes: &Outcomes) {
    let mut writer = Writer::default();
    track.write(&mut writer, 0);
    for _ in 0..readers {
        let (track, outcomes) = (track.clone(), outcomes.clone());
        thread::spawn(move || track.follow(polls, &outcomes));
    }
    for seq in 1..track.lens.len() as u64 {
        track.write(&mut writer, seq);
    }
}

const ALL: [&str; 4] = ["read", "overwritten", "lost", "nothing new"];

#[test]
fn packet_is_intact_when_the_ring_wraps() {
    explore(2, ALL, |outcomes| {
        // The second packet wraps around the end of the ring, and so does the header of the third.
        write_under_readers(Track::new(7, &[7, 9, 8]), 1, 2, outcomes);
    });
}

#[test]
fn packet_is_intact_when_a_header_wraps() {
    explore(2, ALL, |outcomes| {
        write_under_readers(Track::new(5, &[3, 8, 12]), 1, 2, outcomes);
    });
}

#[test]
fn packet_is_intact_with_two_readers() {
    explore(2, ALL, |outcomes| {
        write_under_readers(Track::new(5, &[8, 12]), 2, 1, outcomes);
    });
}

#[test]
fn discarded_packet_is_not_read_torn() {
    explore(3, ["first read", "first overwritten", "second read"], |outcomes| {
        let track = Track::new(8, &[8, 8, 8]);
        let mut writer = Writer::default();
        track.write(&mut writer, 0);
        track.write(&mut writer, 1);

        let (reading, seen) = (track.clone(), outcomes.clone());
        thread::spawn(move || {
            let first = reading.read(0);
            seen.add(if first.is_ok() { "first read" } else { "first overwritten" });
            assert_eq!(reading.read(1), Ok(()), "a packet that was not discarded is there");
            seen.add("second read");
        });

        let second = track.position(1);
        writer.discard_before(track.ring(), second);
        // Replaces the first packet, and has nothing to discard itself.
        assert_eq!(writer.tail_after(track.ring(), 8), Ok(second));
        track.write(&mut writer, 2);
    });
}

/// Stands for the bytes of the ring: loom does not reorder a read of an atomic with the stores after it, but reports an
/// access to a cell that is not ordered with a write.
struct Bytes(UnsafeCell<()>);

// SAFETY: the cell has no content.
unsafe impl Sync for Bytes {}

/// A reader starts at any time. From its first packet on, no packet is overwritten before the reader has taken it.
#[test]
fn retained_packet_is_not_overwritten() {
    let all = ["from the first", "from a later one", "asked again", "wrote", "blocked"];
    explore(3, all, |outcomes| {
        // The ring has room for one packet.
        let track = Track::new(4, &[8, 8, 8]);
        let bytes = Arc::new(Bytes(UnsafeCell::new(())));
        // Without a reader, the writer waits for none.
        let next = Arc::new(Word::new(u64::MAX));
        let mut writer = Writer::default();
        track.write(&mut writer, 0);

        let (reading, place, seen) = (track.clone(), next.clone(), outcomes.clone());
        let read = bytes.clone();
        thread::spawn(move || {
            place.store(0, Ordering::Relaxed);
            while !is_retained(&reading.reclaim, &reading.tail) {
                seen.add("asked again");
                thread::yield_now();
            }
            let mut position = reading.ring().tail();
            seen.add(if position == 0 { "from the first" } else { "from a later one" });
            for _ in 0..2 {
                if position < reading.ring().head() {
                    let seq = reading.seq_at(position);
                    assert_eq!(reading.read(seq), Ok(()), "the packet is retained");
                    read.0.with(|_| ());
                    position = reading.position(seq + 1);
                    advance(&place, position);
                }
            }
        });

        for _ in 0..3 {
            let seq = writer.seq();
            if seq as usize == track.lens.len() {
                break;
            }
            let tail = writer.tail_after(track.ring(), 8).unwrap();
            let behind = || needs_before(&next, tail);
            if try_reclaim(&track.reclaim, writer.tail(), tail, behind) {
                bytes.0.with_mut(|_| ());
                track.write(&mut writer, seq);
                outcomes.add("wrote");
            } else {
                outcomes.add("blocked");
            }
        }
    });
}
