// SPDX-License-Identifier: LGPL-2.1-or-later
//! Models of the lock-free protocols: they run under every interleaving and every reordering that the memory model
//! allows.
//!
//! `claim`, `retention` and `ring` are the real modules: with `--cfg loom` the crate takes its atomics from loom. The
//! registry and the publisher's wait are modelled by hand here, because they consist of locks and system calls.
//!
//! Each model lists its possible outcomes and fails if one of them never occurs, because a model that does not reach
//! its situation proves nothing.
//!
//! `make loom` runs the models; `make loom LOOM_MAX_PREEMPTIONS=4` explores more interleavings and takes longer.

#![cfg(loom)]

use std::collections::BTreeSet;
use std::sync::Arc;

use loom::sync::atomic::AtomicU64 as Word;
use loom::thread;

/// Outcomes of all executions so far. Not part of the model, so loom does not track it.
#[derive(Clone, Default)]
struct Outcomes(Arc<std::sync::Mutex<BTreeSet<&'static str>>>);

impl Outcomes {
    fn add(&self, outcome: &'static str) {
        self.0.lock().unwrap().insert(outcome);
    }
}

/// Runs every execution of the model with up to `preemptions` preemptions, and checks that their outcomes are exactly
/// `expected`.
fn explore<const N: usize>(
    preemptions: usize,
    expected: [&'static str; N],
    model: impl Fn(&Outcomes) + Send + Sync + 'static,
) {
    let outcomes = Outcomes::default();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    let inner = outcomes.clone();
    builder.check(move || model(&inner));
    assert_eq!(*outcomes.0.lock().unwrap(), BTreeSet::from(expected));
}

mod frames {
    use loom::cell::UnsafeCell;
    use loom::sync::Mutex;
    use loom::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use cuframes::shm::claim::{EMPTY, claim, is_held, publish, release, retire};

    struct Slot {
        number: Word,
        /// Sequence number of the frame that the pixels belong to.
        pixels: UnsafeCell<u64>,
    }

    // SAFETY: loom panics if an access to the pixels is not ordered with every write.
    unsafe impl Sync for Slot {}

    impl Slot {
        fn new() -> Arc<Self> {
            Arc::new(Self { number: Word::new(EMPTY), pixels: UnsafeCell::new(0) })
        }

        fn write(&self, seq: u64) {
            // SAFETY: no other thread accesses the pixels now. This is what the model proves, and loom checks it.
            self.pixels.with_mut(|pixels| unsafe { *pixels = seq });
            publish(&self.number, seq);
        }

        /// Publishes frame `seq` if the slot is free.
        fn reuse(&self, seq: u64, held_by_any: impl FnMut() -> bool) -> bool {
            let free = retire(&self.number, held_by_any);
            if free {
                self.write(seq);
            }
            free
        }

        fn check_pixels(&self, seq: u64) {
            // SAFETY: no thread writes the pixels now; see `write`.
            assert_eq!(self.pixels.with(|pixels| unsafe { *pixels }), seq);
        }

        /// Claims and reads frame `seq` if it is in the slot.
        fn take(&self, held: &Word, seq: u64) -> bool {
            let claimed = claim(&self.number, held, seq);
            if claimed {
                self.check_pixels(seq);
                release(held);
            }
            claimed
        }
    }

    fn pages(count: usize) -> Vec<Arc<Word>> {
        (0..count).map(|_| Arc::new(Word::new(EMPTY))).collect()
    }

    /// The publisher reuses the slot as often as possible, and subscribers try every frame. They do not learn the
    /// sequence numbers from the publisher, so only the claim orders their reads.
    fn reuse_under_subscribers(subscribers: usize, frames: u64, outcomes: &Outcomes) {
        let (slot, pages) = (Slot::new(), pages(subscribers));
        for held in &pages {
            let (slot, held, outcomes) = (slot.clone(), held.clone(), outcomes.clone());
            thread::spawn(move || {
                for seq in 1..=frames {
                    let taken = slot.take(&held, seq);
                    outcomes.add(if taken { "taken" } else { "gone" });
                }
            });
        }
        let mut seq = 1;
        for _ in 0..frames {
            if slot.reuse(seq, || pages.iter().any(|held| is_held(held))) {
                seq += 1;
                outcomes.add("reused");
            } else {
                outcomes.add("in use");
            }
        }
    }

    #[test]
    fn slot_is_not_written_while_claimed() {
        explore(3, ["taken", "gone", "reused", "in use"], |o| reuse_under_subscribers(1, 3, o));
    }

    #[test]
    fn slot_is_not_written_while_claimed_by_one_of_two_subscribers() {
        explore(2, ["taken", "gone", "reused", "in use"], |o| reuse_under_subscribers(2, 2, o));
    }

    #[test]
    fn frame_in_use_is_put_back_intact() {
        explore(3, ["taken", "gone for a moment", "put back", "retired"], |outcomes| {
            let (slot, pages) = (Slot::new(), pages(2));
            // Started before the frame is written, because the start of a thread would order the pixels too.
            let subscribers = pages.clone().into_iter().map(|held| {
                let (slot, outcomes) = (slot.clone(), outcomes.clone());
                thread::spawn(move || {
                    let taken = slot.take(&held, 1);
                    outcomes.add(if taken { "taken" } else { "gone for a moment" });
                })
            });
            let subscribers: Vec<_> = subscribers.collect();
            slot.write(1);
            let retired = retire(&slot.number, || pages.iter().any(|held| is_held(held)));
            for subscriber in subscribers {
                subscriber.join().unwrap();
            }
            assert_eq!(slot.take(&pages[0], 1), !retired);
            outcomes.add(if retired { "retired" } else { "put back" });
        });
    }

    #[test]
    fn claim_is_released_by_another_thread() {
        explore(3, ["second taken", "second not there", "reused", "in use"], |outcomes| {
            let (slot, held) = (Slot::new(), Arc::new(Word::new(EMPTY)));
            let head = Arc::new(AtomicU64::new(1));
            slot.write(1);

            let subscriber = {
                let (slot, held, head) = (slot.clone(), held.clone(), head.clone());
                let outcomes = outcomes.clone();
                move || {
                    let downstream = claim(&slot.number, &held, 1).then(|| {
                        let (slot, held) = (slot.clone(), held.clone());
                        thread::spawn(move || {
                            slot.check_pixels(1);
                            release(&held);
                        })
                    });
                    // A second claim on the slot would overwrite the first, which downstream may still hold. A
                    // subscriber tries frame 2 in this slot only if it was published there.
                    let published = head.load(Ordering::Acquire) == 2;
                    let taken = published && slot.take(&held, 2);
                    if downstream.is_some() {
                        outcomes.add(if taken { "second taken" } else { "second not there" });
                    }
                }
            };
            thread::spawn(subscriber);

            for _ in 0..2 {
                if slot.reuse(2, || is_held(&held)) {
                    // As in `FramePublisher::publish`.
                    head.store(2, Ordering::Release);
                    outcomes.add("reused");
                    break;
                }
                outcomes.add("in use");
            }
        });
    }

    /// Model of `Registry`: the claims of the connected subscribers.
    struct Registry {
        subscribers: Mutex<Vec<Arc<Word>>>,
        version: AtomicU64,
    }

    impl Registry {
        fn version(&self) -> u64 {
            self.version.load(Ordering::Acquire)
        }

        fn add_subscriber(&self, page: Arc<Word>) {
            let mut subscribers = self.subscribers.lock().unwrap();
            subscribers.push(page);
            self.version.fetch_add(1, Ordering::Release);
        }

        fn remove_subscriber(&self, page: &Arc<Word>) {
            self.subscribers.lock().unwrap().retain(|s| !Arc::ptr_eq(s, page));
            self.version.fetch_add(1, Ordering::Release);
        }
    }

    /// Model of `SubscriberSnapshot`.
    #[derive(Default)]
    struct Snapshot {
        list: Vec<Arc<Word>>,
        version: u64,
    }

    impl Snapshot {
        fn hold(&mut self, registry: &Registry) -> bool {
            if registry.version() != self.version {
                let subscribers = registry.subscribers.lock().unwrap();
                self.version = registry.version();
                self.list = subscribers.clone();
            }
            self.list.iter().any(|held| is_held(held))
        }
    }

    #[test]
    fn subscriber_that_joins_or_leaves_is_noticed() {
        explore(3, ["taken", "gone", "reused", "in use"], |outcomes| {
            let slot = Slot::new();
            slot.write(1);
            let registry = Registry { subscribers: Mutex::default(), version: AtomicU64::new(0) };
            let registry = Arc::new(registry);

            // The server's thread and the subscriber's in one, because WELCOME orders the two.
            let subscriber = {
                let (slot, registry, outcomes) = (slot.clone(), registry.clone(), outcomes.clone());
                move || {
                    let held = Arc::new(Word::new(EMPTY));
                    registry.add_subscriber(held.clone());
                    for seq in 1..=2 {
                        let taken = slot.take(&held, seq);
                        outcomes.add(if taken { "taken" } else { "gone" });
                    }
                    registry.remove_subscriber(&held);
                }
            };
            thread::spawn(subscriber);

            let mut subscribers = Snapshot::default();
            let mut seq = 2;
            for _ in 0..2 {
                if slot.reuse(seq, || subscribers.hold(&registry)) {
                    seq += 1;
                    outcomes.add("reused");
                } else {
                    outcomes.add("in use");
                }
            }
        });
    }
}

mod packets {
    use super::*;
    use cuframes::shm::retention::{advance, is_retained, needs_before, try_reclaim};
    use cuframes::shm::ring::{self, Overwritten, Writer};
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

    /// A reader starts at any time. From its first packet on, no packet is overwritten before the reader has taken it.
    #[test]
    fn retained_packet_is_not_overwritten() {
        let all = ["from the first", "from a later one", "asked again", "wrote", "blocked"];
        explore(3, all, |outcomes| {
            // The ring has room for one packet.
            let track = Track::new(4, &[8, 8, 8]);
            // Without a reader, the writer waits for none.
            let next = Arc::new(Word::new(u64::MAX));
            let mut writer = Writer::default();
            track.write(&mut writer, 0);

            let (reading, place, seen) = (track.clone(), next.clone(), outcomes.clone());
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
                    track.write(&mut writer, seq);
                    outcomes.add("wrote");
                } else {
                    outcomes.add("blocked");
                }
            }
        });
    }
}

