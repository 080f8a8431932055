// SPDX-License-Identifier: LGPL-2.1-or-later
//! Subscribers that are slow, hold frames, or stop taking them.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use cuframes::shm::layout::PageHeader;
use cuframes::{
    Counters, Credit, Mode, Next, Policy, Publisher, PublisherEvent, RefusalReason, SharedPage,
};
use testing::{CAPS, FrameLog, SIZE, TestDir, info, until};

use crate::fixture::{HASTE, MemoryFixture, PATIENT, asleep, fits, hurry, intact, publish};

/// A strict subscriber that keeps up costs no more memory than others. One that lags gets as many frames as
/// there are slots.
pub(crate) fn pool_uses_spare_slots_for_lagging_subscriber<M: MemoryFixture>(test: &TestDir) {
    for policy in [Policy::Drop, PATIENT] {
        let publisher = test.publisher(M::backend(), |c| (c.policy, c.window) = (policy, 2));
        let mut viewer = test.subscriber(|c| (c.mode, c.max_frames) = (Mode::Strict, 5));
        let mut places = std::collections::HashSet::new();
        for n in 1..=50 {
            publish::<M>(&publisher, n);
            let frame = viewer.frame();
            assert_eq!(frame.seq, n);
            places.insert(frame.address());
        }
        assert!(places.len() <= 4, "{places:?}");
        let slots = u64::from(publisher.stats().pool.slots);
        assert_eq!(slots, 2 + 5 + 1);
        for n in 51..=50 + slots {
            publish::<M>(&publisher, n);
        }
        for n in 51..=50 + slots {
            let frame = viewer.frame();
            assert_eq!((frame.seq, frame.skipped), (n, 0));
        }
        // Slots that upstream keeps are not taken from those of the subscriber.
        let behind = 51 + slots..=49 + 2 * slots;
        for n in behind.clone() {
            publish::<M>(&publisher, n);
        }
        let lent: Vec<_> = (0..6).map(|_| publisher.loan(SIZE).unwrap().unwrap()).collect();
        for n in behind {
            let frame = viewer.frame();
            assert_eq!((frame.seq, frame.skipped), (n, 0));
        }
        drop(lent);
    }
}

pub(crate) fn slow_subscriber_does_not_disturb_others<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |_| {});
    let mut slow = test.subscriber(|c| c.mode = Mode::Strict);
    let mut quick = test.subscriber(|c| {
        c.mode = Mode::Strict;
        c.max_frames = 1;
    });
    let mut held = Vec::new();
    let mut skipped = 0;
    for n in 1..=200 {
        publish::<M>(&publisher, n);
        let frame = quick.frame();
        assert_eq!((frame.seq, frame.skipped), (n, 0));
        intact::<M>(&frame);
        if n % 10 == 0 {
            held.iter().for_each(intact::<M>);
            held.truncate(1);
            let frame = slow.frame();
            skipped += frame.skipped;
            intact::<M>(&frame);
            held.insert(0, frame);
        }
    }
    let last = held[0].seq;
    assert_eq!(slow.subscriber.counters(), Counters { received: 20, skipped });
    let stats = publisher.stats();
    let [slow, quick] = &stats.subscribers[..] else { panic!("there are two") };
    assert_eq!((slow.received, slow.skipped, slow.cursor, slow.held), (20, skipped, last, 2));
    assert_eq!((quick.received, quick.skipped, quick.cursor, quick.held), (200, 0, 200, 0));
}

