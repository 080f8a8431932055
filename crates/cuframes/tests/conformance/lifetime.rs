// SPDX-License-Identifier: LGPL-2.1-or-later
//! How long frames and slots live.

use std::sync::atomic::{AtomicU64, Ordering};

use cuframes::{Next, RefusalReason, SharedPage};
use testing::{SIZE, TestDir, info, until};

use crate::fixture::{MemoryFixture, fits, intact, publish, publish_sized};

pub(crate) fn frames_outlive_publisher<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |_| {});
    let mut viewer = test.subscriber(|_| {});
    publish::<M>(&publisher, 1);
    let first = viewer.frame();
    publish::<M>(&publisher, 2);
    drop(publisher);
    // Frames that were published before the end can still be taken.
    let second = viewer.frame();
    assert!(matches!(viewer.next_frame(), Next::Lost { reason: RefusalReason::Closing, .. }));
    // The next publisher of the key does not touch them.
    let publisher = test.publisher(M::backend(), |_| {});
    for n in 1..=20 {
        publish::<M>(&publisher, n);
    }
    drop(viewer);
    intact::<M>(&first);
    intact::<M>(&second);
}

/// A device releases a frame some time after the last reference to it is dropped.
pub(crate) fn frame_released_by_device_is_held_until_then<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |_| {});
    let mut viewer = test.subscriber(|c| c.max_frames = 1);
    publish::<M>(&publisher, 1);
    let frame = viewer.frame();
    let SharedPage { base: page, len, keep_alive: _mapped } = viewer.subscriber.page();
    let mut word = None;
    frame.release_with(|offset| {
        assert!(offset + 8 <= len);
        word = Some(offset);
        true
    });
    publish::<M>(&publisher, 2);
    // It is still claimed, so that there is no credit for another.
    assert!(matches!(viewer.poll(), Next::TimedOut));
    assert_eq!(publisher.stats().subscribers[0].held, 1);
    // SAFETY: an aligned word of the page, which is mapped and accessed through atomics only.
    let word = unsafe { AtomicU64::from_ptr(page.add(word.unwrap()).cast()) };
    word.store(0, Ordering::Release);
    assert_eq!(viewer.frame().seq, 2);
    until(|| publisher.stats().subscribers[0].held == 0);
}

/// A subscriber that holds its whole credit sleeps until the last reference is dropped and the device is
/// done.
pub(crate) fn waiting_subscriber_notices_release_by_device<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |_| {});
    let mut viewer = test.subscriber(|c| c.max_frames = 1);
    let SharedPage { base: page, keep_alive: _mapped, .. } = viewer.subscriber.page();
    publish::<M>(&publisher, 1);
    let frame = viewer.frame();
    publish::<M>(&publisher, 2);
    let (ready, reader) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || {
        ready.send(nix::unistd::gettid()).unwrap();
        viewer.frame().seq
    });
    let reader = reader.recv().unwrap();
    let stat = format!("/proc/self/task/{reader}/stat");
    until(|| std::fs::read_to_string(&stat).unwrap().contains(") S "));
    let mut word = None;
    frame.release_with(|offset| {
        word = Some(offset);
        true
    });
    // The device rings no bell, so the reader looks again and again.
    let sleeps = || {
        let status = std::fs::read_to_string(format!("/proc/self/task/{reader}/status")).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    let before = sleeps();
    until(|| sleeps() > before + 5);
    // SAFETY: an aligned word of the page, which is mapped and accessed through atomics only.
    unsafe { AtomicU64::from_ptr(page.add(word.unwrap()).cast()) }.store(0, Ordering::Release);
    assert_eq!(waiting.join().unwrap(), 2);
}

/// A device clears a claim at once, and the slot is claimed again, before [`Frame::release_with`] returns.
pub(crate) fn frame_does_not_count_when_its_slot_is_claimed_again<M: MemoryFixture>(
    test: &TestDir,
) {
    let publisher = test.publisher(M::backend(), |_| {});
    let mut viewer = test.subscriber(|c| c.max_frames = 2);
    let SharedPage { base: page, keep_alive: _mapped, .. } = viewer.subscriber.page();
    publish::<M>(&publisher, 1);
    let first = viewer.frame();
    let slot = first.address();
    let mut second = None;
    first.release_with(|offset| {
        // SAFETY: an aligned word of the page, which is mapped and accessed through atomics only.
        unsafe { AtomicU64::from_ptr(page.add(offset).cast()) }.store(0, Ordering::Release);
        let mut frames = (2..100).map(|n| {
            publish::<M>(&publisher, n);
            viewer.frame()
        });
        second = Some(frames.find(|frame| frame.address() == slot).expect("the slot is reused"));
        true
    });
    assert!(matches!(viewer.poll(), Next::TimedOut));
    let second = second.unwrap();
    assert_eq!(second.credit().held, 1);
    publish::<M>(&publisher, second.seq + 1);
    assert_eq!(viewer.frame().seq, second.seq + 1);
}

