// SPDX-License-Identifier: LGPL-2.1-or-later
//! Publishers that violate the protocol, and what a subscriber reports of them.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cuframes::memory::host::HostBackend;
use cuframes::protocol::message::Message;
use cuframes::{Error, Interrupt, Mode, Next, RefusalReason, Start, Subscriber, Wait};
use nix::fcntl::SealFlag;
use nix::sys::memfd::MFdFlags;
use testing::raw::{
    self, FakePublisher, FakeStream, RawMessage, Segment, at, chunk_of, pair, welcome,
};
use testing::{Child, Resources, TestDir, until};

/// What a subscriber received of a stream: a few frames and packets at most, and errors.
#[derive(Debug, Default)]
pub(crate) struct Visit {
    frames: usize,
    packets: usize,
    /// Errors that ended the stream.
    errors: Vec<String>,
}

impl Visit {
    pub(crate) fn take<T>(&mut self, next: cuframes::Result<Next<T>>) -> Option<T> {
        match next {
            Ok(Next::Item(item)) => return Some(item),
            Ok(Next::Lost { text, .. }) => self.errors.push(text),
            Ok(_) => {}
            Err(e) => self.errors.push(e.to_string()),
        }
        None
    }
}

/// Joins the publisher, takes a few frames and packets, and reads all of their bytes.
pub(crate) fn visit(test: &TestDir, mode: Mode) -> Visit {
    let mut visit = Visit::default();
    let interrupt = Interrupt::new().unwrap();
    let config = cuframes::SubscriberConfig { mode, ..test.subscriber_config() };
    let mut subscriber = match Subscriber::connect(config, Some(Duration::ZERO), &interrupt) {
        Ok(subscriber) => subscriber,
        Err(e) => {
            visit.errors.push(e.to_string());
            return visit;
        }
    };
    let wait = Wait::default();
    for _ in 0..4 {
        let Some(frame) = visit.take(subscriber.next_frame(&wait)) else { break };
        std::hint::black_box(frame.bytes().unwrap().iter().fold(0, |sum, b| sum ^ b));
        assert!(
            frame.info.planes.iter().all(|p| (p.offset as usize) < frame.bytes().unwrap().len())
        );
        visit.frames += 1;
    }
    let mut packets = subscriber.packets(0, Start::OldestKeyframe);
    for _ in 0..8 {
        let Some(packet) = visit.take(packets.next(&wait)) else { break };
        std::hint::black_box(packet.data.iter().fold(0, |sum, b| sum ^ b));
        visit.packets += 1;
    }
    visit
}

/// Joins a publisher that keeps the connection.
pub(crate) fn join(
    test: &TestDir,
    publisher: &FakePublisher,
    mut stream: FakeStream,
    mode: Mode,
) -> Subscriber {
    stream.stays = true;
    publisher.serve(stream);
    let interrupt = Interrupt::new().unwrap();
    let config = cuframes::SubscriberConfig { mode, ..test.subscriber_config() };
    Subscriber::connect(config, Some(Duration::ZERO), &interrupt).unwrap()
}

#[test]
fn valid_publisher_is_accepted() {
    let test = TestDir::new("hostile-truth");
    let publisher = FakePublisher::new(&test.dir);
    for mode in [Mode::Newest, Mode::Strict] {
        publisher.serve(FakeStream::new());
        let visit = visit(&test, mode);
        assert_eq!((visit.frames, visit.packets), (1, 2), "{visit:?}");
    }
}

/// A publisher that ends before WELCOME says why.
#[test]
fn bye_instead_of_welcome_is_a_refusal() {
    let test = TestDir::new("hostile-bye");
    let publisher = FakePublisher::new(&test.dir);
    let mut stream = FakeStream::new();
    let bye = Message::Bye { reason: RefusalReason::Closing, text: "it ends".into() };
    stream.script = vec![RawMessage::new(bye, &[])];
    publisher.serve(stream);
    let interrupt = Interrupt::new().unwrap();
    let joined = Subscriber::connect(test.subscriber_config(), Some(Duration::ZERO), &interrupt);
    let error = joined.unwrap_err();
    assert!(matches!(error, Error::Refused { reason: RefusalReason::Closing, .. }), "{error}");
    assert!(error.is_transient());
}

