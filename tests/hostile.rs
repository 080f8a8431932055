//! Peers that lie. What they say costs them their connection, and nobody else anything.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use children::Child;
use cuframes::memory::host::HostBackend;
use cuframes::protocol::message::{Hello, Message};
use cuframes::{
    Error, Interrupt, Mode, Next, Publisher, PublisherConfig, PublisherEvent, RefusalReason, Start,
    Subscriber, Wait,
};
use nix::fcntl::{FallocateFlags, SealFlag, fallocate};
use nix::sys::memfd::MFdFlags;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use raw::{Liar, Peer, Said, Segment, World, at, chunk_of, pair, welcome};
use support::{SIZE, Site, fill, info, number, until};

#[path = "support/children.rs"]
mod children;
#[path = "hostile/raw.rs"]
mod raw;
mod support;

/// What a subscriber got out of a world, at most a few of each.
#[derive(Debug, Default)]
struct Got {
    frames: usize,
    packets: usize,
    /// What ended it.
    errors: Vec<String>,
}

impl Got {
    fn take<T>(&mut self, next: cuframes::Result<Next<T>>) -> Option<T> {
        match next {
            Ok(Next::Item(item)) => return Some(item),
            Ok(Next::Lost { text, .. }) => self.errors.push(text),
            Ok(_) => {}
            Err(e) => self.errors.push(e.to_string()),
        }
        None
    }
}

/// Joins whoever publishes, takes what there is, and reads all of it.
fn visit(site: &Site, mode: Mode) -> Got {
    let mut got = Got::default();
    let interrupt = Interrupt::new().unwrap();
    let config = cuframes::SubscriberConfig { mode, ..site.subscriber_config() };
    let mut subscriber = match Subscriber::connect(config, Some(Duration::ZERO), &interrupt) {
        Ok(subscriber) => subscriber,
        Err(e) => {
            got.errors.push(e.to_string());
            return got;
        }
    };
    let wait = Wait::forever(&interrupt);
    for _ in 0..4 {
        let Some(frame) = got.take(subscriber.next_frame(&wait)) else { break };
        std::hint::black_box(frame.bytes().iter().fold(0, |sum, b| sum ^ b));
        assert!(frame.info.planes.iter().all(|p| (p.offset as usize) < frame.bytes().len()));
        got.frames += 1;
    }
    let mut packets = subscriber.packets(0, Start::OldestKeyframe);
    for _ in 0..8 {
        let Some(packet) = got.take(packets.next(&wait)) else { break };
        std::hint::black_box(packet.data.iter().fold(0, |sum, b| sum ^ b));
        got.packets += 1;
    }
    got
}

/// Open fds and shared mappings of this process.
fn resources() -> (usize, usize) {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (fds, maps.lines().filter(|l| l.contains("/memfd:")).count())
}

#[test]
fn the_truth_is_believed() {
    let site = Site::new("hostile-truth");
    let liar = Liar::new(&site.dir);
    for mode in [Mode::Newest, Mode::Strict] {
        liar.tell(World::new());
        let got = visit(&site, mode);
        assert_eq!((got.frames, got.packets), (1, 2), "{got:?}");
    }
}

