// SPDX-License-Identifier: LGPL-2.1-or-later
//! Formats and sizes that change while frames flow.

use cuframes::protocol::wire::MAX_CAPS;
use cuframes::{Error, Mode, Policy};
use testing::{CAPS, SIZE, TestDir, info, until};

use crate::fixture::{HASTE, MemoryFixture, PATIENT, fits, hurry, intact, publish, publish_sized};

/// Bigger, smaller, and the same size under other caps.
pub(crate) const FORMATS: [(&str, usize); 5] =
    [(CAPS, SIZE), ("big", SIZE * 5), ("small", SIZE / 5), ("other", SIZE / 5), (CAPS, SIZE)];

pub(crate) fn frames_keep_format<M: MemoryFixture>(test: &TestDir) {
    // All of them fit into the window, so that a subscriber can get them after the last is published.
    let publisher = test.publisher(M::backend(), |c| c.window = 10);
    let mut at_once = test.subscriber(|c| {
        c.mode = Mode::Strict;
        c.max_frames = 8;
    });
    let mut later = test.subscriber(|c| c.mode = Mode::Strict);
    let mut held = Vec::new();
    for n in 1..=10 {
        let (caps, size) = FORMATS[(n as usize - 1) / 2];
        if n % 2 == 1 && n > 1 {
            publisher.set_format(caps, size).unwrap();
        }
        publish_sized::<M>(&publisher, n, size);
        let frame = at_once.frame();
        if n > 2 {
            held.push(frame);
        }
    }
    for n in 1..=10 {
        let frame = later.frame();
        let (caps, size) = FORMATS[(n as usize - 1) / 2];
        assert_eq!((frame.seq, &*frame.caps, frame.info.size), (n, caps, size));
        intact::<M>(&frame);
    }
    // Held frames stay while many more pass through the pool, and the pool drops the formats.
    for n in 11..=60 {
        publish::<M>(&publisher, n);
        assert_eq!(later.frame().seq, n);
    }
    for (n, frame) in (3..).zip(&held) {
        let (caps, size) = FORMATS[(n as usize - 1) / 2];
        assert_eq!((frame.seq, &*frame.caps, frame.info.size), (n, caps, size));
        intact::<M>(frame);
    }
    assert!(
        held.windows(2).all(|w| (w[0].caps == w[1].caps) == (w[0].generation == w[1].generation))
    );
    held.clear();
    until(|| {
        publish::<M>(&publisher, publisher.stats().pool.published + 1);
        fits(publisher.stats().pool.slots, 10 + 8 + 2 + 1)
    });
}

pub(crate) fn frames_keep_format_for_late_subscriber<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |_| {});
    publish::<M>(&publisher, 1);
    publisher.set_format("other", SIZE * 3).unwrap();
    // The newest frame still has the format before.
    let mut viewer = test.subscriber(|_| {});
    let frame = viewer.frame();
    assert_eq!((frame.seq, &*frame.caps, frame.info.size), (1, CAPS, SIZE));
    intact::<M>(&frame);
    publish_sized::<M>(&publisher, 2, SIZE * 3);
    let frame = viewer.frame();
    assert_eq!((frame.seq, &*frame.caps, frame.info.size), (2, "other", SIZE * 3));
    intact::<M>(&frame);
}

/// Caps that a subscriber does not accept: too long, or with control characters.
pub(crate) fn rejected_caps() -> [String; 4] {
    ["c".repeat(MAX_CAPS + 1), "a\nb".into(), "\0".into(), "\u{9f}".into()]
}

pub(crate) fn rejected_caps_change_nothing<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |c| c.window = 10);
    let mut at_once = test.subscriber(|c| c.mode = Mode::Strict);
    let longest = "c".repeat(MAX_CAPS);
    for (n, caps) in [(1, CAPS), (2, &longest)] {
        if n == 2 {
            publisher.set_format(caps, SIZE).unwrap();
        }
        for rejected in rejected_caps() {
            let errors = [
                publisher.set_format(&rejected, SIZE * 3),
                publisher.set_format_in(M::backend(), &rejected, SIZE * 3),
            ];
            for error in errors.map(Result::unwrap_err) {
                assert!(matches!(error, Error::InvalidConfig { what: "The caps", .. }), "{error}");
            }
        }
        publish::<M>(&publisher, n);
        assert_eq!(&*at_once.frame().caps, caps);
    }
    assert_eq!(&*test.subscriber(|_| {}).frame().caps, longest);
}

/// There is room for two pools of slots, not for three.
pub(crate) fn size_changes_before_old_frames_are_taken<M: MemoryFixture>(test: &TestDir) {
    for policy in [Policy::Drop, PATIENT] {
        let publisher = test.publisher(M::backend(), |c| {
            (c.policy, c.window, c.max_subscribers, c.max_frames_per_subscriber) =
                (policy, 2, 1, 8);
        });
        let viewer = test.subscriber(|c| (c.mode, c.max_frames) = (Mode::Strict, 8));
        let publish = |size| {
            // As a queue in front of the sink keeps them.
            let loans: Vec<_> = (0..60).map(|_| publisher.loan(size).unwrap().unwrap()).collect();
            for loan in loans {
                publisher.publish(loan, &info(publisher.stats().pool.published + 1, size));
            }
        };
        publish(SIZE);
        publisher.set_format(CAPS, SIZE * 3).unwrap();
        publish(SIZE * 3);
        publisher.set_format(CAPS, SIZE * 9).unwrap();
        let viewer = hurry(viewer);
        publish(SIZE * 9);
        publisher.end_of_frames();
        let received = viewer.join().unwrap();
        // Without waiting, at least the window of the old frames and all of the new ones.
        let all = 3 * 60;
        let expected = if policy == Policy::Drop { 2 + 60..=all } else { all..=all };
        assert!(expected.contains(&received), "{received}");
    }
}

pub(crate) fn loans_have_size_of_format<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |c| c.policy = PATIENT);
    let viewers: Vec<_> =
        (0..4).map(|_| hurry(test.subscriber(|c| c.mode = Mode::Strict))).collect();
    // Often enough that slots of the old size become free at any moment of a loan.
    for n in 1..=HASTE {
        let size = if n / 20 % 2 == 0 { SIZE } else { SIZE * 3 };
        if n % 20 == 0 {
            publisher.set_format(CAPS, size).unwrap();
        }
        let loan = publisher.loan(size).unwrap().unwrap();
        assert!(loan.len() >= size, "{} bytes for a frame of {size}", loan.len());
        publisher.publish(loan, &info(n, size));
    }
    publisher.end_of_frames();
    assert!(viewers.into_iter().all(|v| v.join().unwrap() == HASTE));
}