/// The publisher stores the position of a keyframe before the packet counts. Until then a reader neither reads it nor
/// takes it for missing.
#[test]
fn keyframe_counts_with_its_packet() {
    let test = TestDir::new("hostile-keyframe");
    let publisher = FakePublisher::new(&test.dir);
    for start in [Start::LatestKeyframe, Start::NextKeyframe] {
        let stream = FakeStream::new();
        // The second packet is a keyframe of the future, and not published yet.
        stream.track.set(at::HEAD, &[raw::PACKET]);
        stream.track.set(at::KEYFRAME, &[raw::PACKET + 1]);
        let second = at::PACKETS + raw::PACKET as usize;
        stream.track.set(second + 2 * 8, &[1 << 32 | 1]);
        stream.track.set(second + 8 * 8, &[i64::MAX as u64]);
        let (track, page) = (stream.track.fd.clone(), stream.page.fd.clone());
        let subscriber = join(&test, &publisher, stream, Mode::Strict);
        let mut reader = subscriber.packets(0, start);
        let wait = Wait { timeout: Some(Duration::ZERO), ..Wait::default() };
        until(|| matches!(reader.next(&wait).unwrap(), Next::TimedOut));
        let page = Segment::map(page, at::CLAIMS).unwrap();
        assert_eq!(page.word(at::READERS + 8).load(Ordering::Relaxed), 0, "it gives nothing up");
        let track = Segment::map(track, at::PACKETS).unwrap();
        track.set(at::HEAD, &[2 * raw::PACKET]);
        let packet = std::iter::from_fn(|| Some(reader.next(&wait).unwrap()))
            .find_map(|next| if let Next::Item(packet) = next { Some(packet) } else { None });
        assert_eq!(packet.unwrap().seq, 1);
    }
}

/// A change of a valid stream.
type Change = Box<dyn Fn(&mut FakeStream)>;

/// Checks that a subscriber reports each violation with its text.
#[track_caller]
fn check_violations(name: &str, cases: Vec<(String, Change)>) {
    let test = TestDir::new(&format!("hostile-{name}"));
    let publisher = FakePublisher::new(&test.dir);
    for (expected, change) in cases {
        for mode in [Mode::Newest, Mode::Strict] {
            let mut stream = FakeStream::new();
            change(&mut stream);
            publisher.serve(stream);
            let visit = visit(&test, mode);
            let found = visit.errors.iter().any(|e| e.contains(&expected));
            assert!(found, "{expected}: {visit:?}");
        }
    }
}

fn case(
    expected: impl Into<String>,
    change: impl Fn(&mut FakeStream) + 'static,
) -> (String, Change) {
    (expected.into(), Box::new(change))
}

/// Replaces message `n`.
fn send(n: usize, message: Message) -> impl Fn(&mut FakeStream) {
    move |s| s.script[n].bytes = message.encode()
}

/// Replaces the first fd of message `n`.
fn send_fd(n: usize, make: impl Fn() -> Arc<OwnedFd>) -> impl Fn(&mut FakeStream) {
    move |s| s.script[n].fds[0] = make()
}

/// Changes a word of the frame's record.
fn record(word: usize, value: u64) -> impl Fn(&mut FakeStream) {
    move |s| s.control.set(at::RECORD + word * 8, &[value])
}

/// Changes a word of the first packet's header.
fn packet(word: usize, value: u64) -> impl Fn(&mut FakeStream) {
    move |s| s.track.set(at::PACKETS + word * 8, &[value])
}

