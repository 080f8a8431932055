// SPDX-License-Identifier: LGPL-2.1-or-later
//! The status of a publisher, for programs that do not subscribe.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cuframes::memory::{Kind, host::HostBackend};
use cuframes::protocol::{
    message::{Message, VERSIONS},
    wire::MAX_MESSAGE,
};
use cuframes::{
    Error, LiveKey, Loan, Mode, PacketInfo, Publisher, PublisherConfig, RefusalReason, TrackConfig,
    keys, status,
};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr};
use testing::{CAPS, SIZE, TestDir, fill, publish, until};

const OWN: (u16, u16) = (*VERSIONS.start(), *VERSIONS.end());

fn write(loan: &mut Loan, n: u64) {
    fill(loan.bytes_mut(), n);
}

fn publisher(test: &TestDir, adjust: impl FnOnce(&mut PublisherConfig)) -> Publisher {
    test.publisher(Arc::new(HostBackend), adjust)
}

#[test]
fn status_has_everything() {
    let test = TestDir::new("observe");
    let publisher = publisher(&test, |c| c.name = "front door".into());
    let asked = status("cam", Some(&test.dir)).unwrap();
    assert_eq!((asked.key.as_str(), asked.name.as_str()), ("cam", "front door"));
    assert_eq!(asked.pid, std::process::id() as i32);
    assert_eq!(asked.uid, nix::unistd::getuid().as_raw());
    assert_eq!((asked.published, asked.last_frame_ns), (0, None));
    assert_eq!(asked.subscribers, []);

    let mut viewer = test.subscriber(|c| {
        c.name = "detector".into();
        c.mode = Mode::Strict;
    });
    publish(&publisher, 1, write);
    let frame = viewer.frame();
    publish(&publisher, 2, write);
    let track = publisher.add_track(3, "video/x-h264", TrackConfig::default()).unwrap();
    track.push(PacketInfo { keyframe: true, ..Default::default() }, b"key").unwrap();
    publisher.set_latency(Duration::from_millis(7));

    // A publisher updates its status at intervals.
    until(|| status("cam", Some(&test.dir)).unwrap().latency_ns == 7_000_000);
    let asked = status("cam", Some(&test.dir)).unwrap();
    let stats = publisher.stats();
    assert_eq!((asked.caps.as_str(), asked.memory), (CAPS, Kind::Host));
    assert_eq!((asked.published, asked.dropped), (2, 0));
    assert_eq!((asked.slots, asked.chunks), (stats.pool.slots, stats.pool.chunks));
    assert_eq!(asked.bytes, stats.pool.bytes);
    assert_eq!((asked.max_subscribers, asked.max_frames_per_subscriber), (32, 8));
    assert!(
        asked.last_frame_ns.unwrap() >= frame.published_ns && asked.time_ns >= frame.published_ns
    );
    let [seen] = &asked.tracks[..] else { panic!("{:?}", asked.tracks) };
    assert_eq!((seen.track, seen.caps.as_str(), seen.published), (3, "video/x-h264", 1));
    let [seen] = &asked.subscribers[..] else { panic!("{:?}", asked.subscribers) };
    assert_eq!((seen.name.as_str(), seen.pid), ("detector", std::process::id() as i32));
    assert_eq!((seen.mode, seen.max_frames, seen.held), (Mode::Strict, 2, 1));
    assert_eq!((seen.lag, seen.received, seen.skipped), (1, 1, 0));
    assert!(seen.latency_ns.is_some(), "the frame is still there");
}

#[test]
fn rates_are_between_two_snapshots() {
    let test = TestDir::new("rates");
    let publisher = publisher(&test, |_| {});
    let _viewer = test.subscriber(|_| {});
    let mut before = status("cam", Some(&test.dir)).unwrap();
    for n in 1..=3 {
        publish(&publisher, n, write);
    }
    let mut after = before.clone();
    until(|| {
        after = status("cam", Some(&test.dir)).unwrap();
        after.published == 3
    });
    before.published = 1;
    before.last_frame_ns = Some(1_000_000_000);
    after.last_frame_ns = Some(1_100_000_000);
    assert_eq!(after.fps_since(&before), Some(20.0));
    assert_eq!(after.fps_since(&after), Some(0.0));
    before.time_ns = 0;
    after.time_ns = 2_000_000_000;
    after.subscribers[0].received = 10;
    assert_eq!(after.taken_since(&before, after.subscribers[0].id), Some(5.0));
    before.epoch += 1;
    assert_eq!(after.fps_since(&before), None, "another run has other counters");
}

/// The publisher answers with a snapshot, which it replaces after 50 ms.
#[test]
fn status_is_renewed() {
    let test = TestDir::new("renewed");
    let publisher = publisher(&test, |_| {});
    for n in 1..=3 {
        publish(&publisher, n, write);
        until(|| status("cam", Some(&test.dir)).unwrap().published == n);
        let asked = Instant::now();
        until(|| asked.elapsed() > Duration::from_millis(60));
    }
}

#[test]
fn status_requests_take_no_place() {
    let test = TestDir::new("places");
    let _publisher = publisher(&test, |c| c.max_subscribers = 1);
    let pending: Vec<_> = (0..3).map(|_| connect(&test.dir)).collect();
    for _ in 0..100 {
        status("cam", Some(&test.dir)).unwrap();
    }
    let _viewer = test.subscriber(|_| {});
    until(|| status("cam", Some(&test.dir)).unwrap().subscribers.len() == 1);
    drop(pending);
}

