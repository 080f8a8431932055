// SPDX-License-Identifier: LGPL-2.1-or-later
//! The end of a stream, which continues afterwards.

use cuframes::shm::ring::{Ring, Writer};
use cuframes::shm::stream_end::{end, publish, publish_with, read, read_with};
use loom::sync::atomic::AtomicU32;

use super::*;

/// Reads the state of the stream a few times, and takes everything up to `head` each time. The stream ends at
/// `last` only.
fn follow(outcomes: &Outcomes, last: u64, mut read: impl FnMut() -> (bool, u64)) {
    let mut taken = 0;
    for _ in 0..3 {
        let (ended, head) = read();
        assert!(head >= taken);
        if head > taken {
            taken = head;
            outcomes.add("taken");
        } else if ended {
            assert_eq!(taken, last, "the stream ended elsewhere");
            outcomes.add("ended");
        } else {
            outcomes.add("nothing new");
        }
    }
}

#[test]
fn end_of_frames_is_reported_behind_the_last() {
    explore(3, ["taken", "ended", "nothing new"], |outcomes| {
        let words = Arc::new((AtomicU32::new(0), Word::new(0)));
        let (reader, seen) = (words.clone(), outcomes.clone());
        thread::spawn(move || follow(&seen, 2, || read(&reader.0, &reader.1)));
        let (mark, head) = &*words;
        publish(mark, head, 1);
        publish(mark, head, 2);
        end(mark);
        publish(mark, head, 3);
    });
}

#[test]
fn end_of_packets_is_reported_behind_the_last() {
    struct Track {
        mark: AtomicU32,
        head: Word,
        tail: Word,
        words: Vec<Word>,
    }
    impl Track {
        fn ring(&self) -> Ring<'_, 0> {
            Ring { head: &self.head, tail: &self.tail, words: &self.words }
        }
    }
    /// Bytes that a packet without data occupies.
    const PACKET: u64 = 16;
    explore(3, ["taken", "ended", "nothing new"], |outcomes| {
        let track = Arc::new(Track {
            mark: AtomicU32::new(0),
            head: Word::new(0),
            tail: Word::new(0),
            words: (0..6).map(|_| Word::new(0)).collect(),
        });
        let (reader, seen) = (track.clone(), outcomes.clone());
        thread::spawn(move || {
            follow(&seen, 2 * PACKET, || read_with(&reader.mark, || reader.ring().head()));
        });
        let mut writer = Writer::default();
        let mut push = || {
            publish_with(&track.mark, || writer.write(track.ring(), [&[], &[]], &[]).unwrap());
        };
        push();
        push();
        end(&track.mark);
        push();
    });
}