#[test]
fn publisher_with_other_version_is_reported() {
    let mut cases = vec![
        case("it chose version 3 of it, this side speaks 2 to 2", send(0, welcome(3, 4, 4))),
        case("it chose version 0", send(0, welcome(0, 4, 4))),
        case("the control segment has no valid header", |s| s.control.set(0, &[0])),
        case("the page has no valid header", |s| s.page.set(0, &[!0])),
        case("a track has no valid header", |s| s.track.set(0, &[1])),
    ];
    for version in [0, 1, 2, u32::MAX] {
        let text = format!("layout version {version}, this side knows 4");
        let word = pair(version, 4);
        cases.push(case(&text, move |s| s.control.set(at::VERSION, &[word])));
        cases.push(case(&text, move |s| s.page.set(at::VERSION, &[word])));
        cases.push(case(&text, move |s| s.track.set(at::VERSION, &[word])));
    }
    check_violations("versions", cases);
}

/// Numbers of WELCOME and CHUNK. The memfds may be too short for them as well.
#[test]
fn invalid_geometry_is_reported() {
    let mut cases = vec![
        case("shorter than announced", send(0, welcome(2, 16384, 4))),
        case("shorter than announced", send(0, welcome(2, 4, 16384))),
        case("shorter than announced", send(2, chunk_of(1, 5, 4096, 2048))),
        case("unknown memory kind 4", send(2, chunk_of(4, 4, 4096, 2048))),
        case("host memory only", send(2, chunk_of(2, 4, 4096, 2048))),
        case("host memory only", send(2, chunk_of(3, 4, 4096, 2048))),
        case("too big", announce_whole_address_space),
        case("too many chunks", |s| {
            for id in 2..5000 {
                let message = Message::Chunk {
                    id,
                    kind: 1,
                    device: [0; 16],
                    slots: raw::SLOTS,
                    stride: raw::STRIDE,
                    size: raw::SIZE,
                };
                s.script.push(RawMessage::new(message, &[&s.chunk.fd]));
            }
        }),
    ];
    for (slots, index) in [(0, 4), (4, 0), (4, 3), (16385, 4), (4, 32768), (u32::MAX, u32::MAX)] {
        cases.push(case("are not possible", send(0, welcome(2, slots, index))));
    }
    for (slots, stride, size) in
        [(0, 4096, 2048), (4, 4096, 4097), (4, 0, 0), (4, u64::MAX, 4), (4, 1 << 62, 4)]
    {
        cases.push(case("chunk of invalid size", send(2, chunk_of(1, slots, stride, size))));
    }
    check_violations("geometry", cases);
}

/// A chunk of all the address space, in a memfd that has it.
fn announce_whole_address_space(stream: &mut FakeStream) {
    let fd = nix::sys::memfd::memfd_create("big", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    nix::unistd::ftruncate(&fd, 1 << 46).unwrap();
    let seals = nix::fcntl::FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK);
    nix::fcntl::fcntl(&fd, seals).unwrap();
    stream.script[2] = RawMessage::new(chunk_of(1, 1 << 20, 1 << 26, 4096), &[&Arc::new(fd)]);
}