/// A lie about each thing that a publisher says, and what a subscriber has to say to it.
#[test]
fn lies_of_a_publisher_are_found_out() {
    let site = Site::new("hostile-lies");
    let liar = Liar::new(&site.dir);
    let lie = |expected: &str, change: &dyn Fn(&mut World)| {
        for mode in [Mode::Newest, Mode::Strict] {
            let mut world = World::new();
            change(&mut world);
            liar.tell(world);
            let got = visit(&site, mode);
            assert!(got.errors.iter().any(|e| e.contains(expected)), "{expected}: {got:?}");
        }
    };
    let record = |word: usize, value: u64| {
        move |w: &mut World| w.control.set(at::RECORD + word * 8, &[value])
    };
    let entry = |word: usize, value: u64| {
        move |w: &mut World| w.track.set(at::PACKETS + word * 8, &[value])
    };
    let say =
        |n: usize, message: Message| move |w: &mut World| w.script[n].bytes = message.encode();

    // Versions, by name.
    lie("it chose version 3 of it, this side speaks 2 to 2", &say(0, welcome(3, 4, 4)));
    lie("it chose version 0", &say(0, welcome(0, 4, 4)));
    for version in [0, 1, 2, u32::MAX] {
        let text = format!("layout version {version}, this side knows 3");
        lie(&text, &|w| w.control.set(at::VERSION, &[pair(version, 4)]));
        lie(&text, &|w| w.page.set(at::VERSION, &[pair(version, 4)]));
        lie(&text, &|w| w.track.set(at::VERSION, &[pair(version, 4)]));
    }
    lie("the control segment is not what it claims", &|w| w.control.set(0, &[0]));
    lie("the page is not what it claims", &|w| w.page.set(0, &[!0]));
    lie("a track is not what it claims", &|w| w.track.set(0, &[1]));

    // Numbers of WELCOME, for which the memfds may be too short as well.
    for (slots, index) in [(0, 4), (4, 0), (4, 3), (16385, 4), (4, 32768), (u32::MAX, u32::MAX)] {
        lie("are not possible", &say(0, welcome(2, slots, index)));
    }
    lie("shorter than announced", &say(0, welcome(2, 16384, 4)));
    lie("shorter than announced", &say(0, welcome(2, 4, 16384)));

    // Fds of the wrong kind, and too few or too many of them.
    let fd =
        |n: usize, make: fn() -> Arc<OwnedFd>| move |w: &mut World| w.script[n].fds[0] = make();
    for n in [0, 2, 3] {
        lie("not a memfd", &fd(n, || Arc::new(std::fs::File::open("/dev/null").unwrap().into())));
        lie(
            "not a memfd",
            &fd(n, || Arc::new(std::fs::File::open("/proc/self/mem").unwrap().into())),
        );
        lie("not a memfd", &fd(n, || Arc::new(nix::unistd::pipe().unwrap().0)));
        lie(
            "not sealed",
            &fd(n, || Segment::with(1 << 20, SealFlag::F_SEAL_GROW, MFdFlags::empty()).fd.clone()),
        );
        lie("shorter than announced", &fd(n, || Segment::new(100).fd.clone()));
        let huge = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        if Segment::create(2 << 20, SealFlag::F_SEAL_SHRINK, huge).is_ok() {
            lie(
                "huge pages",
                &fd(n, || {
                    let huge = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
                    Segment::with(2 << 20, SealFlag::F_SEAL_SHRINK, huge).fd.clone()
                }),
            );
        }
        lie("fds came with it", &|w| w.script[n].fds.clear());
        lie("fds came with it", &|w| w.script[n].fds.push(w.page.fd.clone()));
        lie("fds came with it", &|w| w.script[n].fds = vec![w.page.fd.clone(); 253]);
    }
    lie("fds came with it", &|w| w.script[1].fds.push(w.page.fd.clone()));
    lie("Operation not permitted", &|w| {
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_FUTURE_WRITE;
        w.script[0].fds[1] =
            Segment::with(4096, SealFlag::F_SEAL_SHRINK, MFdFlags::empty()).fd.clone();
        nix::fcntl::fcntl(&w.script[0].fds[1], nix::fcntl::FcntlArg::F_ADD_SEALS(seals)).unwrap();
    });

    // Chunks.
    for (kind, slots, stride, size) in [
        (1, 0, 4096, 2048),
        (1, 4, 4096, 4097),
        (1, 4, 0, 0),
        (1, 4, u64::MAX, 4),
        (1, 4, 1 << 62, 4),
    ] {
        lie("impossible size", &say(2, chunk_of(kind, slots, stride, size)));
    }
    lie("shorter than announced", &say(2, chunk_of(1, 5, 4096, 2048)));
    lie("unknown memory kind 4", &say(2, chunk_of(4, 4, 4096, 2048)));
    for kind in [2, 3] {
        lie("host memory only", &say(2, chunk_of(kind, 4, 4096, 2048)));
    }
    // All of the address space, in a memfd that has it.
    lie("too big", &|w| {
        let fd = nix::sys::memfd::memfd_create("big", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        nix::unistd::ftruncate(&fd, 1 << 46).unwrap();
        let seals = nix::fcntl::FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK);
        nix::fcntl::fcntl(&fd, seals).unwrap();
        w.script[2] = Said::new(chunk_of(1, 1 << 20, 1 << 26, 4096), &[&Arc::new(fd)]);
    });
    lie("too many tracks", &|w| {
        for track in 0..300 {
            let message = Message::Track { track, bytes: raw::RING };
            let said = Said::new(message, &[&w.track.fd]);
            w.script.insert(3, said);
        }
    });

    // Frames.
    lie("impossible", &|w| w.control.set(at::HEAD, &[u64::MAX]));
    lie("impossible", &|w| w.control.set(at::HEAD, &[1 << 48]));
    lie("outside its memory", &record(8, raw::SIZE + 1));
    lie("outside its memory", &record(8, u64::MAX));
    lie("outside its memory", &record(2, 4 << 32));
    lie("outside its memory", &record(10, raw::SIZE << 32 | 64));
    lie("makes no sense", &record(9, 5));
    lie("makes no sense", &record(0, 2));

    // Tracks.
    for bytes in [0, 4095, u64::MAX - 7, 1 << 63] {
        lie("impossible track", &say(3, Message::Track { track: 0, bytes }));
    }
    lie("shorter than announced", &say(3, Message::Track { track: 0, bytes: raw::RING + 8 }));
    lie("end are impossible", &|w| w.track.set(at::TAIL, &[2 * raw::PACKET + 8]));
    lie("end are impossible", &|w| w.track.set(at::HEAD, &[raw::RING + 8]));
    lie("end are impossible", &|w| w.track.set(at::HEAD, &[u64::MAX]));
    lie("packets of a track are in no order", &|w| w.track.set(at::HEAD, &[raw::PACKET + 8]));
    lie("header of a packet is impossible", &entry(1, raw::RING + 1));
    lie("header of a packet is impossible", &entry(1, u64::MAX));
    // Its references are longer than it is, or no references.
    lie("behind a packet makes no sense", &entry(9, 101));
    lie("behind a packet makes no sense", &entry(9, 50));
    // The numbers are at their end.
    lie("no order", &entry(0, u64::MAX));
    lie("no order", &|w| {
        let end = 0u64.wrapping_sub(8);
        w.track.set(at::TAIL, &[end - raw::PACKET / 2]);
        w.track.set(at::HEAD, &[end]);
        w.track.set(at::KEYFRAME, &[0]);
    });
    lie(
        "unknown track",
        &say(4, Message::TrackFormat { track: 1, generation: 1, caps: "a".into() }),
    );

    // Order.
    for wrong in
        [welcome(2, 4, 4), Message::Refused { code: RefusalReason::Full, text: "a".into() }]
    {
        let fds = if wrong.fds() > 0 { 2 } else { 0 };
        lie("out of order", &|w| {
            let fds = [&w.control.fd, &w.page.fd];
            w.script[1] = Said::new(wrong.clone(), &fds[..if wrong.fds() > 0 { 2 } else { 0 }]);
        });
        assert_eq!(fds, wrong.fds());
    }
    lie("out of order", &say(1, Message::Leave));
    lie("first message is not WELCOME", &|w| {
        w.script.remove(0);
    });
    lie("ends too early", &|w| w.script[1].bytes.truncate(7));
    lie("behind its end", &|w| w.script[1].bytes.push(0));
    lie("behind its end", &|w| w.script[1].bytes.resize(70_000, 0));
    lie("unknown message type", &|w| w.script[1].bytes[0] = 77);
    lie("control characters", &say(1, Message::Format { generation: 1, caps: "a\nb".into() }));
}

