// SPDX-License-Identifier: LGPL-2.1-or-later
//! Packets, which do not depend on the kind of memory.

use std::sync::Arc;
use std::time::Duration;

use cuframes::memory::host::HostBackend;
use cuframes::{
    Interrupt, Mode, Next, Packet, PacketInfo, PacketReader, Policy, Publisher, PublisherConfig,
    Start, Subscriber, SubscriberConfig, Track, TrackConfig, Wait,
};

use testing::{TestDir, item};

mod delivery;
mod lossless_readers;
mod retention;
mod starts;

const LONG: Duration = Duration::from_secs(3600);

/// A publisher of track 0.
struct Source {
    test: TestDir,
    publisher: Publisher,
    track: Track,
}

impl Source {
    fn new(test: &str, config: TrackConfig) -> Self {
        let test = TestDir::new(test);
        let publisher = Publisher::open(test.config(), Arc::new(HostBackend), |_| {}).unwrap();
        let track = publisher.add_track(0, "a", config).unwrap();
        Self { test, publisher, track }
    }

    fn reader(&self, start: Start) -> Reader {
        Reader::of(&self.test, 0, start)
    }

    /// Packets of a byte each, keyframes where there is a `K`.
    fn push(&self, packets: &str) -> u64 {
        let push = |c| self.track.push(info(c == 'K'), &[c as u8]).unwrap();
        packets.chars().map(push).fold(0, |_, seq| seq)
    }

    fn buffered(&self) -> u64 {
        self.publisher.stats().tracks[0].buffered
    }
}

fn info(keyframe: bool) -> PacketInfo {
    PacketInfo { keyframe, ..Default::default() }
}

/// Returns the bytes that a packet of this length takes in the ring.
fn room(len: u64) -> u64 {
    128 + len.next_multiple_of(8)
}

struct Reader {
    packets: PacketReader,
    _subscriber: Subscriber,
}

impl Reader {
    fn of(test: &TestDir, track: u32, start: Start) -> Self {
        let interrupt = Interrupt::new().unwrap();
        let config = SubscriberConfig { max_frames: 0, ..test.subscriber_config() };
        let subscriber = Subscriber::connect(config, None, &interrupt).unwrap();
        Self { packets: subscriber.packets(track, start), _subscriber: subscriber }
    }

    fn next(&mut self) -> Next<Packet> {
        self.packets.next(&Wait::default()).unwrap()
    }

    /// Returns the next packet if there is one, without waiting.
    fn poll(&mut self) -> Next<Packet> {
        let wait = Wait { timeout: Some(Duration::ZERO), ..Wait::default() };
        self.packets.next(&wait).unwrap()
    }

    #[track_caller]
    fn packet(&mut self) -> Packet {
        item(self.next())
    }
}

fn bounds(bytes: u64, time: Duration) -> TrackConfig {
    TrackConfig { bytes, time }
}

/// A publisher that waits for lossless readers, and the small ring of its track.
fn waiting_source(test: &str, timeout: Duration, packets: u64) -> Source {
    let test = TestDir::new(test);
    let config = PublisherConfig { policy: Policy::Wait(timeout), ..test.config() };
    let publisher = Publisher::open(config, Arc::new(HostBackend), |_| {}).unwrap();
    let track = publisher.add_track(0, "a", bounds(packets * room(8), LONG)).unwrap();
    Source { test, publisher, track }
}

fn lossless(test: &TestDir, start: Start) -> Reader {
    let interrupt = Interrupt::new().unwrap();
    let config = SubscriberConfig { max_frames: 0, mode: Mode::Strict, ..test.subscriber_config() };
    let subscriber = Subscriber::connect(config, None, &interrupt).unwrap();
    Reader { packets: subscriber.packets(0, start), _subscriber: subscriber }
}