/// Fds of the wrong kind, and too few or too many of them.
#[test]
fn wrong_fds_are_reported() {
    let huge = || {
        let flags = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        Segment::create(2 << 20, SealFlag::F_SEAL_SHRINK, flags)
    };
    let file = |path: &str| Arc::new(std::fs::File::open(path).unwrap().into());
    let mut cases = Vec::new();
    for n in [0, 2, 3] {
        cases.push(case("not a memfd", send_fd(n, move || file("/dev/null"))));
        cases.push(case("not a memfd", send_fd(n, move || file("/proc/self/mem"))));
        cases.push(case("not a memfd", send_fd(n, || Arc::new(nix::unistd::pipe().unwrap().0))));
        let unsealed =
            || Segment::with(1 << 20, SealFlag::F_SEAL_GROW, MFdFlags::empty()).fd.clone();
        cases.push(case("not sealed", send_fd(n, unsealed)));
        cases.push(case("shorter than announced", send_fd(n, || Segment::new(100).fd.clone())));
        // Few machines reserve huge pages.
        if huge().is_ok() {
            cases.push(case("huge pages", send_fd(n, move || huge().unwrap().fd.clone())));
        }
        cases.push(case("fds came with it", move |s| s.script[n].fds.clear()));
        cases.push(case("fds came with it", move |s| s.script[n].fds.push(s.page.fd.clone())));
        cases.push(case("fds came with it", move |s| {
            s.script[n].fds = vec![s.page.fd.clone(); 253];
        }));
    }
    cases.push(case("fds came with it", |s| s.script[1].fds.push(s.page.fd.clone())));
    cases.push(case("Operation not permitted", |s| {
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_FUTURE_WRITE;
        let page = Segment::with(4096, SealFlag::F_SEAL_SHRINK, MFdFlags::empty()).fd.clone();
        nix::fcntl::fcntl(&page, nix::fcntl::FcntlArg::F_ADD_SEALS(seals)).unwrap();
        s.script[0].fds[1] = page;
    }));
    check_violations("fds", cases);
}

#[test]
fn invalid_frame_is_reported() {
    check_violations(
        "frames",
        vec![
            case("out of range", |s| s.control.set(at::HEAD, &[u64::MAX])),
            case("out of range", |s| s.control.set(at::HEAD, &[1 << 48])),
            case("outside its memory", record(8, raw::SIZE + 1)),
            case("outside its memory", record(8, u64::MAX)),
            case("outside its memory", record(2, 4 << 32)),
            case("outside its memory", record(10, raw::SIZE << 32 | 64)),
            case("record is invalid", record(9, 5)),
            case("record is invalid", record(0, 2)),
        ],
    );
}

#[test]
fn invalid_track_is_reported() {
    let track = |bytes| send(3, Message::Track { track: 0, bytes });
    let format = Message::TrackFormat { track: 1, generation: 1, caps: "a".into() };
    let mut cases = vec![
        case("shorter than announced", track(raw::RING + 8)),
        case("tail of a track are invalid", |s| s.track.set(at::TAIL, &[2 * raw::PACKET + 8])),
        case("tail of a track are invalid", |s| s.track.set(at::HEAD, &[raw::RING + 8])),
        case("tail of a track are invalid", |s| s.track.set(at::HEAD, &[u64::MAX])),
        case("packets of a track are out of order", |s| s.track.set(at::HEAD, &[raw::PACKET + 8])),
        case("header of a packet is invalid", packet(1, raw::RING + 1)),
        case("header of a packet is invalid", packet(1, u64::MAX)),
        // Its references are longer than the packet, or they are none.
        case("after a packet are invalid", packet(9, 101)),
        case("after a packet are invalid", packet(9, 50)),
        // The numbers are at their end.
        case("out of order", packet(0, u64::MAX)),
        case("out of order", |s| {
            let end = 0u64.wrapping_sub(8);
            s.track.set(at::TAIL, &[end - raw::PACKET / 2]);
            s.track.set(at::HEAD, &[end]);
            s.track.set(at::KEYFRAME, &[0]);
        }),
        case("unknown track", send(4, format)),
        case("too many tracks", |s| {
            for track in 0..300 {
                let message = Message::Track { track, bytes: raw::RING };
                s.script.insert(3, RawMessage::new(message, &[&s.track.fd]));
            }
        }),
    ];
    for bytes in [0, 4095, u64::MAX - 7, 1 << 63] {
        cases.push(case("invalid track", track(bytes)));
    }
    check_violations("tracks", cases);
}

#[test]
fn message_out_of_order_is_reported() {
    let refused = Message::Refused { reason: RefusalReason::Full, text: "a".into() };
    let mut cases = Vec::new();
    for (wrong, fds) in [(welcome(2, 4, 4), 2), (refused, 0)] {
        assert_eq!(fds, wrong.fds());
        cases.push(case("out of order", move |s| {
            let all = [&s.control.fd, &s.page.fd];
            s.script[1] = RawMessage::new(wrong.clone(), &all[..fds]);
        }));
    }
    cases.push(case("out of order", send(1, Message::Leave)));
    cases.push(case("first message is not WELCOME", |s| drop(s.script.remove(0))));
    check_violations("order", cases);
}

