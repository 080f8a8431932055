// SPDX-License-Identifier: LGPL-2.1-or-later
//! Frames arrive whole and in order.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cuframes::{Frame, Mode, Next, Policy, RefusalReason, SharedWords, Wait};
use testing::{FrameLog, SIZE, TestDir, TestSubscriber, info, item};

use crate::fixture::{FRAMES, MemoryFixture, PATIENT, asleep, intact, publish, publish_sized};

pub(crate) fn newest_subscribers_with_policy_drop<M: MemoryFixture>(test: &TestDir) {
    stream::<M>(test, Mode::Newest, Policy::Drop);
}

pub(crate) fn newest_subscribers_with_policy_wait<M: MemoryFixture>(test: &TestDir) {
    stream::<M>(test, Mode::Newest, PATIENT);
}

pub(crate) fn strict_subscribers_with_policy_drop<M: MemoryFixture>(test: &TestDir) {
    stream::<M>(test, Mode::Strict, Policy::Drop);
}

pub(crate) fn strict_subscribers_with_policy_wait<M: MemoryFixture>(test: &TestDir) {
    stream::<M>(test, Mode::Strict, PATIENT);
}

pub(crate) fn strict_subscribers_lose_nothing_at_full_speed<M: MemoryFixture>(test: &TestDir) {
    run::<M>(test, Mode::Strict, PATIENT, 4, 2000);
}

/// The memory of the last frame is still to be announced when the publisher ends.
pub(crate) fn only_frame_arrives_before_publisher_closes<M: MemoryFixture>(test: &TestDir) {
    for _ in 0..20 {
        let publisher = test.publisher(M::backend(), |_| {});
        let mut viewers: Vec<_> = (0..4).map(|_| test.subscriber(|c| c.max_frames = 8)).collect();
        publisher.set_format("other", 2 * SIZE).unwrap();
        publish_sized::<M>(&publisher, 1, 2 * SIZE);
        drop(publisher);
        for viewer in &mut viewers {
            intact::<M>(&viewer.frame());
        }
    }
}

/// Two devices, or two streams of one, complete frames in any order.
pub(crate) fn frames_become_complete_in_any_order<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |c| c.window = 3);
    let mut newest = test.subscriber(|_| {});
    let mut strict = test.subscriber(|c| c.mode = Mode::Strict);
    let SharedWords { base, len, keep_alive: _mapped } = publisher.ready_words();
    let complete = |offset: usize, seq| {
        assert!(offset + 8 <= len);
        // SAFETY: an aligned word of the segment, which is mapped and accessed through atomics only.
        unsafe { AtomicU64::from_ptr(base.add(offset).cast()) }.store(seq, Ordering::Release);
    };
    let publish = |n| {
        let mut loan = publisher.loan(SIZE).unwrap().unwrap();
        M::write(&mut loan, n);
        let offset = loan.ready_offset();
        assert_eq!(publisher.publish_unready(loan, &info(n, SIZE)), n);
        offset
    };
    let (first, second) = (publish(1), publish(2));
    complete(second, 2);
    let frame = newest.frame();
    assert_eq!(frame.seq, 2);
    intact::<M>(&frame);
    complete(first, 1);
    assert_eq!(strict.frame().seq, 1);
    assert_eq!(strict.frame().seq, 2);
}

pub(crate) fn stream<M: MemoryFixture>(test: &TestDir, mode: Mode, policy: Policy) {
    for subscribers in [1, 4, 8] {
        run::<M>(test, mode, policy, subscribers, FRAMES);
    }
}

/// Runs publisher and subscribers at full speed, and checks each frame.
pub(crate) fn run<M: MemoryFixture>(
    test: &TestDir,
    mode: Mode,
    policy: Policy,
    subscribers: usize,
    frames: u64,
) {
    let publisher = test.publisher(M::backend(), |c| c.policy = policy);
    let viewers: Vec<_> = (0..subscribers)
        .map(|_| {
            let mut viewer = test.subscriber(|c| c.mode = mode);
            std::thread::spawn(move || (FrameLog::record(&mut viewer, M::read), viewer))
        })
        .collect();
    for n in 1..=frames {
        publish::<M>(&publisher, n);
    }
    publisher.end_of_frames();
    // The subscribers stay connected until the publisher's counters were read.
    let ended: Vec<_> = viewers.into_iter().map(|v| v.join().unwrap()).collect();
    let stats = publisher.stats();
    assert_eq!(stats.pool.published, frames);
    assert_eq!(stats.subscribers.len(), subscribers);
    // Ids are assigned in the order of joining.
    for (its_own, (seen, _)) in stats.subscribers.iter().zip(&ended) {
        assert_eq!((its_own.received, its_own.skipped), (seen.received, seen.skipped));
        assert_eq!((its_own.cursor, its_own.held), (frames, 0));
        assert_eq!(seen.last, frames);
        if mode == Mode::Strict && policy != Policy::Drop {
            assert_eq!((seen.first, seen.received), (1, frames));
        }
    }
}