/// A publisher that stays, with a newest frame that never can be had, or is never complete.
#[test]
fn a_frame_that_never_comes_ends_the_wait() {
    let site = Site::new("hostile-never");
    let liar = Liar::new(&site.dir);
    for (offset, word, expected) in [
        // A strict reader would look for each of them.
        (at::HEAD, 1 << 47, "newest frame is not there"),
        (at::SLOT, 0, "newest frame is not there"),
        (at::READY, 0, "never completed"),
    ] {
        let mut world = World::new();
        world.stays = true;
        world.control.set(offset, &[word]);
        liar.tell(world);
        let interrupt = Interrupt::new().unwrap();
        let config = cuframes::SubscriberConfig { mode: Mode::Strict, ..site.subscriber_config() };
        let mut subscriber = Subscriber::connect(config, Some(Duration::ZERO), &interrupt).unwrap();
        let error = subscriber.next_frame(&Wait::forever(&interrupt)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Joins a publisher that stays, without a pipeline.
fn join(site: &Site, liar: &Liar, mut world: World, mode: Mode) -> Subscriber {
    world.stays = true;
    liar.tell(world);
    let interrupt = Interrupt::new().unwrap();
    let config = cuframes::SubscriberConfig { mode, ..site.subscriber_config() };
    Subscriber::connect(config, Some(Duration::ZERO), &interrupt).unwrap()
}

/// A publisher that is stopped while it decides what to give up costs a reader its time, and no more.
#[test]
fn a_decision_that_is_never_taken_is_no_reason_to_wait_longer() {
    let site = Site::new("hostile-decision");
    let liar = Liar::new(&site.dir);
    let world = World::new();
    world.track.set(at::RECLAIM, &[raw::PACKET]);
    let subscriber = join(&site, &liar, world, Mode::Strict);
    let mut packets = subscriber.packets(0, Start::OldestKeyframe);
    let interrupt = Interrupt::new().unwrap();
    let timeout = Some(Duration::from_millis(30));
    let wait = Wait { timeout, ..Wait::forever(&interrupt) };
    assert!(matches!(packets.next(&wait), Ok(Next::TimedOut)));
}

/// Who is sent away does not read on until there is nothing left: it may never get there.
#[test]
fn who_is_sent_away_is_told_at_once() {
    let site = Site::new("hostile-away");
    let liar = Liar::new(&site.dir);
    let mut world = World::new();
    world
        .script
        .push(Said::new(Message::Bye { code: RefusalReason::Stalled, text: "go".into() }, &[]));
    let mut subscriber = join(&site, &liar, world, Mode::Newest);
    let interrupt = Interrupt::new().unwrap();
    let wait = Wait::forever(&interrupt);
    let lost = |text: &str| text == "go";
    until(|| matches!(subscriber.next_frame(&wait), Ok(Next::Lost { text, .. }) if lost(&text)));
    let next = subscriber.packets(0, Start::OldestKeyframe).next(&wait);
    assert!(matches!(&next, Ok(Next::Lost { text, .. }) if lost(text)), "{next:?}");
}

/// An answer to an observer that goes on and on.
#[test]
fn an_observer_stops_listening() {
    let site = Site::new("hostile-answer");
    let publisher = site.publisher(Arc::new(HostBackend), |_| {});
    let _track = publisher.add_track(0, "", Default::default()).unwrap();
    let truth = cuframes::status("cam", Some(&site.dir)).unwrap();
    drop(publisher);
    let liar = Liar::new(&site.dir);
    let mut world = World::new();
    let part = |n: u64| {
        let status = Box::new(truth.clone());
        Said::new(Message::Status { version: 2, next: n + 1, status }, &[])
    };
    world.script = (0..1000).map(part).collect();
    liar.tell(world);
    let error = cuframes::status("cam", Some(&site.dir)).unwrap_err().to_string();
    assert!(error.contains("its answer has no end"), "{error}");
}

/// What a process has is counted in one that does nothing else.
#[test]
fn lies_leave_nothing_behind() {
    let site = Site::new("hostile-leaks");
    Child::start("lies", &site.dir).finish();
}

/// The children's end of this file.
#[test]
fn child() {
    let Some((role, dir)) = children::role() else { return };
    assert_eq!(role, "lies");
    let site = Site::at(&dir, "hostile-lies-child");
    let liar = Liar::new(&site.dir);
    let before = resources();
    for n in 0..100 {
        let mut world = World::new();
        match n % 5 {
            0 => world.script[0].fds.push(world.page.fd.clone()),
            1 => world.script[0].bytes = welcome(9, 4, 4).encode(),
            2 => world.page.set(at::VERSION, &[pair(9, 4)]),
            3 => world.script[2].fds = vec![world.page.fd.clone(); 20],
            _ => {}
        }
        liar.tell(world);
        visit(&site, Mode::Newest);
    }
    until(|| resources() == before);
}

/// A publisher, an honest subscriber that sees each of its frames, and the socket for others.
struct Stage<'a> {
    site: &'a Site,
    publisher: Publisher,
    viewer: support::Viewer,
    /// Why subscribers went.
    gone: Receiver<Option<String>>,
    n: u64,
}

impl<'a> Stage<'a> {
    fn new(site: &'a Site, adjust: impl FnOnce(&mut PublisherConfig)) -> Self {
        let mut config = site.config();
        adjust(&mut config);
        let (tell, gone) = channel();
        let publisher = Publisher::open(config, Arc::new(HostBackend), move |event| {
            if let PublisherEvent::SubscriberRemoved(_, reason) = event {
                let _ = tell.send(reason);
            }
        });
        let publisher = publisher.unwrap();
        publisher.set_format(support::CAPS, SIZE).unwrap();
        let viewer = site.viewer(|c| c.mode = Mode::Strict);
        Self { site, publisher, viewer, gone, n: 0 }
    }

    /// The honest subscriber gets a frame, whole, at once.
    fn check(&mut self) {
        self.n += 1;
        let mut loan = self.publisher.loan(SIZE).unwrap().expect("a free slot");
        fill(loan.bytes_mut(), self.n);
        self.publisher.publish(loan, &info(self.n, SIZE));
        let frame = self.viewer.frame();
        assert_eq!((frame.seq, frame.skipped), (self.n, 0));
        assert_eq!(number(frame.bytes()), Some(self.n));
    }

    fn connect(&self) -> Peer {
        Peer::connect(&self.site.dir)
    }

    /// Joins, and maps what a subscriber may write to.
    fn join(&self, credit: u32) -> (Peer, Segment, Arc<OwnedFd>) {
        let peer = self.connect();
        assert!(peer.send(&hello(credit, "hostile"), &[]));
        let Some((Message::Welcome { slots, .. }, fds)) = peer.hear() else { panic!("refused") };
        let page = Segment::map(fds[1].clone(), at::CLAIMS + 8 * slots as usize).unwrap();
        (peer, page, fds[0].clone())
    }
}

fn hello(credit: u32, name: &str) -> Vec<u8> {
    let (gpu, name) = ([0; 16], name.to_owned());
    Message::Hello(Hello { versions: (2, 2), mode: Mode::Strict, credit, gpu, name }).encode()
}

/// HELLO with other versions, and whatever later versions may have behind them.
fn hello_of(first: u16, last: u16, rest: &[u8]) -> Vec<u8> {
    let (first, last) = (first.to_le_bytes(), last.to_le_bytes());
    [&1u32.to_le_bytes()[..], &raw::MAGIC.to_le_bytes(), &first, &last, rest].concat()
}

#[test]
fn strangers_are_told_why_they_are_refused() {
    let site = Site::new("hostile-strangers");
    let mut stage = Stage::new(&site, |_| {});
    let fd = std::fs::File::open("/dev/null").unwrap();
    let refused =
        |stage: &Stage<'_>, bytes: &[u8], fds: usize, code: RefusalReason, expected: &str| {
            let peer = stage.connect();
            peer.send(bytes, &vec![fd.as_fd(); fds]);
            let Some((Message::Refused { code: said, text }, _)) = peer.hear() else {
                panic!("not refused: {bytes:x?}")
            };
            assert_eq!(said, code, "{text}");
            assert!(text.contains(expected), "{text}");
            assert!(peer.hear().is_none());
        };
    use RefusalReason::*;
    let joins = hello(2, "x");
    for (bytes, code, expected) in [
        (hello_of(3, 9, b"anything"), Version, "speaks versions 3 to 9"),
        (
            hello_of(0, 0, b""),
            Version,
            "speaks versions 0 to 0 of the protocol, the publisher 2 to 2",
        ),
        (hello_of(9, 1, b""), Version, "update the older one"),
        (joins[..joins.len() - 1].to_vec(), Malformed, "too early"),
        ([&joins[..], b"x"].concat(), Malformed, "behind its end"),
        (vec![0], Malformed, "too early"),
        (vec![1; 65_537], Malformed, "behind its end"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Malformed, "unknown message type"),
        (Message::Leave.encode(), Malformed, "has to be HELLO"),
        (hello(2, "a\nb"), Malformed, "control characters"),
        (hello(2, &"n".repeat(256)), Malformed, "too long"),
        (hello(9, "greedy"), OverCredit, "max-frames-per-subscriber=8"),
        (hello(u32::MAX, "greedy"), OverCredit, "max-frames-per-subscriber=8"),
    ] {
        refused(&stage, &bytes, 0, code, expected);
        stage.check();
    }
    for fds in [1, 4, 253] {
        refused(&stage, &joins, fds, Malformed, "fds came with it");
    }
    // Some say nothing; others are let in all the same.
    let silent: Vec<_> = (0..20).map(|_| stage.connect()).collect();
    drop(stage.join(1));
    drop(silent);
    stage.check();
}

#[test]
fn who_breaks_the_rules_is_sent_away() {
    let site = Site::new("hostile-rules");
    let mut stage = Stage::new(&site, |c| c.max_subscribers = 2);
    for bytes in [hello(1, "again"), vec![0; 3], welcome(2, 4, 4).encode(), vec![7; 66_000]] {
        let (peer, ..) = stage.join(1);
        assert!(peer.send(&bytes, &[]));
        let code = std::iter::from_fn(|| peer.hear()).find_map(|(message, _)| match message {
            Message::Bye { code, .. } => Some(code),
            _ => None,
        });
        assert_eq!(code, Some(RefusalReason::Malformed));
        stage.check();
        // Its place comes back with its end.
        drop(peer);
        assert!(stage.gone.recv().unwrap().is_some());
    }
    // One that does not listen: its end is noticed while it is sent away, and after it.
    let (peer, ..) = stage.join(1);
    for n in 0..100 {
        stage.publisher.set_format(&format!("caps {n} {}", "x".repeat(50_000)), SIZE).unwrap();
        // The other one hears of it with the next frame.
        stage.check();
    }
    drop(peer);
    let reason = stage.gone.recv().unwrap().unwrap();
    assert!(reason.contains("does not read its messages"), "{reason}");
    stage.check();
}

/// Nothing that it writes to its page does anything to others, but keep as many slots as it has credit.
#[test]
fn a_page_of_rubbish_disturbs_nobody() {
    let site = Site::new("hostile-page");
    let mut stage = Stage::new(&site, |_| {});
    let mut state = 1u64;
    for round in 0..30 {
        let (peer, page, _) = stage.join(2);
        for _ in 0..20 {
            for word in 0..page.words() {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let value = match state >> 60 {
                    0..8 => 0,
                    8 => u64::MAX,
                    9 => stage.n,
                    _ => state,
                };
                if round % 2 == 0 || word * 8 >= at::CLAIMS {
                    page.set(word * 8, &[value]);
                }
            }
            stage.check();
        }
        // All that is left of it is a publisher's statistics.
        stage.publisher.stats();
        drop(peer);
    }
    until(|| stage.publisher.stats().subscribers.len() == 1);

    // One that never stands still, and claims everything all the time.
    let (peer, page, _) = stage.join(2);
    let (page, stop) = (&page, &std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for n in 1.. {
                (at::CLAIMS / 8..page.words()).for_each(|word| page.set(word * 8, &[n]));
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        until(|| page.word(at::CLAIMS).load(Ordering::Relaxed) > 10);
        for _ in 0..100 {
            stage.check();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let code = std::iter::from_fn(|| peer.hear()).find_map(|(message, _)| match message {
        Message::Bye { code, .. } => Some(code),
        _ => None,
    });
    assert_eq!(code, Some(RefusalReason::OverCredit));
}

/// What all subscribers read can be written to by none of them.
#[test]
fn shared_memory_is_read_only() {
    let site = Site::new("hostile-write");
    let mut stage = Stage::new(&site, |_| {});
    let track = stage.publisher.add_track(0, "a", Default::default()).unwrap();
    stage.check();
    let (peer, _page, control) = stage.join(1);
    let others = std::iter::from_fn(|| peer.hear()).flat_map(|(_, fds)| fds);
    // At least one chunk, and the track.
    let fds: Vec<_> = others.take(2).chain([control]).collect();
    for fd in fds {
        assert!(Segment::map(fd.clone(), 4096).is_err(), "it can be mapped for writing");
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&*fd));
        assert!(nix::unistd::write(&fd, b"x").is_err());
        assert!(nix::unistd::ftruncate(&fd, 0).is_err());
        assert!(fallocate(&fd, punch(), 0, 4096).is_err(), "it can be emptied");
        if let Ok(again) = std::fs::OpenOptions::new().write(true).read(true).open(path) {
            assert!(Segment::map(Arc::new(again.into()), 4096).is_err());
        }
    }
    drop(track);
    stage.check();
}

fn punch() -> FallocateFlags {
    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE
}

/// Raw messages that once did, or could have done, harm: each is refused, by both sides.
#[test]
fn the_corpus_is_refused() {
    let site = Site::new("hostile-corpus");
    let mut stage = Stage::new(&site, |_| {});
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/messages");
    let mut count = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let peer = stage.connect();
        peer.send(&bytes, &[]);
        assert!(matches!(peer.hear(), None | Some((Message::Refused { .. }, _))), "{bytes:x?}");
        for fds in 0..3 {
            assert!(Message::decode(&bytes, fds).is_err(), "{bytes:x?}");
        }
        stage.check();
        count += 1;
    }
    assert!(count > 0);
}

/// A connection costs as much as twenty messages.
fn config() -> ProptestConfig {
    let cases = ProptestConfig::default().cases;
    ProptestConfig {
        cases: cases.div_ceil(20).max(256),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/corpus/hostile.txt",
        ))),
        ..Default::default()
    }
}