pub(crate) fn exhausted_credit_does_not_starve_others<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |_| {});
    let mut hog = test.subscriber(|c| c.max_frames = 4);
    let mut quick = test.subscriber(|c| {
        c.mode = Mode::Strict;
        c.max_frames = 1;
    });
    let mut held = Vec::new();
    for n in 1..=100 {
        publish::<M>(&publisher, n);
        assert_eq!(quick.frame().seq, n);
        if n <= 4 {
            held.push(hog.frame());
            assert_eq!(held.last().unwrap().credit(), Credit { max: 4, held: n as u32 });
        } else {
            assert!(matches!(hog.poll(), Next::TimedOut));
        }
    }
    held.iter().for_each(intact::<M>);
    assert_eq!(publisher.stats().subscribers[0].held, 4);
    held.pop();
    let frame = hog.frame();
    assert_eq!((frame.seq, frame.skipped), (100, 95));
    intact::<M>(&frame);

    // A release wakes a subscriber that has used up its credit.
    publish::<M>(&publisher, 101);
    let waits = asleep(move || hog.frame().seq);
    drop(frame);
    assert_eq!(waits.join().unwrap(), 101);
    held.iter().for_each(intact::<M>);
}

pub(crate) fn stalled_subscriber_is_evicted<M: MemoryFixture>(test: &TestDir) {
    let mut config = test.config();
    config.stall_timeout = Some(Duration::from_millis(1));
    let (sender, events) = channel();
    let publisher =
        Publisher::open(config, M::backend(), move |e| sender.send(e).unwrap()).unwrap();
    publisher.set_format(CAPS, SIZE).unwrap();
    let mut hog = test.subscriber(|c| {
        c.name = "hog".into();
        c.max_frames = 1;
    });
    let mut quick = test.subscriber(|c| c.max_frames = 1);
    let mut n = 1;
    publish::<M>(&publisher, n);
    let held = hog.frame();
    // Frames are published, and the subscriber takes none.
    until(|| {
        n += 1;
        publish::<M>(&publisher, n);
        quick.frame();
        matches!(hog.poll(), Next::Lost { reason: RefusalReason::Stalled, .. })
    });
    intact::<M>(&held);
    drop((held, hog));
    let (who, reason) = std::iter::from_fn(|| events.recv().ok())
        .find_map(|event| match event {
            PublisherEvent::SubscriberRemoved(who, reason) => Some((who, reason)),
            _ => None,
        })
        .unwrap();
    assert_eq!(who.name, "hog");
    assert!(reason.is_some());
    publish::<M>(&publisher, n + 1);
    assert_eq!(quick.frame().seq, n + 1);
}

pub(crate) fn waiting_publisher_evicts_after_timeout<M: MemoryFixture>(test: &TestDir) {
    let policy = Policy::Wait(Duration::from_millis(30));
    let publisher = test.publisher(M::backend(), |c| c.policy = policy);
    let mut viewer = test.subscriber(|c| c.mode = Mode::Strict);
    for n in 1..=20 {
        publish::<M>(&publisher, n);
    }
    let mut last = 0;
    let code = loop {
        match viewer.next_frame() {
            Next::Item(frame) => {
                assert!(frame.seq > last);
                last = frame.seq;
                intact::<M>(&frame);
            }
            Next::Lost { reason, .. } => break reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code, RefusalReason::Stalled);
}

pub(crate) fn waiting_publisher_continues_when_subscriber_leaves<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |c| c.policy = PATIENT);
    let mut leaves = test.subscriber(|c| c.mode = Mode::Strict);
    let mut stays = test.subscriber(|c| c.mode = Mode::Strict);
    let stays = std::thread::spawn(move || FrameLog::record(&mut stays, M::read));
    let publisher = asleep(move || {
        for n in 1..=100 {
            publish::<M>(&publisher, n);
        }
        publisher.end_of_frames();
        publisher
    });
    intact::<M>(&leaves.frame());
    drop(leaves);
    let _publisher = publisher.join().unwrap();
    assert_eq!(stays.join().unwrap().received, 100);
}

