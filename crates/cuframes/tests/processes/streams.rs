// SPDX-License-Identifier: LGPL-2.1-or-later
//! Streams between processes. Some processes are stopped or killed.

use std::sync::Arc;
use std::time::Duration;

use cuframes::memory::host::HostBackend;
use cuframes::{
    Counters, Error, Frame, Loan, Mode, Next, PacketInfo, Policy, Publisher, PublisherConfig,
    RefusalReason, Start, TrackConfig, Wait,
};
use nix::sys::signal::Signal;
use testing::{
    Child, FrameLog, Resources, TestDir, TestSubscriber, fill, item, number, report, until,
    wait_for_parent,
};

const FRAMES: u64 = 2000;
const PATIENT: Policy = Policy::Wait(Duration::from_secs(60));

fn write(loan: &mut Loan, n: u64) {
    fill(loan.bytes_mut(), n);
}

fn read(frame: &Frame) -> Option<u64> {
    number(frame.bytes().unwrap())
}

#[track_caller]
fn publish(publisher: &Publisher, n: u64) {
    testing::publish(publisher, n, write);
}

#[track_caller]
fn intact(frame: &Frame) {
    assert_eq!(read(frame), Some(frame.seq));
}

fn publisher(test: &TestDir, adjust: impl FnOnce(&mut PublisherConfig)) -> Publisher {
    test.publisher(Arc::new(HostBackend), adjust)
}

/// Plays the role of a child.
#[test]
fn child() {
    let Some((role, dir)) = testing::role() else { return };
    let test = TestDir::at(&dir, &role);
    match &*role {
        "watch newest" => watches(&test, Mode::Newest),
        "watch strict" => watches(&test, Mode::Strict),
        "hold" => holds(&test),
        "follow" => follows(&test),
        "publish" => publishes(&test),
        "record" => records(&test),
        "leave nothing" => leaves_nothing(&test),
        other => panic!("{other}?"),
    }
}

/// Takes the stream to its end, and reports its log.
fn watches(test: &TestDir, mode: Mode) {
    let mut viewer = test.subscriber(|c| c.mode = mode);
    report("ready");
    let seen = FrameLog::record(&mut viewer, read);
    report(format!("{} {} {} {}", seen.first, seen.last, seen.received, seen.skipped));
    // It stays connected until its parent has read the publisher's counters.
    wait_for_parent();
}

/// Runs four processes and the publisher at full speed. Returns first and last frame, received and skipped of
/// each.
fn four(test: &TestDir, mode: Mode, policy: Policy) -> Vec<[u64; 4]> {
    let publisher = publisher(test, |c| c.policy = policy);
    let role = if mode == Mode::Strict { "watch strict" } else { "watch newest" };
    let mut children: Vec<_> =
        (0..4).map(|_| Child::start(module_path!(), role, &test.dir)).collect();
    for child in &mut children {
        assert_eq!(child.read_line(), "ready");
    }
    for n in 1..=FRAMES {
        publish(&publisher, n);
    }
    publisher.end_of_frames();
    let mut all = Vec::new();
    for child in &mut children {
        let seen: [u64; 4] = child.read_numbers().try_into().unwrap();
        let stats = publisher.stats();
        let its_own = stats.subscribers.iter().find(|s| s.pid == child.pid()).unwrap();
        assert_eq!([its_own.cursor, its_own.received, its_own.skipped], seen[1..]);
        assert_eq!((its_own.uid, its_own.mode), (nix::unistd::getuid().as_raw(), mode));
        assert_eq!(seen[1], FRAMES);
        all.push(seen);
    }
    children.into_iter().for_each(Child::finish);
    until(|| publisher.stats().subscribers.is_empty());
    drop(publisher);
    assert_eq!(test.files(), [""; 0]);
    all
}

#[test]
fn strict_subscribers_lose_nothing_at_full_speed() {
    let test = TestDir::new("processes-lossless");
    for seen in four(&test, Mode::Strict, PATIENT) {
        assert_eq!(seen, [1, FRAMES, FRAMES, 0]);
    }
}

#[test]
fn skipped_frames_are_counted() {
    let test = TestDir::new("processes-skipping");
    // Each process checks its own log.
    four(&test, Mode::Newest, Policy::Drop);
    four(&test, Mode::Strict, Policy::Drop);
}

/// Takes 2 frames, which is its whole credit, and continues with the newest when it is resumed.
fn holds(test: &TestDir) {
    let mut viewer = test.subscriber(|_| {});
    report("ready");
    let held = [viewer.frame(), viewer.frame()];
    report("holding");
    wait_for_parent();
    held.iter().for_each(intact);
    drop(held);
    let frame = viewer.frame();
    intact(&frame);
    report(format!("{} {}", frame.seq, frame.skipped));
    wait_for_parent();
}

