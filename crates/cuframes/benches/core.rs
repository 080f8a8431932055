// SPDX-License-Identifier: LGPL-2.1-or-later
//! Time of the library for one frame and one packet, with publisher and subscribers in one process: `make
//! bench-core`. Only the group *wake* has sleeping subscribers, and measures what their wake-up costs the
//! publisher. `make bench` measures wake-ups between processes.

use std::hint::black_box;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use cuframes::memory::host::HostBackend;
use cuframes::{
    FrameInfo, Interrupt, Next, PacketInfo, Plane, Publisher, PublisherConfig, Start, Subscriber,
    SubscriberConfig, TrackConfig, Wait,
};

/// Bytes of a frame. The library does not touch them, so that one size is enough.
const SIZE: usize = 1920 * 1080 * 3 / 2;
const PACKETS: [usize; 4] = [256, 4096, 32_768, 262_144];

struct Fixture {
    publisher: Publisher,
    subscribers: Vec<Subscriber>,
    interrupt: Interrupt,
    // Dropped last.
    dir: Dir,
}

struct Dir(std::path::PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Fixture {
    fn new(subscribers: usize) -> Self {
        let dir = Dir(std::env::temp_dir().join(format!("cuframes-core-{}", std::process::id())));
        std::fs::create_dir_all(&dir.0).unwrap();
        let config =
            PublisherConfig { runtime_dir: Some(dir.0.clone()), ..PublisherConfig::new("core") };
        let publisher = Publisher::open(config, Arc::new(HostBackend), |_| {}).unwrap();
        publisher.set_format("video/x-raw", SIZE).unwrap();
        let mut fixture =
            Self { publisher, subscribers: vec![], interrupt: Interrupt::new().unwrap(), dir };
        fixture.subscribers = (0..subscribers).map(|_| fixture.subscriber()).collect();
        fixture
    }

    fn subscriber(&self) -> Subscriber {
        let config = SubscriberConfig {
            runtime_dir: Some(self.dir.0.clone()),
            ..SubscriberConfig::new("core")
        };
        Subscriber::connect(config, None, &self.interrupt).unwrap()
    }

    fn publish(&self) {
        let loan = self.publisher.loan(SIZE).unwrap().expect("no frame is held");
        let planes = [Plane { offset: 0, stride: 1920 }].into_iter().collect();
        let info = FrameInfo { pts: Some(1), size: SIZE, planes, ..Default::default() };
        black_box(self.publisher.publish(loan, &info));
    }

    fn wait(&self) -> Wait {
        Wait { timeout: Some(Duration::ZERO), ..Wait::default() }
    }
}

/// Loans a slot and publishes it, with subscribers that take nothing.
fn publish(c: &mut Criterion) {
    let mut group = c.benchmark_group("publish");
    for subscribers in [0, 1, 8, 32] {
        let fixture = Fixture::new(subscribers);
        group.bench_function(BenchmarkId::from_parameter(subscribers), |b| {
            b.iter(|| fixture.publish());
        });
    }
}

/// Publishes a frame, which a subscriber claims and releases. Also polls without a new frame.
fn take(c: &mut Criterion) {
    let mut fixture = Fixture::new(1);
    let mut subscriber = fixture.subscribers.pop().unwrap();
    c.bench_function("publish, claim and release", |b| {
        b.iter(|| {
            fixture.publish();
            let next = subscriber.next_frame(&fixture.wait()).unwrap();
            assert!(matches!(next, Next::Item(_)));
        });
    });
    c.bench_function("look for a frame in vain", |b| {
        b.iter(|| assert!(matches!(subscriber.next_frame(&fixture.wait()), Ok(Next::TimedOut))));
    });
}

fn packets(c: &mut Criterion) {
    let fixture = Fixture::new(1);
    let config = TrackConfig { bytes: 4 << 20, ..Default::default() };
    let track = fixture.publisher.add_track(0, "video/x-h264", config).unwrap();
    let info = || PacketInfo { keyframe: true, ..Default::default() };
    let mut reader = fixture.subscribers[0].packets(0, Start::LatestKeyframe);
    let data = vec![0x5a; PACKETS[PACKETS.len() - 1]];
    let mut group = c.benchmark_group("packet");
    for len in PACKETS {
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("write", len), |b| {
            b.iter(|| track.push(info(), &data[..len]).unwrap());
        });
        group.bench_function(BenchmarkId::new("write and read", len), |b| {
            b.iter(|| {
                track.push(info(), &data[..len]).unwrap();
                let next = reader.next(&fixture.wait()).unwrap();
                let Next::Item(packet) = next else { panic!("the packet is there") };
                black_box(packet.data.len())
            });
        });
    }
}

/// Publishes to subscribers that sleep, each in a thread of its own.
fn wake(c: &mut Criterion) {
    let mut group = c.benchmark_group("wake");
    for subscribers in [1, 8, 32] {
        let mut fixture = Fixture::new(subscribers);
        let sleepers = std::mem::take(&mut fixture.subscribers);
        thread::scope(|scope| {
            for mut subscriber in sleepers {
                let wait = Wait::default();
                scope.spawn(move || {
                    while let Ok(Next::Item(frame)) = subscriber.next_frame(&wait) {
                        drop(frame);
                    }
                });
            }
            group.bench_function(BenchmarkId::from_parameter(subscribers), |b| {
                b.iter_custom(|iterations| {
                    let mut total = Duration::ZERO;
                    for _ in 0..iterations {
                        // Everyone falls asleep meanwhile.
                        thread::sleep(Duration::from_millis(3));
                        let begin = Instant::now();
                        fixture.publish();
                        total += begin.elapsed();
                    }
                    total
                });
            });
            fixture.interrupt.set();
        });
    }
}

criterion_group! {
    name = core;
    config = Criterion::default().sample_size(50).measurement_time(Duration::from_secs(2))
        .warm_up_time(Duration::from_millis(500));
    targets = publish, take, packets, wake
}
criterion_main!(core);
