// SPDX-License-Identifier: LGPL-2.1-or-later
//! Any publisher and any subscriber. `make fuzz` tries more of them.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use cuframes::Mode;
use cuframes::protocol::message::Message;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use testing::TestDir;
use testing::raw::{FakePublisher, FakeStream, RawMessage, Segment, at, hello, pair};

use crate::publisher::visit;
use crate::subscriber::Stage;

/// A connection costs as much as twenty messages.
fn config() -> ProptestConfig {
    let cases = ProptestConfig::default().cases;
    ProptestConfig {
        cases: cases.div_ceil(20).max(256),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/corpus/hostile.txt",
        ))),
        ..Default::default()
    }
}

/// Numbers at which code is likely to break.
fn number_of_note() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => any::<u64>(),
        4 => 0..10u64,
        2 => (0..64u32, -2..3i64).prop_map(|(shift, more)| (1u64 << shift).wrapping_add_signed(more)),
        1 => any::<(u32, u32)>().prop_map(|(a, b)| pair(a % 10, b % 10)),
        1 => Just(u64::MAX),
    ]
}

#[derive(Debug, Clone)]
enum Mutation {
    /// A word of one of the segments.
    Word(usize, prop::sample::Index, u64),
    /// A word of the headers, which decide most.
    Head(usize, usize, u64),
    Byte(usize, prop::sample::Index, u8),
    Swap(usize, usize),
    Repeat(usize),
    Leave(usize),
    Fd(usize, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (0..4usize, index(), number_of_note()).prop_map(|(s, i, w)| Mutation::Word(s, i, w)),
        6 => (0..4usize, 0..70usize, number_of_note()).prop_map(|(s, i, w)| Mutation::Head(s, i, w)),
        4 => (0..5usize, index(), any::<u8>()).prop_map(|(n, i, b)| Mutation::Byte(n, i, b)),
        1 => (0..5usize, 0..5usize).prop_map(|(a, b)| Mutation::Swap(a, b)),
        1 => (0..5usize).prop_map(Mutation::Repeat),
        1 => (0..5usize).prop_map(Mutation::Leave),
        1 => (0..5usize, 0..4usize).prop_map(|(n, fd)| Mutation::Fd(n, fd)),
    ]
}

fn apply(stream: &mut FakeStream, mutation: &Mutation) {
    let count = stream.script.len();
    match mutation {
        Mutation::Word(segment, at, word) => {
            let segment = stream.segments()[*segment];
            segment.set(at.index(segment.words()) * 8, &[*word]);
        }
        Mutation::Head(segment, at, word) => {
            let segment = stream.segments()[*segment];
            segment.set(at.min(&(segment.words() - 1)) * 8, &[*word]);
        }
        Mutation::Byte(n, at, byte) if *n < count => {
            let bytes = &mut stream.script[*n].bytes;
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        Mutation::Swap(a, b) if *a < count && *b < count => stream.script.swap(*a, *b),
        Mutation::Repeat(n) if *n < count => {
            let said = &stream.script[*n];
            let again = RawMessage { bytes: said.bytes.clone(), fds: said.fds.clone() };
            stream.script.push(again);
        }
        Mutation::Leave(n) if *n < count => drop(stream.script.remove(*n)),
        Mutation::Fd(n, fd) if *n < count => {
            let fd = stream.segments()[*fd].fd.clone();
            stream.script[*n].fds.push(fd);
        }
        _ => {}
    }
}

/// A subscriber of any publisher terminates and does not crash.
#[test]
fn subscriber_survives_any_publisher() {
    let test = TestDir::no_timeout("hostile-any");
    let publisher = FakePublisher::new(&test.dir);
    let mut runner = proptest::test_runner::TestRunner::new(config());
    let mutations = proptest::collection::vec(mutation(), 1..5);
    let outcome = runner.run(&(mutations, any::<bool>()), |(mutations, strict)| {
        let mut stream = FakeStream::new();
        mutations.iter().for_each(|mutation| apply(&mut stream, mutation));
        publisher.serve(stream);
        visit(&test, if strict { Mode::Strict } else { Mode::Newest });
        Ok(())
    });
    outcome.unwrap();
}

/// With any subscriber, the publisher and the honest subscriber continue.
#[test]
fn publisher_survives_any_subscriber() {
    let test = TestDir::no_timeout("hostile-subscribers");
    let stage = std::cell::RefCell::new(Stage::new(&test, |_| {}));
    let mut runner = proptest::test_runner::TestRunner::new(config());
    let byte = (any::<prop::sample::Index>(), any::<u8>());
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..100),
        // A HELLO with some bytes changed.
        (proptest::collection::vec(byte, 0..4), 0..4u32).prop_map(|(changes, credit)| {
            let mut bytes = hello(credit, "anybody");
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        }),
    ];
    let words = proptest::collection::vec((0..100usize, number_of_note()), 0..20);
    let cases = (proptest::collection::vec((bytes, 0..3usize), 1..4), words);
    let outcome = runner.run(&cases, |(messages, words)| {
        let mut stage = stage.borrow_mut();
        let peer = stage.connect();
        let fd = std::fs::File::open("/dev/null").unwrap();
        for (n, (bytes, fds)) in messages.iter().enumerate() {
            peer.send(bytes, &vec![fd.as_fd(); *fds]);
            if n > 0 || bytes.is_empty() {
                continue;
            }
            if let Some((Message::Welcome { slots, .. }, fds)) = peer.receive() {
                let page = Segment::map(fds[1].clone(), at::CLAIMS + 8 * slots as usize).unwrap();
                for (at, word) in &words {
                    page.word(at * 8).store(*word, Ordering::Relaxed);
                    stage.check();
                }
            }
        }
        stage.check();
        Ok(())
    });
    outcome.unwrap();
}
