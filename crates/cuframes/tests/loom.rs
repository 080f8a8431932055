//! The lock-free protocols under every interleaving and every reordering that the memory model allows.
//!
//! The modules are the real ones: with `--cfg loom` the crate takes its atomics from loom.
//! Each model lists what may come of it, and fails where one of these never does: a model that does
//! not get into the situation that it is about proves nothing.
//!
//! `make loom` runs them; `make loom LOOM_MAX_PREEMPTIONS=4` looks deeper and takes its time.

#![cfg(loom)]

use std::collections::BTreeSet;
use std::sync::Arc;

use loom::sync::atomic::AtomicU64 as Word;
use loom::thread;

/// What came of the executions so far; loom knows nothing of it.
#[derive(Clone, Default)]
struct Outcomes(Arc<std::sync::Mutex<BTreeSet<&'static str>>>);

impl Outcomes {
    fn add(&self, outcome: &'static str) {
        self.0.lock().unwrap().insert(outcome);
    }
}

/// Runs the model in every execution with so many preemptions, and checks that all of it came to
/// exactly `expected`.
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
        /// The number of the frame that they belong to.
        pixels: UnsafeCell<u64>,
    }

    // SAFETY: loom panics where an access to the pixels does not happen before or after each write.
    unsafe impl Sync for Slot {}

    impl Slot {
        fn new() -> Arc<Self> {
            Arc::new(Self { number: Word::new(EMPTY), pixels: UnsafeCell::new(0) })
        }

        fn write(&self, seq: u64) {
            // SAFETY: loom checks what is to be proved: nobody else accesses the pixels now.
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
            // SAFETY: as in `write`: nobody writes the pixels now.
            assert_eq!(self.pixels.with(|pixels| unsafe { *pixels }), seq);
        }

        /// Takes frame `seq` if it is there, and reads it.
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

    /// The publisher reuses the slot as often as it can; subscribers try every frame. They have the
    /// numbers from nowhere, so nothing but the claim orders what they read.
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
    fn a_slot_is_not_written_while_a_subscriber_reads_it() {
        explore(3, ["taken", "gone", "reused", "in use"], |o| reuse_under_subscribers(1, 3, o));
    }

    #[test]
    fn a_slot_is_not_written_while_one_of_two_subscribers_reads_it() {
        explore(2, ["taken", "gone", "reused", "in use"], |o| reuse_under_subscribers(2, 2, o));
    }

    #[test]
    fn a_frame_that_was_in_use_is_put_back_whole() {
        explore(3, ["taken", "gone for a moment", "put back", "retired"], |outcomes| {
            let (slot, pages) = (Slot::new(), pages(2));
            // They don't get the frame through their start: that would order the pixels, too.
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
    fn a_claim_ends_in_another_thread() {
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
                    // A claim on the slot while downstream still has the first would end the first. A
                    // subscriber looks for frame 2 in this slot only if it was published there.
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
                    // As in `Frames::publish`.
                    head.store(2, Ordering::Release);
                    outcomes.add("reused");
                    break;
                }
                outcomes.add("in use");
            }
        });
    }

    /// As `Board`: who the subscribers are.
    struct Board {
        peers: Mutex<Vec<Arc<Word>>>,
        version: AtomicU64,
    }

    impl Board {
        fn version(&self) -> u64 {
            self.version.load(Ordering::Acquire)
        }

        fn peers(&self) -> (u64, Vec<Arc<Word>>) {
            let peers = self.peers.lock().unwrap();
            (self.version(), peers.clone())
        }

        fn add(&self, page: Arc<Word>) {
            let mut peers = self.peers.lock().unwrap();
            peers.push(page);
            self.version.fetch_add(1, Ordering::Release);
        }

        fn remove(&self, page: &Arc<Word>) {
            self.peers.lock().unwrap().retain(|p| !Arc::ptr_eq(p, page));
            self.version.fetch_add(1, Ordering::Release);
        }
    }

    /// As `pool::held_by_any`.
    fn held_by_any(board: &Board, peers: &mut Vec<Arc<Word>>, version: &mut u64) -> bool {
        if board.version() != *version {
            (*version, *peers) = board.peers();
        }
        peers.iter().any(|held| is_held(held))
    }

    #[test]
    fn a_subscriber_that_comes_or_goes_is_taken_note_of() {
        explore(3, ["taken", "gone", "reused", "in use"], |outcomes| {
            let slot = Slot::new();
            slot.write(1);
            let board = Board { peers: Mutex::default(), version: AtomicU64::new(0) };
            let board = Arc::new(board);

            // The server's thread and the subscriber's in one: the welcome orders the two.
            let subscriber = {
                let (slot, board, outcomes) = (slot.clone(), board.clone(), outcomes.clone());
                move || {
                    let held = Arc::new(Word::new(EMPTY));
                    board.add(held.clone());
                    for seq in 1..=2 {
                        let taken = slot.take(&held, seq);
                        outcomes.add(if taken { "taken" } else { "gone" });
                    }
                    board.remove(&held);
                }
            };
            thread::spawn(subscriber);

            let (mut version, mut peers) = (0, Vec::new());
            let mut seq = 2;
            for _ in 0..2 {
                if slot.reuse(seq, || held_by_any(&board, &mut peers, &mut version)) {
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
    use cuframes::shm::retention::{is_held, needs_before, pass, try_reclaim};
    use cuframes::shm::ring::{self, Overwritten, Writer};
    use loom::sync::atomic::Ordering;

    /// Each word that a reader may find old or new doubles the number of executions to explore.
    const META: usize = 1;
    type Ring<'a> = ring::Ring<'a, META>;

    struct Track {
        head: Word,
        tail: Word,
        reclaim: Word,
        words: Vec<Word>,
        /// Bytes of each packet that is written to it.
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

        /// Where packet `seq` begins: its header has three words here.
        fn position(&self, seq: u64) -> u64 {
            self.lens[..seq as usize].iter().map(|len| 24 + len.next_multiple_of(8) as u64).sum()
        }

        /// No two packets have a word of these in common.
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
                // The header counts already; a reader may pass over a packet for what it says.
                assert_eq!((entry.seq, entry.len, entry.meta), (seq, data.len(), meta));
                let mut copy = vec![0; entry.len];
                ring.read_bytes(&entry, &mut copy)?;
                assert_eq!(copy, data);
                Ok(())
            };
            let read = copy();
            if read.is_err() {
                assert!(ring.tail() > position, "nothing was lost but what was overwritten");
            }
            read
        }

        /// The packet that begins at a position.
        fn seq_at(&self, position: u64) -> u64 {
            (0..=self.lens.len() as u64).find(|seq| self.position(*seq) == position).unwrap()
        }

        /// Reads on from the oldest packet, and looks `looks` times whether there is one.
        fn follow(&self, looks: usize, outcomes: &Outcomes) {
            let ring = self.ring();
            let mut next = 0;
            for _ in 0..looks {
                let (tail, head) = (ring.tail(), ring.head());
                if tail > self.position(next) {
                    outcomes.add("lost");
                    next = self.seq_at(tail);
                }
                if self.position(next) >= head {
                    outcomes.add("no news");
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

    /// The first packet is there before the readers come, the others are written meanwhile.
    fn write_under_readers(track: Arc<Track>, readers: usize, looks: usize, outcomes: &Outcomes) {
        let mut writer = Writer::default();
        track.write(&mut writer, 0);
        for _ in 0..readers {
            let (track, outcomes) = (track.clone(), outcomes.clone());
            thread::spawn(move || track.follow(looks, &outcomes));
        }
        for seq in 1..track.lens.len() as u64 {
            track.write(&mut writer, seq);
        }
    }

    const ALL: [&str; 4] = ["read", "overwritten", "lost", "no news"];

    #[test]
    fn no_packet_is_torn_when_the_ring_wraps() {
        explore(2, ALL, |outcomes| {
            // The second lies across the end of the ring, and so does the header of the third.
            write_under_readers(Track::new(7, &[7, 9, 8]), 1, 2, outcomes);
        });
    }

    #[test]
    fn no_packet_is_torn_when_a_header_wraps() {
        explore(2, ALL, |outcomes| {
            write_under_readers(Track::new(5, &[3, 8, 12]), 1, 2, outcomes);
        });
    }

    #[test]
    fn no_packet_is_torn_with_two_readers() {
        explore(2, ALL, |outcomes| {
            write_under_readers(Track::new(5, &[8, 12]), 2, 1, outcomes);
        });
    }

    #[test]
    fn a_packet_that_was_forgotten_is_not_read_torn() {
        explore(3, ["first read", "first overwritten", "second read"], |outcomes| {
            let track = Track::new(8, &[8, 8, 8]);
            let mut writer = Writer::default();
            track.write(&mut writer, 0);
            track.write(&mut writer, 1);

            let (reading, seen) = (track.clone(), outcomes.clone());
            thread::spawn(move || {
                let first = reading.read(0);
                seen.add(if first.is_ok() { "first read" } else { "first overwritten" });
                assert_eq!(reading.read(1), Ok(()), "what was not forgotten is there");
                seen.add("second read");
            });

            let second = track.position(1);
            writer.forget_before(track.ring(), second);
            // Takes the place of the first, and has nothing to forget itself.
            assert_eq!(writer.tail_after(track.ring(), 8), Ok(second));
            track.write(&mut writer, 2);
        });
    }

    /// A reader comes at any time. From the packet that it begins with on, none is overwritten that it has
    /// still to take.
    #[test]
    fn a_held_packet_is_not_overwritten() {
        let all = ["from the first", "from a later one", "asked again", "wrote", "held up"];
        explore(3, all, |outcomes| {
            // Each has room for itself only.
            let track = Track::new(4, &[8, 8, 8]);
            // Before there is a reader, nobody is waited for.
            let next = Arc::new(Word::new(u64::MAX));
            let mut writer = Writer::default();
            track.write(&mut writer, 0);

            let (reading, place, seen) = (track.clone(), next.clone(), outcomes.clone());
            thread::spawn(move || {
                place.store(0, Ordering::Relaxed);
                while !is_held(&reading.reclaim, &reading.tail) {
                    seen.add("asked again");
                    thread::yield_now();
                }
                let mut position = reading.ring().tail();
                seen.add(if position == 0 { "from the first" } else { "from a later one" });
                for _ in 0..2 {
                    if position < reading.ring().head() {
                        let seq = reading.seq_at(position);
                        assert_eq!(reading.read(seq), Ok(()), "it was held");
                        position = reading.position(seq + 1);
                        pass(&place, position);
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
                    outcomes.add("held up");
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
        /// The kernel compares the word and goes to sleep under a lock of its own.
        kernel: Mutex<()>,
        sleepers: Condvar,
    }

    impl Futex {
        /// False if the word is not `seen` any more.
        fn wait(&self, seen: u32) -> bool {
            let guard = self.kernel.lock().unwrap();
            let sleeps = self.word.load(Ordering::Relaxed) == seen;
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

    /// The words of a control segment and a page that the two sides share.
    struct Shared {
        publisher_waits: AtomicU32,
        futex: Futex,
        cursor: AtomicU64,
    }

    impl Shared {
        /// The loop in `Frames::loan`, without its timeout: a wake-up that is lost is a deadlock here.
        fn loan(&self, wanted: u64, outcomes: &Outcomes) {
            let mut awaited = None;
            while self.cursor.load(Ordering::Acquire) < wanted {
                match awaited.take() {
                    Some(seen) => {
                        outcomes.add(if self.futex.wait(seen) { "slept" } else { "no need" });
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

        /// `FrameReader::take` and `Connection::notify_publisher`.
        fn take(&self, seq: u64, outcomes: &Outcomes) {
            self.cursor.store(seq, Ordering::Release);
            fence(Ordering::SeqCst);
            if self.publisher_waits.load(Ordering::Relaxed) != 0 {
                self.futex.word.fetch_add(1, Ordering::Release);
                self.futex.wake_all();
                outcomes.add("woke");
            } else {
                outcomes.add("nobody to wake");
            }
        }
    }

    #[test]
    fn no_wake_up_of_the_publisher_is_lost() {
        explore(3, ["slept", "no need", "woke", "nobody to wake"], |outcomes| {
            let shared = Arc::new(Shared {
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
