// SPDX-License-Identifier: LGPL-2.1-or-later
//! Publishers and subscribers that join, are refused, and are interrupted.

use std::time::Duration;

use cuframes::{
    Error, Interrupt, Mode, Next, Policy, Publisher, RefusalReason, Start, Subscriber,
    SubscriberConfig, Wait,
};
use testing::{SIZE, TestDir, TestSubscriber, info, item, until};

use crate::fixture::{MemoryFixture, asleep, connect, intact, publish};

pub(crate) fn join_is_refused_when_full<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |c| c.max_subscribers = 2);
    let mut stays = test.subscriber(|_| {});
    let leaves = test.subscriber(|_| {});
    match connect(test, test.subscriber_config()) {
        Err(Error::Refused { reason: RefusalReason::Full, key, .. }) => assert_eq!(key, "cam"),
        other => panic!("{:?}", other.err()),
    }
    // The refusal disturbs no connected subscriber. A place is free again once its subscriber leaves.
    publish::<M>(&publisher, 1);
    intact::<M>(&stays.frame());
    drop(leaves);
    until(|| publisher.stats().subscribers.len() == 1);
    connect(test, test.subscriber_config()).unwrap();
}

pub(crate) fn join_is_refused_over_credit<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |c| c.max_frames_per_subscriber = 3);
    let slots = publisher.stats().pool.slots;
    for max_frames in [4, u32::MAX] {
        let refused = connect(test, SubscriberConfig { max_frames, ..test.subscriber_config() });
        assert!(matches!(refused, Err(Error::Refused { reason: RefusalReason::OverCredit, .. })));
    }
    assert_eq!(publisher.stats().pool.slots, slots);
    connect(test, SubscriberConfig { max_frames: 3, ..test.subscriber_config() }).unwrap();
}

pub(crate) fn key_has_one_publisher<M: MemoryFixture>(test: &TestDir) {
    let first = test.publisher(M::backend(), |c| c.name = "the front door".into());
    let mut viewer = test.subscriber(|_| {});
    match Publisher::open(test.config(), M::backend(), |_| {}) {
        Err(Error::Busy { key, owner }) => {
            assert_eq!(key, "cam");
            assert!(owner.contains("the front door"), "{owner}");
            assert!(owner.contains(&std::process::id().to_string()), "{owner}");
        }
        other => panic!("{:?}", other.err()),
    }
    let other = test.publisher(M::backend(), |c| c.key = "cam.sub".into());
    // The first publisher continues undisturbed.
    publish::<M>(&first, 1);
    assert_eq!(viewer.frame().seq, 1);
    drop(first);
    test.publisher(M::backend(), |_| {});
    drop(other);
    assert_eq!(test.files(), [""; 0]);
}

pub(crate) fn publisher_restarts<M: MemoryFixture>(test: &TestDir) {
    let publisher = test.publisher(M::backend(), |_| {});
    let mut viewer = test.subscriber(|_| {});
    for n in 1..=10 {
        publish::<M>(&publisher, n);
    }
    assert_eq!(viewer.frame().seq, 10);
    let lost = asleep(move || viewer.next_frame());
    drop(publisher);
    match lost.join().unwrap() {
        Next::Lost { reason: RefusalReason::Closing, text } => {
            assert!(text.contains("cam"), "{text}")
        }
        other => panic!("{other:?}"),
    }
    let again = {
        let config = test.subscriber_config();
        asleep(move || {
            let interrupt = Interrupt::new().unwrap();
            let subscriber = Subscriber::connect(config, None, &interrupt).unwrap();
            TestSubscriber { subscriber, interrupt }
        })
    };
    let publisher = test.publisher(M::backend(), |_| {});
    let mut viewer = again.join().unwrap();
    publish::<M>(&publisher, 1);
    let frame = viewer.frame();
    assert_eq!((frame.seq, frame.skipped), (1, 0));
    intact::<M>(&frame);
}

pub(crate) fn subscriber_waits_for_publisher<M: MemoryFixture>(test: &TestDir) {
    for dir in [test.dir.clone(), test.dir.join("not/there/yet")] {
        let config =
            SubscriberConfig { runtime_dir: Some(dir.clone()), ..test.subscriber_config() };
        let viewer = asleep(move || {
            let interrupt = Interrupt::new().unwrap();
            let mut subscriber = Subscriber::connect(config, None, &interrupt).unwrap();
            let frame = item(subscriber.next_frame(&Wait::default()).unwrap());
            intact::<M>(&frame);
        });
        let publisher = test.publisher(M::backend(), |c| c.runtime_dir = Some(dir));
        publish::<M>(&publisher, 1);
        viewer.join().unwrap();
    }
}