#[test]
fn malformed_message_is_reported() {
    let text = Message::Format { generation: 1, caps: "a\nb".into() };
    check_violations(
        "malformed",
        vec![
            case("ends too early", |s| s.script[1].bytes.truncate(7)),
            case("after its end", |s| s.script[1].bytes.push(0)),
            case("after its end", |s| s.script[1].bytes.resize(70_000, 0)),
            case("unknown message type", |s| s.script[1].bytes[0] = 77),
            case("control characters", send(1, text)),
        ],
    );
}

/// A publisher keeps the connection, and its newest frame is never there or never complete.
#[test]
fn missing_frame_ends_wait_with_error() {
    let test = TestDir::new("hostile-never");
    let publisher = FakePublisher::new(&test.dir);
    for (offset, word, expected) in [
        // A strict reader would search for each of them.
        (at::HEAD, 1 << 47, "newest frame is missing"),
        (at::SLOT, 0, "newest frame is missing"),
        (at::READY, 0, "never completed"),
    ] {
        let mut stream = FakeStream::new();
        stream.stays = true;
        stream.control.set(offset, &[word]);
        publisher.serve(stream);
        let interrupt = Interrupt::new().unwrap();
        let config = cuframes::SubscriberConfig { mode: Mode::Strict, ..test.subscriber_config() };
        let mut subscriber = Subscriber::connect(config, Some(Duration::ZERO), &interrupt).unwrap();
        let error = match subscriber.next_frame(&Wait::default()) {
            Ok(Next::Lost { text, .. }) => text,
            other => other.unwrap_err().to_string(),
        };
        assert!(error.contains(expected), "{error}");
    }
}

/// A publisher keeps the connection, and never announces the memory of its frame. The wait takes 10 s.
#[test]
fn missing_announcement_ends_wait_with_error() {
    let test = TestDir::new("hostile-unannounced");
    let publisher = FakePublisher::new(&test.dir);
    let mut stream = FakeStream::new();
    stream.script.remove(2);
    let mut subscriber = join(&test, &publisher, stream, Mode::Newest);
    let Next::Lost { reason, text } = subscriber.next_frame(&Wait::default()).unwrap() else {
        panic!("a frame without memory");
    };
    // The publisher may lack resources, which may pass.
    assert_eq!(reason, RefusalReason::NoMemory);
    assert!(text.contains("it did not announce the memory of a frame"), "{text}");
}

/// A publisher that is stopped while it reclaims packets costs a reader its timeout, and no more.
#[test]
fn unfinished_reclaim_does_not_prolong_wait() {
    let test = TestDir::new("hostile-decision");
    let publisher = FakePublisher::new(&test.dir);
    let stream = FakeStream::new();
    stream.track.set(at::RECLAIM, &[raw::PACKET]);
    let subscriber = join(&test, &publisher, stream, Mode::Strict);
    let mut packets = subscriber.packets(0, Start::OldestKeyframe);
    let timeout = Some(Duration::from_millis(30));
    let wait = Wait { timeout, ..Wait::default() };
    assert!(matches!(packets.next(&wait), Ok(Next::TimedOut)));
}

/// A subscriber without credit maps no memory of frames, of any kind.
#[test]
fn memory_of_frames_is_ignored_without_credit() {
    let test = TestDir::new("hostile-no-credit");
    let publisher = FakePublisher::new(&test.dir);
    let mut stream = FakeStream::new();
    stream.stays = true;
    stream.script[2].bytes = chunk_of(2, 4, 4096, 2048).encode();
    publisher.serve(stream);
    let interrupt = Interrupt::new().unwrap();
    let config = cuframes::SubscriberConfig { max_frames: 0, ..test.subscriber_config() };
    let subscriber = Subscriber::connect(config, Some(Duration::ZERO), &interrupt).unwrap();
    let mut packets = subscriber.packets(0, Start::OldestKeyframe);
    for _ in 0..2 {
        let packet = packets.next(&Wait::default());
        assert!(matches!(packet, Ok(Next::Item(_))), "{packet:?}");
    }
}