pub(crate) fn last_frame_arrives_before_publisher_closes<M: MemoryFixture>(test: &TestDir) {
    for _ in 0..100 {
        let publisher = test.publisher(M::backend(), |_| {});
        let mut viewer = test.subscriber(|_| {});
        let thread = asleep(move || {
            intact::<M>(&viewer.frame());
            let end = viewer.next_frame();
            assert!(matches!(end, Next::Lost { reason: RefusalReason::Closing, .. }), "{end:?}");
        });
        publish::<M>(&publisher, 1);
        drop(publisher);
        thread.join().unwrap();
    }
}

pub(crate) fn frames_arrive_in_order_of_publication<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |c| c.window = 4);
    let mut viewer = test.subscriber(|c| c.mode = Mode::Strict);
    // In the order of a decoder that decodes frames before it displays them, such as B-frames.
    let mut loans: Vec<_> = [3, 1, 4, 2]
        .into_iter()
        .map(|n| {
            let mut loan = publisher.loan(SIZE).unwrap().unwrap();
            M::write(&mut loan, n);
            (n, loan)
        })
        .collect();
    assert!(matches!(viewer.poll(), Next::TimedOut));
    loans.sort_by_key(|(n, _)| *n);
    for (n, loan) in loans {
        assert_eq!(publisher.publish(loan, &info(n, SIZE)), n);
    }
    for n in 1..=4 {
        let frame = viewer.frame();
        assert_eq!((frame.seq, frame.skipped), (n, 0));
        intact::<M>(&frame);
    }
}

pub(crate) fn stream_continues_after_its_end<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |_| {});
    let mut viewer = test.subscriber(|c| c.mode = Mode::Strict);
    publish::<M>(&publisher, 1);
    publisher.end_of_frames();
    // The end follows the last frame.
    assert_eq!(viewer.frame().seq, 1);
    assert!(matches!(viewer.next_frame(), Next::Eos));
    assert!(matches!(viewer.next_frame(), Next::Eos));
    assert!(matches!(viewer.poll(), Next::TimedOut), "who waits past the end does not see it");
    let waits = asleep(move || {
        let wait = Wait { past_eos: true, ..Wait::default() };
        let frame = item(viewer.subscriber.next_frame(&wait).unwrap());
        intact::<M>(&frame);
        (frame.seq, viewer)
    });
    publish::<M>(&publisher, 2);
    let (seq, mut viewer) = waits.join().unwrap();
    assert_eq!(seq, 2);
    let waits = asleep(move || (matches!(viewer.next_frame(), Next::Eos), viewer));
    publisher.end_of_frames();
    let (ended, mut viewer) = waits.join().unwrap();
    assert!(ended);
    drop(publisher);
    // The end of the stream takes precedence over the loss of the publisher.
    assert!(matches!(viewer.next_frame(), Next::Eos));
}

pub(crate) fn next_frame_takes_end_back<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |_| {});
    let mut viewer = test.subscriber(|c| c.mode = Mode::Strict);
    for n in 1..=3 {
        publish::<M>(&publisher, n);
        assert_eq!(viewer.frame().seq, n);
        assert!(matches!(poll(&mut viewer), Next::TimedOut), "frame {n} is not the last");
        publisher.end_of_frames();
        assert!(matches!(poll(&mut viewer), Next::Eos));
    }
}

/// Returns the next frame or the end, without waiting.
fn poll(viewer: &mut TestSubscriber) -> Next<Frame> {
    let wait = Wait { timeout: Some(Duration::ZERO), ..Wait::default() };
    viewer.subscriber.next_frame(&wait).unwrap()
}