/// Numbers at which things break.
fn number_of_note() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => any::<u64>(),
        4 => 0..10u64,
        2 => (0..64u32, -2..3i64).prop_map(|(shift, more)| (1u64 << shift).wrapping_add_signed(more)),
        1 => any::<(u32, u32)>().prop_map(|(a, b)| pair(a % 10, b % 10)),
        1 => Just(u64::MAX),
    ]
}

#[derive(Debug, Clone)]
enum Lie {
    /// Of one of the segments.
    Word(usize, prop::sample::Index, u64),
    /// In the headers, where most is decided.
    Head(usize, usize, u64),
    Byte(usize, prop::sample::Index, u8),
    Swap(usize, usize),
    Repeat(usize),
    Leave(usize),
    Fd(usize, usize),
}

fn lie() -> impl Strategy<Value = Lie> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (0..4usize, index(), number_of_note()).prop_map(|(s, i, w)| Lie::Word(s, i, w)),
        6 => (0..4usize, 0..70usize, number_of_note()).prop_map(|(s, i, w)| Lie::Head(s, i, w)),
        4 => (0..5usize, index(), any::<u8>()).prop_map(|(n, i, b)| Lie::Byte(n, i, b)),
        1 => (0..5usize, 0..5usize).prop_map(|(a, b)| Lie::Swap(a, b)),
        1 => (0..5usize).prop_map(Lie::Repeat),
        1 => (0..5usize).prop_map(Lie::Leave),
        1 => (0..5usize, 0..4usize).prop_map(|(n, fd)| Lie::Fd(n, fd)),
    ]
}