#[test]
fn long_status_comes_in_several_messages() {
    let test = TestDir::new("pieces");
    let publisher = publisher(&test, |_| {});
    let long = "x".repeat(10_000);
    let config = TrackConfig { bytes: 4096, ..Default::default() };
    for track in 0..20 {
        publisher.add_track(track, &long, config).unwrap();
    }
    // The caps are longer than a message allows, so they are left out.
    publisher.add_track(20, &"y".repeat(20_000), config).unwrap();
    let _viewers: Vec<_> = (0..3).map(|_| test.subscriber(|_| {})).collect();
    let mut asked = status("cam", Some(&test.dir)).unwrap();
    until(|| {
        asked = status("cam", Some(&test.dir)).unwrap();
        asked.subscribers.len() == 3 && asked.tracks.len() == 21
    });
    assert!(asked.tracks.iter().map(|t| t.track).eq(0..21));
    assert!(asked.tracks[..20].iter().all(|t| t.caps == long));
    assert_eq!(asked.tracks[20].caps, "");
    assert!(asked.subscribers.is_sorted_by_key(|s| s.id));
}

#[test]
fn only_live_keys_are_listed() {
    let test = TestDir::new("keys");
    let dir = Some(test.dir.as_path());
    assert_eq!(keys(dir), []);
    let open = |key: &str| publisher(&test, |c| c.key = key.to_owned());
    let key = |key: &str| LiveKey { key: key.to_owned(), dir: test.dir.clone() };
    let (_b, a) = (open("b"), open("a"));
    // Files of a killed publisher, names that are no keys, and a lock without a socket.
    for name in ["dead.sock", "dead.lock", ".hidden.sock", "no key.sock", "other", "c.lock"] {
        std::fs::write(test.dir.join(name), "").unwrap();
    }
    assert_eq!(keys(dir), [key("a"), key("b")]);
    drop(a);
    assert_eq!(keys(dir), [key("b")]);
    assert_eq!(keys(Some(&test.dir.join("missing"))), []);
    let missing = status("dead", dir).unwrap_err();
    assert!(matches!(missing, Error::NoPublisher { .. }), "{missing}");
}

#[test]
fn unreadable_lock_counts_as_live() {
    let test = TestDir::new("unreadable");
    let _publisher = publisher(&test, |_| {});
    let lock = test.dir.join("cam.lock");
    std::fs::set_permissions(&lock, std::fs::Permissions::from_mode(0o000)).unwrap();
    assert_eq!(keys(Some(&test.dir)).len(), 1);
}

fn connect(dir: &Path) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    let address = UnixAddr::new(&dir.join("cam.sock")).unwrap();
    socket::connect(fd.as_raw_fd(), &address).unwrap();
    fd
}

/// Sends bytes and returns the answer; `None` if the publisher closed the connection.
fn request(fd: &OwnedFd, bytes: &[u8]) -> Option<Message> {
    socket::send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).ok()?;
    let mut answer = vec![0; MAX_MESSAGE];
    let len = socket::recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty()).ok()?;
    (len > 0).then(|| Message::decode(&answer[..len], 0).unwrap())
}

#[test]
fn status_request_of_other_version_is_refused() {
    let test = TestDir::new("version");
    let _publisher = publisher(&test, |_| {});
    let later = Message::StatusRequest { versions: (70, 99), from: 0 };
    match request(&connect(&test.dir), &later.encode()) {
        Some(Message::Refused { reason: RefusalReason::Version, text }) => {
            assert!(text.contains("the observer speaks versions 70 to 99"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let both = Message::StatusRequest { versions: (1, 99), from: 0 };
    let answer = request(&connect(&test.dir), &both.encode());
    assert!(
        matches!(answer, Some(Message::Status { version, next: 0, .. }) if version == OWN.1),
        "{answer:?}"
    );
}

#[test]
fn connection_ends_with_last_part_of_status() {
    let test = TestDir::new("done");
    let publisher = publisher(&test, |_| {});
    let fd = connect(&test.dir);
    let request_from = |from| Message::StatusRequest { versions: OWN, from }.encode();
    // There is no entry at or after this one. That is an answer as well.
    let answer = request(&fd, &request_from(u64::MAX));
    assert!(matches!(answer, Some(Message::Status { next: 0, .. })), "{answer:?}");
    assert_eq!(request(&fd, &request_from(0)), None);
    // The connection does not become a subscriber.
    publish(&publisher, 1, write);
    assert_eq!(publisher.stats().subscribers, []);
    assert_eq!(publisher.loan(SIZE).unwrap().unwrap().len() % SIZE, 0);
}

#[test]
fn endless_status_requests_are_cut_off() {
    let test = TestDir::new("chatty");
    let publisher = publisher(&test, |_| {});
    let config = TrackConfig { bytes: 4096, ..Default::default() };
    for track in 0..10 {
        publisher.add_track(track, &"x".repeat(10_000), config).unwrap();
    }
    let fd = connect(&test.dir);
    let first = Message::StatusRequest { versions: OWN, from: 0 }.encode();
    // It never requests the last part.
    until(|| match request(&fd, &first) {
        Some(Message::Status { next, .. }) => {
            assert_ne!(next, 0);
            false
        }
        Some(other) => panic!("{other:?}"),
        None => true,
    });
    assert!(status("cam", Some(&test.dir)).is_ok());
}