mod waiting {
    use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
    use loom::sync::{Condvar, Mutex};

    use super::*;

    struct Futex {
        word: AtomicU32,
        /// The kernel compares the word and puts the thread to sleep under a lock of its own.
        kernel: Mutex<()>,
        sleepers: Condvar,
    }

    impl Futex {
        /// Returns false if the word no longer has the `expected` value.
        fn wait(&self, expected: u32) -> bool {
            let guard = self.kernel.lock().unwrap();
            let sleeps = self.word.load(Ordering::Relaxed) == expected;
            if sleeps {
                drop(self.sleepers.wait(guard).unwrap());
            }
            sleeps
        }

        fn wake_all(&self) {
            let _guard = self.kernel.lock().unwrap();
            self.sleepers.notify_all();
        }
    }

    /// The words of the control segment and of a page that take part.
    struct SharedWords {
        publisher_waits: AtomicU32,
        futex: Futex,
        cursor: AtomicU64,
    }

    impl SharedWords {
        /// Model of `FramePublisher::loan` with `BackpressureWait`, without the timeout: a lost wake-up is a deadlock here.
        fn loan(&self, wanted: u64, outcomes: &Outcomes) {
            let mut awaited = None;
            while self.cursor.load(Ordering::Acquire) < wanted {
                match awaited.take() {
                    Some(expected) => {
                        outcomes.add(if self.futex.wait(expected) { "slept" } else { "no need" });
                    }
                    None => {
                        self.publisher_waits.store(1, Ordering::Relaxed);
                        fence(Ordering::SeqCst);
                        awaited = Some(self.futex.word.load(Ordering::Acquire));
                    }
                }
            }
            self.publisher_waits.store(0, Ordering::Relaxed);
        }

        /// Model of a subscriber that takes a frame and notifies the publisher.
        fn take(&self, seq: u64, outcomes: &Outcomes) {
            self.cursor.store(seq, Ordering::Release);
            fence(Ordering::SeqCst);
            if self.publisher_waits.load(Ordering::Relaxed) != 0 {
                self.futex.word.fetch_add(1, Ordering::Release);
                self.futex.wake_all();
                outcomes.add("woke");
            } else {
                outcomes.add("no wake-up needed");
            }
        }
    }

    #[test]
    fn publisher_misses_no_wake_up() {
        explore(3, ["slept", "no need", "woke", "no wake-up needed"], |outcomes| {
            let shared = Arc::new(SharedWords {
                publisher_waits: AtomicU32::new(0),
                futex: Futex {
                    word: AtomicU32::new(0),
                    kernel: Mutex::new(()),
                    sleepers: Condvar::new(),
                },
                cursor: AtomicU64::new(0),
            });
            let (subscriber, seen) = (shared.clone(), outcomes.clone());
            thread::spawn(move || (1..=2).for_each(|seq| subscriber.take(seq, &seen)));
            (1..=2).for_each(|seq| shared.loan(seq, outcomes));
        });
    }
}
