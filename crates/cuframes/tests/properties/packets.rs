// SPDX-License-Identifier: LGPL-2.1-or-later
//! The ring of packets, compared with a plain model.

use std::collections::VecDeque;

use cuframes::shm::layout::PACKET_META_WORDS as META_WORDS;
use cuframes::shm::mapping::{Mapping, Sharing};
use cuframes::shm::ring::{Entry, MAX_PACKET, Overwritten, Ring, TooBig, Writer};
use cuframes::shm::segments::TrackSegment;

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::{config, words};

/// Bytes of a packet's header.
const HEADER: usize = (2 + META_WORDS) * 8;

struct Memory {
    head: AtomicU64,
    tail: AtomicU64,
    words: Vec<AtomicU64>,
}

impl Memory {
    fn new(count: usize) -> Self {
        Self { head: AtomicU64::new(0), tail: AtomicU64::new(0), words: words(count) }
    }

    fn ring(&self) -> Ring<'_> {
        let Self { head, tail, words } = self;
        Ring { head, tail, words }
    }
}

/// Returns the content of a packet. No part of it occurs in another place or packet.
fn content(seed: u64, len: usize) -> (Vec<u8>, [u64; META_WORDS]) {
    let word = |i: u64| (seed << 32 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut data: Vec<u8> =
        (0..len.div_ceil(8) as u64).flat_map(|i| word(i).to_le_bytes()).collect();
    data.truncate(len);
    (data, std::array::from_fn(|i| word(u64::MAX - i as u64)))
}

fn room(len: usize) -> usize {
    HEADER + len.next_multiple_of(8)
}

/// A plain model of the ring: its whole packets, oldest first, as number, position and length.
struct Model {
    max_bytes: usize,
    next: u64,
    position: u64,
    packets: VecDeque<(u64, u64, usize)>,
}

impl Model {
    fn fits(&self, len: usize) -> bool {
        let bytes: usize = self.packets.iter().map(|(_, _, len)| room(*len)).sum();
        bytes + room(len) <= self.max_bytes
    }

    fn write(&mut self, len: usize) -> Result<u64, TooBig> {
        if room(len) > self.max_bytes {
            return Err(TooBig);
        }
        while !self.fits(len) {
            self.packets.pop_front();
        }
        let seq = self.next;
        self.packets.push_back((seq, self.position, len));
        self.position += room(len) as u64;
        self.next += 1;
        Ok(seq)
    }

    /// Returns the position of the `nth` packet, counted from the oldest.
    fn start(&self, nth: usize) -> u64 {
        self.packets.get(nth).map_or(self.position, |(_, position, _)| *position)
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Writes a packet of so many bytes, in two pieces.
    Write(usize, prop::sample::Index),
    /// Drops so many packets, or all if there are fewer.
    Forget(usize),
    /// Skips a number.
    Skip,
}

fn read(ring: Ring<'_>, position: u64) -> Result<(Entry, Vec<u8>), Overwritten> {
    let entry = ring.read_entry(position)?;
    // The old content must not matter.
    let mut data = vec![0xa5; entry.len];
    ring.read_bytes(&entry, &mut data)?;
    Ok((entry, data))
}

/// Applies the steps to a ring and to the model, and compares the two after each step.
fn compare(words: usize, steps: &[Step]) -> Result<(), TestCaseError> {
    let memory = Memory::new(words);
    let ring = memory.ring();
    let mut writer = Writer::default();
    let max_bytes = words * 8;
    let mut model = Model { max_bytes, next: 0, position: 0, packets: VecDeque::new() };
    // Entries that a reader read when they were whole.
    let mut entries: Vec<Entry> = Vec::new();

    for step in steps {
        match step {
            Step::Write(len, cut) => {
                let (data, meta) = content(model.next, *len);
                let (first, second) = data.split_at(cut.index(len + 1));
                let left = writer.tail_after(ring, *len);
                let position = model.position;
                let written = model.write(*len);
                prop_assert_eq!(left, written.map(|_| model.start(0).min(position)));
                prop_assert_eq!(writer.write(ring, [first, second], &meta), written);
                if written.is_ok() {
                    let entry = ring.read_entry(position).expect("the newest packet is whole");
                    prop_assert_eq!((entry.position, entry.end()), (position, model.position));
                    entries.push(entry);
                }
            }
            Step::Forget(count) => {
                let position = model.start(*count);
                model.packets.drain(..(*count).min(model.packets.len()));
                writer.discard_before(ring, position);
            }
            Step::Skip => {
                model.next += 1;
                writer.skip();
            }
        }
        prop_assert_eq!((writer.len(), writer.seq()), (model.packets.len(), model.next));
        prop_assert_eq!(writer.is_empty(), model.packets.is_empty());
        prop_assert_eq!((writer.tail(), writer.head()), (model.start(0), model.position));
        prop_assert_eq!((ring.tail(), ring.head()), (model.start(0), model.position));

        for &(seq, position, len) in &model.packets {
            let (data, meta) = content(seq, len);
            let (entry, found) = read(ring, position).expect("a packet of the model is whole");
            prop_assert_eq!((entry.seq, entry.len, entry.meta), (seq, len, meta));
            prop_assert!(found == data, "packet {} of {} bytes is changed", seq, len);
        }
        for entry in entries.iter().filter(|e| e.position < model.start(0)) {
            prop_assert_eq!(ring.read_entry(entry.position), Err(Overwritten));
            let mut out = vec![0; entry.len];
            prop_assert_eq!(ring.read_bytes(entry, &mut out), Err(Overwritten));
        }
    }
    Ok(())
}

/// Generates steps with packets of up to `max` bytes.
fn steps(max: usize, count: usize) -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![1 => 0..=max, 4 => 0..=max / 4, 4 => 0..=max / 16];
    let write = (len, any::<prop::sample::Index>()).prop_map(|(len, cut)| Step::Write(len, cut));
    let step = prop_oneof![
        12 => write,
        2 => (0..5usize).prop_map(Step::Forget),
        1 => Just(Step::Skip),
    ];
    vec(step, 1..=count)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn ring_matches_model((words, steps) in (1..200usize)
        // Some packets are bigger than the ring.
        .prop_flat_map(|words| (Just(words), steps(words * 8 + 9, 40))))
    {
        compare(words, &steps)?;
    }

    /// A reader survives any words that a peer writes.
    #[test]
    fn any_words_are_packet_or_none(
        all in vec(prop_oneof![any::<u64>(), 0..300u64], 1..60),
        position in prop_oneof![any::<u64>(), 0..1000u64],
    ) {
        let memory = Memory::new(all.len());
        for (word, value) in memory.words.iter().zip(&all) {
            word.store(*value, Ordering::Relaxed);
        }
        if let Ok((entry, data)) = read(memory.ring(), position) {
            prop_assert!(data.len() == entry.len && entry.len <= all.len() * 8);
        }
    }
}

/// A ring may be larger than the largest packet. Its memory is not touched here.
#[test]
fn packets_are_limited() {
    let memory = |bytes: u64| {
        let size = TrackSegment::size(bytes).unwrap();
        let (map, _) = Mapping::create("test", size, Sharing::ReadWrite).unwrap();
        TrackSegment::new(map, bytes)
    };
    let track = memory(MAX_PACKET * 2);
    let writer = Writer::default();
    let most = MAX_PACKET as usize;
    assert_eq!(writer.tail_after(track.ring(), most), Ok(0));
    assert_eq!(writer.tail_after(track.ring(), most + 1), Err(TooBig));
    // The length in a header has the same limit.
    for (len, valid) in [(MAX_PACKET, true), (MAX_PACKET + 1, false), (u64::MAX, false)] {
        track.ring().words[1].store(len, Ordering::Relaxed);
        assert_eq!(track.ring().read_entry(0).is_ok(), valid, "{len}");
    }
    assert_eq!(memory(8).ring().most_packets(), 0);
    assert_eq!(memory(1 << 20).ring().most_packets(), (1 << 20) / HEADER);
    assert_eq!(memory(1 << 32).ring().most_packets(), 1 << 24);
}

/// Each case moves some 100 MB, so their number is fixed and does not follow PROPTEST_CASES.
#[test]
fn ring_keeps_big_packets() {
    let mut runner = TestRunner::new(ProptestConfig { cases: 4, ..config() });
    let ring = ((1 << 18)..(1 << 19) + 100usize, steps(4 << 20, 12));
    runner.run(&ring, |(words, steps)| compare(words, &steps)).unwrap();
}