/// A publisher, and a subscriber that takes each of its frames.
struct Stage<'a> {
    test: &'a TestDir,
    publisher: Publisher,
    stays: TestSubscriber,
    n: u64,
}

impl<'a> Stage<'a> {
    fn new(test: &'a TestDir) -> Self {
        let publisher = publisher(test, |c| c.max_subscribers = 2);
        let stays = test.subscriber(|c| c.mode = Mode::Strict);
        Self { test, publisher, stays, n: 0 }
    }

    fn pass(&mut self, frames: u64) {
        for _ in 0..frames {
            self.n += 1;
            publish(&self.publisher, self.n);
            let frame = self.stays.frame();
            assert_eq!((frame.seq, frame.skipped), (self.n, 0));
            intact(&frame);
        }
    }

    /// Starts a child, and publishes until it holds 2 frames.
    fn start_holding(&mut self) -> Child {
        let mut child = Child::start(module_path!(), "hold", &self.test.dir);
        assert_eq!(child.read_line(), "ready");
        let pid = child.pid();
        until(|| {
            self.pass(1);
            let stats = self.publisher.stats();
            stats.subscribers.iter().any(|s| s.pid == pid && s.held == 2)
        });
        assert_eq!(child.read_line(), "holding");
        child
    }
}

#[test]
fn frames_of_killed_subscriber_are_freed() {
    let test = TestDir::new("processes-subscriber-dies");
    let mut stage = Stage::new(&test);
    // There are two places, so that each child needs the place of the one that was killed.
    for _ in 0..3 {
        let child = stage.start_holding();
        stage.pass(20);
        let slots = stage.publisher.stats().pool.slots;
        assert!(slots > 2 + 4, "{slots}");
        child.kill();
        until(|| stage.publisher.stats().subscribers.len() == 1);
        until(|| {
            stage.pass(1);
            stage.publisher.stats().pool.slots < slots
        });
    }
}

#[test]
fn stopped_subscriber_keeps_its_frames() {
    let test = TestDir::new("processes-subscriber-stops");
    let mut stage = Stage::new(&test);
    let mut child = stage.start_holding();
    child.stop();
    let held = stage.publisher.stats().subscribers[1].clone();
    stage.pass(500);
    assert_eq!(stage.publisher.stats().subscribers[1], held);
    child.signal(Signal::SIGCONT);
    child.resume();
    assert_eq!(child.read_numbers(), [stage.n, stage.n - held.cursor - 1]);
    child.finish();
}