/// The device was given nothing to do, so the frame is released at once.
pub(crate) fn frame_is_released_when_device_refuses<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |_| {});
    let mut viewer = test.subscriber(|c| c.max_frames = 1);
    for n in 1..=3 {
        publish::<M>(&publisher, n);
        let frame = viewer.frame();
        assert_eq!((frame.seq, frame.credit().held), (n, 1));
        frame.release_with(|_| false);
        assert_eq!(publisher.stats().subscribers[0].held, 0);
    }
}

pub(crate) fn frames_outlive_subscriber<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |_| {});
    let mut viewer = test.subscriber(|_| {});
    publish::<M>(&publisher, 1);
    let frame = viewer.frame();
    drop(viewer);
    for n in 2..=50 {
        publish::<M>(&publisher, n);
        intact::<M>(&frame);
    }
    // It keeps its place as long as it holds frames.
    assert_eq!(publisher.stats().subscribers[0].held, 1);
    drop(frame);
    until(|| publisher.stats().subscribers.is_empty());
}

pub(crate) fn pool_follows_credit<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |c| c.window = 3);
    let mut n = 0;
    let mut settle = |credits: u32| {
        // The publisher notices some time later that a subscriber has left.
        until(|| {
            n += 1;
            publish::<M>(&publisher, n);
            fits(publisher.stats().pool.slots, 3 + credits + 1)
        });
    };
    settle(0);
    let join = |max_frames| test.subscriber(|c| c.max_frames = max_frames);
    let mut a = join(2);
    settle(2);
    let b = join(5);
    settle(7);
    let c = join(2);
    settle(9);
    drop(b);
    settle(4);
    // A subscriber keeps the frames that it holds when another leaves.
    let frame = a.frame();
    drop(c);
    settle(2);
    intact::<M>(&frame);
    drop(a);
    settle(2);
    intact::<M>(&frame);
    drop(frame);
    settle(0);
    // A subscriber of packets alone costs no memory for frames.
    let _d = join(0);
    settle(0);
    let pool = publisher.stats().pool;
    assert!(pool.bytes >= 4 * SIZE as u64);
}

pub(crate) fn dropped_loan_is_free_again<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |_| {});
    let mut viewer = test.subscriber(|_| {});
    let slots = publisher.stats().pool.slots;
    publish::<M>(&publisher, 1);
    let frame = viewer.frame();
    for n in 0..100 {
        M::write(&mut publisher.loan(SIZE).unwrap().unwrap(), 1000 + n);
    }
    intact::<M>(&frame);
    publish::<M>(&publisher, 2);
    let stats = publisher.stats();
    assert_eq!((stats.pool.published, stats.pool.slots), (2, slots));
    let frame = viewer.frame();
    assert_eq!((frame.seq, frame.skipped), (2, 0));
    intact::<M>(&frame);

    // A loan may outlive its publisher.
    let mut loan = publisher.loan(SIZE).unwrap().unwrap();
    drop(publisher);
    M::write(&mut loan, 3);
    drop(loan);
    intact::<M>(&frame);
}

/// Upstream may read a published frame for as long as it needs to, as a decoder reads its reference frames.
pub(crate) fn slot_that_upstream_keeps_is_not_reused<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |_| {});
    let mut viewer = test.subscriber(|_| {});
    let mut kept = publisher.loan(SIZE).unwrap().unwrap();
    M::write(&mut kept, 1);
    assert_eq!(publisher.publish_in_place(&kept, &info(1, SIZE), true), Some(1));
    intact::<M>(&viewer.frame());
    for n in 2..=50 {
        let mut loan = publisher.loan(SIZE).unwrap().unwrap();
        assert_ne!(loan.address(), kept.address(), "frame {n} overwrites the kept one");
        M::write(&mut loan, n);
        assert_eq!(publisher.publish(loan, &info(n, SIZE)), n);
        intact::<M>(&viewer.frame());
    }
    // Slots of another size replace all others, except the kept one. It returns to the pool like any other.
    publisher.set_format("big", SIZE * 3).unwrap();
    for n in 51..=100 {
        publish_sized::<M>(&publisher, n, SIZE * 3);
        intact::<M>(&viewer.frame());
    }
    drop(kept);
    for n in 101..=150 {
        publish_sized::<M>(&publisher, n, SIZE * 3);
        intact::<M>(&viewer.frame());
    }
}