/// A subscriber that takes a frame wakes a publisher that waits, and makes no system call for one that does not. The
/// publisher also looks every 20 ms, so that a missing wake-up only costs time.
pub(crate) fn only_waiting_publisher_is_woken<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |c| c.policy = Policy::Wait(Duration::MAX));
    let mut viewer = test.subscriber(|c| (c.mode, c.max_frames) = (Mode::Strict, 1));
    let SharedPage { base: page, keep_alive: _mapped, .. } = viewer.subscriber.page();
    // SAFETY: an aligned word of the page, which is mapped and accessed through atomics only.
    let futex = unsafe { AtomicU32::from_ptr(page.add(offset_of!(PageHeader, futex)).cast()) };
    let wakes = || futex.load(Ordering::Relaxed);
    publish::<M>(&publisher, 1);
    drop(viewer.frame());
    assert_eq!(wakes(), 0);
    let slots = u64::from(publisher.stats().pool.slots);
    let publisher = asleep(move || {
        (2..=2 + slots).for_each(|n| publish::<M>(&publisher, n));
        publisher
    });
    let frame = viewer.frame();
    assert_eq!((frame.seq, wakes()), (2, 1));
    drop(frame);
    assert_eq!(wakes(), 2);
    let publisher = publisher.join().unwrap();
    // It does not wait any more.
    (3..=2 + slots).for_each(|n| assert_eq!(viewer.frame().seq, n));
    assert_eq!(wakes(), 2);
    drop(publisher);
}

/// A subscriber that leaves takes no more frames, although it may keep one for long.
pub(crate) fn publisher_does_not_wait_for_held_frame_of_leaver<M: MemoryFixture>(test: &TestDir) {
    let backend = M::backend();
    let publisher = test.publisher(backend.clone(), |c| c.policy = Policy::Wait(Duration::MAX));
    let mut leaves = test.subscriber(|c| c.mode = Mode::Strict);
    publish::<M>(&publisher, 1);
    let held = leaves.frame();
    drop(leaves);
    for n in 2..=50 {
        let mut loan = None;
        // The publisher hears of the departure some time later.
        until(|| {
            loan = publisher.loan_in(&backend, SIZE, &|| true).unwrap();
            loan.is_some()
        });
        let mut loan = loan.unwrap();
        M::write(&mut loan, n);
        assert_eq!(publisher.publish(loan, &info(n, SIZE)), n);
    }
    assert_eq!(publisher.stats().subscribers[0].held, 1);
    intact::<M>(&held);
    drop(held);
    until(|| publisher.stats().subscribers.is_empty());
}

pub(crate) fn subscribers_within_credit_cost_no_frame<M: MemoryFixture>(test: &TestDir) {
    for policy in [Policy::Drop, PATIENT] {
        let publisher = test.publisher(M::backend(), |c| c.policy = policy);
        let viewers: Vec<_> = [Mode::Strict, Mode::Newest, Mode::Strict, Mode::Strict]
            .into_iter()
            .map(|mode| {
                hurry(test.subscriber(|c| {
                    c.mode = mode;
                    c.max_frames = 1;
                }))
            })
            .collect();
        for n in 1..=HASTE * 4 {
            // One slot is always free, because all subscribers together hold at most their credit.
            let loan = publisher.loan(SIZE).unwrap();
            publisher.publish(loan.expect("a free slot"), &info(n, SIZE));
        }
        publisher.end_of_frames();
        viewers.into_iter().for_each(|v| assert!(v.join().unwrap() > 0));
    }
}

/// The pool shrinks, and the remaining subscriber loses no frame.
pub(crate) fn leaving_subscriber_costs_others_no_frame<M: MemoryFixture>(test: &TestDir) {
    for policy in [Policy::Drop, PATIENT] {
        let publisher = test.publisher(M::backend(), |c| (c.policy, c.window) = (policy, 1));
        let mut viewer = test.subscriber(|c| (c.mode, c.max_frames) = (Mode::Strict, 5));
        let other = test.subscriber(|c| c.max_frames = 8);
        (1..=6).for_each(|n| publish::<M>(&publisher, n));
        drop(other);
        until(|| publisher.stats().subscribers.len() == 1);
        publish::<M>(&publisher, 7);
        for n in 1..=7 {
            let frame = viewer.frame();
            assert_eq!((frame.seq, frame.skipped), (n, 0));
        }
        let mut n = 7;
        until(|| {
            n += 1;
            publish::<M>(&publisher, n);
            assert_eq!(viewer.frame().seq, n);
            fits(publisher.stats().pool.slots, 1 + 5 + 1)
        });
    }
}