/// Subscribes to one publisher after the other.
fn follows(test: &TestDir) {
    for _ in 0..2 {
        let mut viewer = test.subscriber(|_| {});
        let mut held = viewer.frame();
        report("frames");
        let code = loop {
            match viewer.next_frame() {
                Next::Item(frame) => {
                    intact(&frame);
                    intact(&held);
                    assert!(frame.seq > held.seq);
                    held = frame;
                }
                Next::Lost { reason, .. } => break reason,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(code, RefusalReason::Closing);
        intact(&held);
        report("lost");
    }
    wait_for_parent();
}

/// Publishes until it is killed.
fn publishes(test: &TestDir) {
    let publisher = publisher(test, |_| {});
    report("ready");
    for n in 1.. {
        publish(&publisher, n);
    }
}

#[test]
fn subscribers_survive_killed_publisher() {
    let test = TestDir::new("processes-publisher-dies");
    let mut viewers: Vec<_> =
        (0..2).map(|_| Child::start(module_path!(), "follow", &test.dir)).collect();
    let mut source = Child::start(module_path!(), "publish", &test.dir);
    assert_eq!(source.read_line(), "ready");
    for viewer in &mut viewers {
        assert_eq!(viewer.read_line(), "frames");
    }
    match Publisher::open(test.config(), Arc::new(HostBackend), |_| {}) {
        Err(Error::Busy { owner, .. }) => {
            assert!(owner.contains(&source.pid().to_string()), "{owner}");
        }
        other => panic!("{:?}", other.err()),
    }
    source.kill();
    for viewer in &mut viewers {
        assert_eq!(viewer.read_line(), "lost");
    }
    // Its files are no obstacle.
    assert_eq!(test.files(), ["cam.lock", "cam.sock"]);
    let publisher = publisher(&test, |_| {});
    let mut n = 0;
    until(|| {
        n += 1;
        publish(&publisher, n);
        publisher.stats().subscribers.iter().filter(|s| s.received > 10).count() == 2
    });
    for viewer in &mut viewers {
        assert_eq!(viewer.read_line(), "frames");
    }
    drop(publisher);
    for mut viewer in viewers {
        assert_eq!(viewer.read_line(), "lost");
        viewer.finish();
    }
    assert_eq!(test.files(), [""; 0]);
}

/// Takes packets to the end of the track, and reports its counters.
fn records(test: &TestDir) {
    let viewer = test.subscriber(|c| c.max_frames = 0);
    let mut packets = viewer.subscriber.packets(0, Start::default());
    report("ready");
    let mut next = 0;
    loop {
        match packets.next(&Wait::default()).unwrap() {
            Next::Item(packet) => {
                assert_eq!(packet.data, packet.seq.to_ne_bytes());
                assert_eq!(
                    (packet.seq - next, packet.seq == next),
                    (packet.lost, packet.lost == 0)
                );
                assert!(packet.lost == 0 || packet.info.keyframe, "it goes on at a keyframe");
                next = packet.seq + 1;
            }
            Next::Eos => break,
            other => panic!("{other:?}"),
        }
    }
    let Counters { received, skipped: lost } = packets.counters();
    report(format!("{next} {received} {lost}"));
    wait_for_parent();
}

#[test]
fn stopped_packet_reader_continues() {
    let test = TestDir::new("processes-reader-stops");
    let publisher = publisher(&test, |_| {});
    // A hundred packets fit.
    let config = TrackConfig { bytes: 100 * 136, ..Default::default() };
    let track = publisher.add_track(0, "video/x-h264", config).unwrap();
    let mut child = Child::start(module_path!(), "record", &test.dir);
    assert_eq!(child.read_line(), "ready");
    let mut pushed = 0;
    let mut push = |count: u64| {
        for seq in pushed..pushed + count {
            let info = PacketInfo { keyframe: seq.is_multiple_of(10), ..Default::default() };
            assert_eq!(track.push(info, &seq.to_ne_bytes()), Ok(seq));
        }
        pushed += count;
    };
    let counts = || publisher.stats().subscribers[0].packets[0];
    push(50);
    until(|| counts().received == 50);
    child.stop();
    push(1000);
    child.signal(Signal::SIGCONT);
    until(|| counts().received + counts().lost == 1050);
    push(50);
    track.end();
    let [next, received, lost] = child.read_numbers().try_into().unwrap();
    assert_eq!((next, received + lost), (1100, 1100));
    // From the newest keyframe on it gets every packet again.
    assert_eq!((received, lost), (50 + 10 + 50, 990));
    let seen = counts();
    assert_eq!((seen.track, seen.received, seen.lost), (0, received, lost));
    child.finish();
}

#[test]
fn processes_leak_nothing() {
    // Runs in a process of its own, in which nothing else opens or maps anything.
    let test = TestDir::new("processes-leave-nothing");
    Child::start(module_path!(), "leave nothing", &test.dir).finish();
}

fn leaves_nothing(test: &TestDir) {
    let at_first = Resources::now();

    // Subscribers that join and leave, and some that are killed.
    let source = publisher(test, |_| {});
    let track = source.add_track(0, "video/x-h264", Default::default()).unwrap();
    publish(&source, 1);
    let alone = Resources::now();
    for n in 2..=50 {
        let mut viewer = test.subscriber(|_| {});
        track.push(PacketInfo { keyframe: true, ..Default::default() }, &[1; 100]).unwrap();
        let mut packets = viewer.subscriber.packets(0, Start::default());
        item(packets.next(&Wait::default()).unwrap());
        drop(packets);
        // The newest frame is in use, so that new slots are created for some of them.
        let frame = viewer.frame();
        drop(viewer);
        publish(&source, n);
        intact(&frame);
    }
    let mut n = 50;
    let mut back_to = |resources_then| {
        until(|| {
            n += 1;
            publish(&source, n);
            Resources::now() == resources_then
        });
    };
    back_to(alone);
    for _ in 0..5 {
        let mut child = Child::start(module_path!(), "hold", &test.dir);
        assert_eq!(child.read_line(), "ready");
        child.kill();
    }
    back_to(alone);
    drop((track, source));
    until(|| Resources::now() == at_first);

    // Publishers that end, and some that are killed.
    for _ in 0..50 {
        let source = publisher(test, |_| {});
        let mut viewer = test.subscriber(|_| {});
        publish(&source, 1);
        let frame = viewer.frame();
        drop(source);
        assert!(matches!(viewer.next_frame(), Next::Lost { .. }));
        intact(&frame);
    }
    assert_eq!(test.files(), [""; 0]);
    for _ in 0..5 {
        let mut child = Child::start(module_path!(), "publish", &test.dir);
        assert_eq!(child.read_line(), "ready");
        let mut viewer = test.subscriber(|_| {});
        let frame = viewer.frame();
        child.kill();
        while !matches!(viewer.next_frame(), Next::Lost { .. }) {}
        intact(&frame);
    }
    until(|| Resources::now() == at_first);
}