/// An evicted subscriber gets BYE at once, although frames are left: it might never read all of them.
#[test]
fn evicted_subscriber_gets_bye() {
    let test = TestDir::new("hostile-away");
    let publisher = FakePublisher::new(&test.dir);
    let mut stream = FakeStream::new();
    stream.script.push(RawMessage::new(
        Message::Bye { reason: RefusalReason::Stalled, text: "go".into() },
        &[],
    ));
    let mut subscriber = join(&test, &publisher, stream, Mode::Newest);
    let wait = Wait::default();
    let lost = |text: &str| text == "go";
    until(|| matches!(subscriber.next_frame(&wait), Ok(Next::Lost { text, .. }) if lost(&text)));
    let next = subscriber.packets(0, Start::OldestKeyframe).next(&wait);
    assert!(matches!(&next, Ok(Next::Lost { text, .. }) if lost(text)), "{next:?}");
}

/// A status whose parts never end.
#[test]
fn endless_status_is_cut_off() {
    let test = TestDir::new("hostile-answer");
    let publisher = test.publisher(Arc::new(HostBackend), |_| {});
    let _track = publisher.add_track(0, "", Default::default()).unwrap();
    let truth = cuframes::status("cam", Some(&test.dir)).unwrap();
    drop(publisher);
    let publisher = FakePublisher::new(&test.dir);
    let mut stream = FakeStream::new();
    let part = |n: u64| {
        let status = Box::new(truth.clone());
        RawMessage::new(Message::Status { version: 2, next: n + 1, status }, &[])
    };
    stream.script = (0..1000).map(part).collect();
    publisher.serve(stream);
    let error = cuframes::status("cam", Some(&test.dir)).unwrap_err().to_string();
    assert!(error.contains("its answer has no end"), "{error}");
}

#[test]
fn refusal_is_no_protocol_error() {
    let test = TestDir::new("hostile-refusal");
    let publisher = FakePublisher::new(&test.dir);
    let mut stream = FakeStream::new();
    stream.script = vec![RawMessage::new(
        Message::Refused { reason: RefusalReason::Other, text: "no".into() },
        &[],
    )];
    publisher.serve(stream);
    let interrupt = Interrupt::new().unwrap();
    let joined = Subscriber::connect(test.subscriber_config(), None, &interrupt);
    assert!(matches!(joined, Err(Error::Refused { reason: RefusalReason::Other, .. })));
}

/// Runs in a process of its own, in which nothing else opens or maps anything.
#[test]
fn violations_leak_nothing() {
    let test = TestDir::new("hostile-leaks");
    Child::start(module_path!(), "lies", &test.dir).finish();
}

/// Plays the role of a child.
#[test]
fn child() {
    let Some((role, dir)) = testing::role() else { return };
    assert_eq!(role, "lies");
    let test = TestDir::at(&dir, "hostile-lies-child");
    let publisher = FakePublisher::new(&test.dir);
    let before = Resources::now();
    for n in 0..100 {
        let mut stream = FakeStream::new();
        match n % 5 {
            0 => stream.script[0].fds.push(stream.page.fd.clone()),
            1 => stream.script[0].bytes = welcome(9, 4, 4).encode(),
            2 => stream.page.set(at::VERSION, &[pair(9, 4)]),
            3 => stream.script[2].fds = vec![stream.page.fd.clone(); 20],
            _ => {}
        }
        publisher.serve(stream);
        visit(&test, Mode::Newest);
    }
    until(|| Resources::now() == before);
}