fn apply(world: &mut World, lie: &Lie) {
    let count = world.script.len();
    match lie {
        Lie::Word(segment, at, word) => {
            let segment = world.segments()[*segment];
            segment.set(at.index(segment.words()) * 8, &[*word]);
        }
        Lie::Head(segment, at, word) => {
            let segment = world.segments()[*segment];
            segment.set(at.min(&(segment.words() - 1)) * 8, &[*word]);
        }
        Lie::Byte(n, at, byte) if *n < count => {
            let bytes = &mut world.script[*n].bytes;
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        Lie::Swap(a, b) if *a < count && *b < count => world.script.swap(*a, *b),
        Lie::Repeat(n) if *n < count => {
            let said = &world.script[*n];
            let again = Said { bytes: said.bytes.clone(), fds: said.fds.clone() };
            world.script.push(again);
        }
        Lie::Leave(n) if *n < count => drop(world.script.remove(*n)),
        Lie::Fd(n, fd) if *n < count => {
            let fd = world.segments()[*fd].fd.clone();
            world.script[*n].fds.push(fd);
        }
        _ => {}
    }
}

/// Any publisher: a subscriber comes to an end with it, in one piece.
#[test]
fn any_publisher_is_survived() {
    let site = Site::patient("hostile-any");
    let liar = Liar::new(&site.dir);
    let mut runner = proptest::test_runner::TestRunner::new(config());
    let lies = proptest::collection::vec(lie(), 1..5);
    let outcome = runner.run(&(lies, any::<bool>()), |(lies, strict)| {
        let mut world = World::new();
        lies.iter().for_each(|lie| apply(&mut world, lie));
        liar.tell(world);
        visit(&site, if strict { Mode::Strict } else { Mode::Newest });
        Ok(())
    });
    outcome.unwrap();
}

/// Any subscriber: the publisher and the honest one go on.
#[test]
fn any_subscriber_is_survived() {
    let site = Site::patient("hostile-subscribers");
    let stage = std::cell::RefCell::new(Stage::new(&site, |_| {}));
    let mut runner = proptest::test_runner::TestRunner::new(config());
    let byte = (any::<prop::sample::Index>(), any::<u8>());
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..100),
        // Most of it is a HELLO.
        (proptest::collection::vec(byte, 0..4), 0..4u32).prop_map(|(changes, credit)| {
            let mut bytes = hello(credit, "anybody");
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        }),
    ];
    let words = proptest::collection::vec((0..100usize, number_of_note()), 0..20);
    let cases = (proptest::collection::vec((bytes, 0..3usize), 1..4), words);
    let outcome = runner.run(&cases, |(messages, words)| {
        let mut stage = stage.borrow_mut();
        let peer = stage.connect();
        let fd = std::fs::File::open("/dev/null").unwrap();
        for (n, (bytes, fds)) in messages.iter().enumerate() {
            peer.send(bytes, &vec![fd.as_fd(); *fds]);
            if n > 0 || bytes.is_empty() {
                continue;
            }
            if let Some((Message::Welcome { slots, .. }, fds)) = peer.hear() {
                let page = Segment::map(fds[1].clone(), at::CLAIMS + 8 * slots as usize).unwrap();
                for (at, word) in &words {
                    page.word(at * 8).store(*word, Ordering::Relaxed);
                    stage.check();
                }
            }
        }
        stage.check();
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn a_refusal_is_not_a_broken_protocol() {
    let site = Site::new("hostile-refusal");
    let liar = Liar::new(&site.dir);
    let mut world = World::new();
    world.script =
        vec![Said::new(Message::Refused { code: RefusalReason::Other, text: "no".into() }, &[])];
    liar.tell(world);
    let interrupt = Interrupt::new().unwrap();
    let joined = Subscriber::connect(site.subscriber_config(), None, &interrupt);
    assert!(matches!(joined, Err(Error::Refused { code: RefusalReason::Other, .. })));
}

mod elements {
    use gst::prelude::*;

    use super::*;

    /// Plays what a liar publishes, to its end; the error if there was one.
    fn play(site: &Site, element: &str, world: World) -> Option<String> {
        gst::init().unwrap();
        gstcuframes::plugin_register_static().unwrap();
        let liar = Liar::new(&site.dir);
        liar.tell(world);
        let description = format!(
            "{element} key=cam on-lost=eos runtime-dir={} ! fakesink sync=false",
            site.dir.display()
        );
        let pipeline = gst::parse::launch(&description).unwrap();
        pipeline.set_state(gst::State::Playing).unwrap();
        let ends = [gst::MessageType::Error, gst::MessageType::Eos];
        let bus = pipeline.bus().unwrap();
        let message = bus.timed_pop_filtered(gst::ClockTime::NONE, &ends).unwrap();
        let error = match message.view() {
            gst::MessageView::Error(e) => Some(e.error().message().to_owned()),
            _ => None,
        };
        pipeline.set_state(gst::State::Null).unwrap();
        error
    }

    #[test]
    fn frames_fit_their_caps_or_are_refused() {
        let site = Site::new("hostile-frames");
        let lie = |caps: &str, record: &[(usize, u64)], expected: Option<&str>| {
            let mut world = World::new();
            if !caps.is_empty() {
                let message = Message::Format { generation: 1, caps: caps.into() };
                world.script[1].bytes = message.encode();
            }
            for (word, value) in record {
                world.control.set(at::RECORD + word * 8, &[*value]);
            }
            let error = play(&site, "cuframessrc", world);
            match (expected, &error) {
                (None, None) => {}
                (Some(expected), Some(error)) => assert!(error.contains(expected), "{error}"),
                _ => panic!("{caps} {record:?}: {error:?}"),
            }
        };
        lie("", &[], None);
        let (unknown, small) = (Some("not supported by cuframessrc"), Some("does not fit"));
        // What is read of a v210 line can't be told from its components.
        let packed = "video/x-raw, format=v210, width=48, height=1, framerate=30/1";
        for caps in ["<", "video/x-raw", "audio/x-raw, rate=1", packed] {
            lie(caps, &[], unknown);
        }
        // As deep as a message has room for.
        for bracket in ["{", "<", "[", "[video/x-raw,a="] {
            let deep = bracket.repeat(60_000 / bracket.len());
            lie(&format!("video/x-raw, format=GRAY8, a={deep}"), &[], unknown);
        }
        lie("video/x-raw, format=GRAY8, width=64, height=33, framerate=30/1", &[], small);
        lie("video/x-raw, format=GRAY8, width=2147483647, height=2147483647", &[], unknown);
        lie("video/x-raw, format=I420, width=64, height=16, framerate=30/1", &[], small);
        // The colours of a palette lie in a plane of their own, behind the picture.
        let palette = "video/x-raw, format=RGB8P, width=32, height=32, framerate=30/1";
        lie(palette, &[(9, 2), (10, 32), (11, 1024 << 32 | 4)], None);
        lie(palette, &[(9, 2), (10, 32), (11, 1025 << 32 | 4)], small);
        // Strides: backwards, and too long.
        lie("", &[(10, u64::from(-64i32 as u32))], small);
        lie("", &[(10, i32::MAX as u64)], small);
        // What is shown: within the picture.
        lie("", &[(9, 1 << 32 | 1), (14, 0), (15, 64 << 32 | 32)], None);
        lie("", &[(9, 1 << 32 | 1), (14, 1 << 32), (15, 64 << 32 | 32)], small);
        lie("", &[(9, 1 << 32 | 1), (14, u64::MAX), (15, u64::MAX)], small);
        // Any time is a time.
        for time in [0, 1, i64::MAX as u64, (i64::MIN + 1) as u64, i64::MIN as u64] {
            lie("", &[(3, time)], None);
            lie("", &[(7, time)], None);
            lie("", &[(3, time), (7, !time), (6, time)], None);
        }
        lie("", &[(2, u64::from(u32::MAX)), (5, u64::MAX - 1)], None);
    }

    #[test]
    fn packets_of_any_time_are_packets() {
        let site = Site::new("hostile-packets");
        let entry = |word: usize, value: u64| {
            let world = World::new();
            world.track.set(at::PACKETS + word * 8, &[value]);
            play(&site, "cuframespacketsrc", world)
        };
        for word in 3..9 {
            for value in [0, 1, u64::MAX, i64::MAX as u64, i64::MIN as u64, (i64::MIN + 1) as u64] {
                assert_eq!(entry(word, value), None, "{word} {value:x}");
            }
        }
        let mut world = World::new();
        world.control.set(272, &[u64::MAX]);
        assert_eq!(play(&site, "cuframespacketsrc", world), None);
        let deep = format!("video/x-h264, a={}", "{".repeat(60_000));
        for caps in
            ["<", &deep, "audio/x-raw", "video/x-h264, alignment=au", "audio/x-opus, rate=[1,2]"]
        {
            world = World::new();
            let message = Message::TrackFormat { track: 0, generation: 1, caps: caps.into() };
            world.script[4].bytes = message.encode();
            let error = play(&site, "cuframespacketsrc", world).unwrap();
            assert!(error.contains("not supported by cuframespacketsrc"), "{error}");
        }
    }

    /// The names of subscribers are shown, and are no C strings.
    #[test]
    fn any_name_is_shown() {
        let site = Site::new("hostile-names");
        gst::init().unwrap();
        gstcuframes::plugin_register_static().unwrap();
        let description = format!(
            "videotestsrc is-live=true ! cuframessink name=pub key=cam runtime-dir={}",
            site.dir.display()
        );
        let pipeline = gst::parse::launch(&description).unwrap();
        pipeline.set_state(gst::State::Playing).unwrap();
        let bus = pipeline.bus().unwrap();
        for name in ["", "\u{202e}gnp.exe", "</\"'{}%n%s", &"ü".repeat(127)] {
            let peer = Peer::connect(&site.dir);
            peer.send(&hello(1, name), &[]);
            let added = std::iter::from_fn(|| bus.timed_pop(gst::ClockTime::NONE))
                .find_map(|m| {
                    Some(m.structure()?.to_owned()).filter(|s| s.name().ends_with("added"))
                })
                .unwrap();
            assert_eq!(added.get::<&str>("name").unwrap(), name);
            assert_eq!(added.get::<u32>("uid").unwrap(), nix::unistd::getuid().as_raw());
            let shown = pipeline.clone().downcast::<gst::Bin>().unwrap().by_name("pub").unwrap();
            assert!(shown.property::<gst::Structure>("stats").to_string().contains("subscriber"));
        }
        pipeline.set_state(gst::State::Null).unwrap();
    }
}
