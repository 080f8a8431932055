// SPDX-License-Identifier: LGPL-2.1-or-later
//! Sleeping readers are woken for each frame and each packet.

use std::sync::mpsc::{Receiver, Sender, channel};

use cuframes::{Next, PacketInfo, Start, TrackConfig, Wait};
use testing::TestDir;

use crate::fixture::{Host, MemoryFixture, publish};

/// More than the publishing thread wakes itself.
const SUBSCRIBERS: usize = 20;
const ROUNDS: u64 = 200;

/// Sends the number of each item, until the connection ends or the test has failed.
fn report<T>(numbers: &Sender<u64>, mut next: impl FnMut() -> Next<T>, number: fn(&T) -> u64) {
    while let Next::Item(item) = next()
        && numbers.send(number(&item)).is_ok()
    {}
}

/// The next item is published when everyone has the last one, so that a single lost wake-up ends the test.
#[test]
fn every_reader_is_woken_for_every_item() {
    let test = TestDir::new("wakeups");
    let publisher = test.publisher(Host::backend(), |c| c.max_subscribers = SUBSCRIBERS as u32);
    let track = publisher.add_track(7, "video/x-h264", TrackConfig::default()).unwrap();
    let (frames, taken) = channel();
    let (packets, read) = channel();
    let threads: Vec<_> = (0..SUBSCRIBERS)
        .flat_map(|_| {
            let mut viewer = test.subscriber(|_| {});
            let mut reader = viewer.subscriber.packets(7, Start::NextKeyframe);
            let (frames, packets) = (frames.clone(), packets.clone());
            let viewing = std::thread::spawn(move || {
                let next = || viewer.next_frame();
                report(&frames, next, |frame| frame.seq);
            });
            let reading = std::thread::spawn(move || {
                let next = || reader.next(&Wait::default()).unwrap();
                report(&packets, next, |packet| packet.seq);
            });
            [viewing, reading]
        })
        .collect();
    let all = |numbers: &Receiver<u64>, expected| {
        (0..SUBSCRIBERS).for_each(|_| assert_eq!(numbers.recv().unwrap(), expected));
    };
    for n in 1..=ROUNDS {
        publish::<Host>(&publisher, n);
        all(&taken, n);
        track.push(PacketInfo { keyframe: true, ..Default::default() }, &[1; 10]).unwrap();
        all(&read, n - 1);
    }
    drop(publisher);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