pub(crate) fn connect_times_out_without_publisher<M: MemoryFixture>(test: &TestDir) {
    // A publisher of another key does not count.
    let _other = test.publisher(M::backend(), |c| c.key = "cam2".into());
    let interrupt = Interrupt::new().unwrap();
    for timeout in [Duration::ZERO, Duration::from_millis(20)] {
        match Subscriber::connect(test.subscriber_config(), Some(timeout), &interrupt) {
            Err(Error::NoPublisher { key, searched }) => {
                assert_eq!((&*key, &searched[..]), ("cam", &[test.dir.clone()][..]));
            }
            other => panic!("{:?}", other.err()),
        }
    }
}

pub(crate) fn interrupt_ends_every_wait<M: MemoryFixture>(test: &TestDir) {
    let interrupt = Interrupt::new().unwrap();
    let (config, its) = (test.subscriber_config(), interrupt.clone());
    let connects = asleep(move || Subscriber::connect(config, None, &its));
    interrupt.set();
    assert!(matches!(connects.join().unwrap(), Err(Error::Interrupted)));
    // The interrupt stays set until it is cleared.
    let again = Subscriber::connect(test.subscriber_config(), None, &interrupt);
    assert!(matches!(again, Err(Error::Interrupted)));
    interrupt.clear();

    let publisher = test.publisher(M::backend(), |_| {});
    publisher.add_track(0, "video/x-h264", Default::default()).unwrap();
    let config = SubscriberConfig { max_frames: 1, ..test.subscriber_config() };
    let subscriber = Subscriber::connect(config, None, &interrupt).unwrap();
    // Track 1 does not exist.
    for track in [0, 1] {
        let mut packets = subscriber.packets(track, Start::default());
        let waits = asleep(move || packets.next(&Wait::default()).unwrap());
        interrupt.set();
        assert!(matches!(waits.join().unwrap(), Next::Interrupted));
        interrupt.clear();
    }
    let mut viewer = TestSubscriber { subscriber, interrupt };
    let interrupted = |mut viewer: TestSubscriber| {
        let interrupt = viewer.interrupt.clone();
        let waits = asleep(move || (viewer.next_frame(), viewer));
        interrupt.set();
        let (next, mut viewer) = waits.join().unwrap();
        assert!(matches!(next, Next::Interrupted), "{next:?}");
        assert!(matches!(viewer.poll(), Next::Interrupted));
        interrupt.clear();
        viewer
    };
    viewer = interrupted(viewer);
    publish::<M>(&publisher, 1);
    let held = viewer.frame();
    // With its credit used up, a subscriber waits for a release instead of a frame.
    viewer = interrupted(viewer);
    publish::<M>(&publisher, 2);
    drop(held);
    assert_eq!(viewer.frame().seq, 2);
}

/// A strict subscriber is entitled to every frame from its joining on, and to none before.
pub(crate) fn late_strict_subscriber_gets_new_frames_only<M: MemoryFixture>(test: &TestDir) {
    for policy in [Policy::Drop, Policy::Wait(Duration::MAX)] {
        let backend = M::backend();
        let publisher = test.publisher(backend.clone(), |c| (c.policy, c.window) = (policy, 4));
        (1..=20).for_each(|n| publish::<M>(&publisher, n));
        let mut viewer = test.subscriber(|c| c.mode = Mode::Strict);
        assert_eq!(publisher.stats().subscribers[0].cursor, 20);
        assert!(matches!(viewer.poll(), Next::TimedOut));
        // The frames before keep no slot for it: there is room for all frames up to the first that it may take.
        let slots = u64::from(publisher.stats().pool.slots);
        for n in 21..=20 + slots {
            let mut loan = publisher.loan_in(&backend, SIZE, &|| true).unwrap().unwrap();
            M::write(&mut loan, n);
            assert_eq!(publisher.publish(loan, &info(n, SIZE)), n);
        }
        let frame = viewer.frame();
        assert_eq!((frame.seq, frame.skipped), (21, 0));
        intact::<M>(&frame);
    }
}
