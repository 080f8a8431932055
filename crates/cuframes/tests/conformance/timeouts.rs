// SPDX-License-Identifier: LGPL-2.1-or-later
//! Timeouts that exceed the range of the clock.

use std::sync::Arc;
use std::time::Duration;

use cuframes::memory::Backend;
use cuframes::{
    Interrupt, Mode, Next, PacketInfo, Policy, Publisher, Start, Subscriber, SubscriberConfig,
    TrackConfig, Wait,
};
use testing::{SIZE, TestDir, TestSubscriber, item};

use crate::fixture::{MemoryFixture, asleep, intact, publish};

/// All of them end after the last time that the clock or the kernel can represent.
const TIMEOUTS: [Duration; 4] = [
    Duration::MAX,
    Duration::from_secs(u64::MAX),
    Duration::from_secs(i64::MAX as u64),
    Duration::from_nanos(u64::MAX),
];

/// Each wait with such a timeout ends when its condition is met.
pub(crate) fn longest_timeouts_never_elapse<M: MemoryFixture>(test: &TestDir) {
    for timeout in TIMEOUTS {
        let interrupt = Interrupt::new().unwrap();
        let its = interrupt.clone();
        let waits = asleep(move || {
            its.poll(&[], timeout);
            its.sleep(timeout);
            assert!(its.is_set());
        });
        interrupt.set();
        waits.join().unwrap();
        interrupt.clear();

        let (its, config) = (interrupt.clone(), test.subscriber_config());
        let config = SubscriberConfig { mode: Mode::Strict, ..config };
        let connects = asleep(move || Subscriber::connect(config, Some(timeout), &its));
        let backend = M::backend();
        let publisher = test.publisher(backend.clone(), |c| {
            (c.policy, c.stall_timeout) = (Policy::Wait(timeout), Some(timeout));
        });
        let subscriber = connects.join().unwrap().unwrap();
        let viewer = TestSubscriber { subscriber, interrupt };
        let viewer = wait_for_frames::<M>(&publisher, &backend, viewer, timeout);
        wait_for_packets(&publisher, &viewer, timeout);
    }
}

fn wait_for_frames<M: MemoryFixture>(
    publisher: &Publisher,
    backend: &Arc<dyn Backend>,
    mut viewer: TestSubscriber,
    timeout: Duration,
) -> TestSubscriber {
    // After the first frames, busy polling knows their pace.
    for n in 1..=4 {
        let busy_poll = if n % 2 == 0 { timeout } else { Duration::ZERO };
        let waits = std::thread::spawn(move || {
            let wait = Wait { timeout: Some(timeout), busy_poll, ..Wait::default() };
            (viewer.subscriber.next_frame(&wait).unwrap(), viewer)
        });
        publish::<M>(publisher, n);
        let (next, its) = waits.join().unwrap();
        intact::<M>(&item(next));
        viewer = its;
    }
    // The publisher waits for the subscriber.
    let mut last = 4;
    while let Some(loan) = publisher.loan_in(backend, SIZE, &|| true).unwrap() {
        drop(loan);
        last += 1;
        publish::<M>(publisher, last);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| publish::<M>(publisher, last + 1));
        for n in 5..=last + 1 {
            assert_eq!(viewer.frame().seq, n);
        }
    });
    viewer
}

fn wait_for_packets(publisher: &Publisher, viewer: &TestSubscriber, timeout: Duration) {
    let config = TrackConfig { bytes: 4096, time: timeout };
    let track = publisher.add_track(0, "video/x-h264", config).unwrap();
    let mut packets = viewer.subscriber.packets(0, Start::OldestKeyframe);
    let mut next = || {
        let wait = Wait { timeout: Some(timeout), ..Wait::default() };
        packets.next(&wait).unwrap()
    };
    let keyframe = || PacketInfo { keyframe: true, ..Default::default() };
    std::thread::scope(|scope| {
        let _guard = StopOnPanic(publisher);
        // More than the ring contains: the publisher waits for the reader, and the reader for the publisher.
        scope.spawn(|| {
            for n in 0..100 {
                assert_eq!(track.push(keyframe(), &[7; 1000]), Ok(n));
            }
        });
        for n in 0..100 {
            let Next::Item(packet) = next() else { panic!("packet {n}") };
            assert_eq!((packet.seq, packet.lost), (n, 0));
        }
    });
}

/// Ends the waits of a publisher when the test fails, so that the thread that publishes ends too.
struct StopOnPanic<'a>(&'a Publisher);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop_waiting();
        }
    }
}
