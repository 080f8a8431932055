// SPDX-License-Identifier: LGPL-2.1-or-later
//! Subscribers that violate the protocol, and what the publisher does about them.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};

use cuframes::memory::host::HostBackend;
use cuframes::protocol::message::Message;
use cuframes::{Mode, Publisher, PublisherConfig, PublisherEvent, RefusalReason};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::sys::socket::{MsgFlags, send};
use testing::raw::{self, RawPeer, Segment, at, hello, welcome};
use testing::{SIZE, TestDir, fill, info, number, until};

/// A publisher, an honest subscriber that takes each frame, and connections of hostile ones.
pub(crate) struct Stage<'a> {
    pub(crate) test: &'a TestDir,
    pub(crate) publisher: Publisher,
    pub(crate) viewer: testing::TestSubscriber,
    /// Reasons for which subscribers were removed.
    pub(crate) gone: Receiver<Option<String>>,
    pub(crate) n: u64,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(test: &'a TestDir, adjust: impl FnOnce(&mut PublisherConfig)) -> Self {
        let mut config = test.config();
        adjust(&mut config);
        let (sender, gone) = channel();
        let publisher = Publisher::open(config, Arc::new(HostBackend), move |event| {
            if let PublisherEvent::SubscriberRemoved(_, reason) = event {
                let _ = sender.send(reason);
            }
        });
        let publisher = publisher.unwrap();
        publisher.set_format(testing::CAPS, SIZE).unwrap();
        let viewer = test.subscriber(|c| c.mode = Mode::Strict);
        Self { test, publisher, viewer, gone, n: 0 }
    }

    /// Publishes a frame, and checks that the honest subscriber gets it whole.
    pub(crate) fn check(&mut self) {
        self.n += 1;
        let mut loan = self.publisher.loan(SIZE).unwrap().expect("a free slot");
        fill(loan.bytes_mut(), self.n);
        self.publisher.publish(loan, &info(self.n, SIZE));
        let frame = self.viewer.frame();
        assert_eq!((frame.seq, frame.skipped), (self.n, 0));
        assert_eq!(number(frame.bytes().unwrap()), Some(self.n));
    }

    pub(crate) fn connect(&self) -> RawPeer {
        RawPeer::connect(&self.test.dir)
    }

    /// Joins. Returns the connection, the page that a subscriber may write to, and the control segment.
    pub(crate) fn join(&self, credit: u32) -> (RawPeer, Segment, Arc<OwnedFd>) {
        let peer = self.connect();
        assert!(peer.send(&hello(credit, "hostile"), &[]));
        let Some((Message::Welcome { slots, .. }, fds)) = peer.receive() else { panic!("refused") };
        let page = Segment::map(fds[1].clone(), at::CLAIMS + 8 * slots as usize).unwrap();
        (peer, page, fds[0].clone())
    }
}

/// Returns HELLO with other versions, and bytes that later versions may append.
pub(crate) fn hello_of(first: u16, last: u16, rest: &[u8]) -> Vec<u8> {
    let (first, last) = (first.to_le_bytes(), last.to_le_bytes());
    [&1u32.to_le_bytes()[..], &raw::MAGIC.to_le_bytes(), &first, &last, rest].concat()
}

#[test]
fn malformed_hello_is_refused_with_reason() {
    let test = TestDir::new("hostile-pending");
    let mut stage = Stage::new(&test, |_| {});
    let fd = std::fs::File::open("/dev/null").unwrap();
    let refused =
        |stage: &Stage<'_>, bytes: &[u8], fds: usize, reason: RefusalReason, expected: &str| {
            let peer = stage.connect();
            peer.send(bytes, &vec![fd.as_fd(); fds]);
            let Some((Message::Refused { reason: said, text }, _)) = peer.receive() else {
                panic!("not refused: {bytes:x?}")
            };
            assert_eq!(said, reason, "{text}");
            assert!(text.contains(expected), "{text}");
            assert!(peer.receive().is_none());
        };
    use RefusalReason::*;
    let joins = hello(2, "x");
    for (bytes, reason, expected) in [
        (hello_of(3, 9, b"anything"), Version, "speaks versions 3 to 9"),
        (
            hello_of(0, 0, b""),
            Version,
            "speaks versions 0 to 0 of the protocol, the publisher 2 to 2",
        ),
        (hello_of(9, 1, b""), Version, "update the older one"),
        (joins[..joins.len() - 1].to_vec(), Malformed, "too early"),
        ([&joins[..], b"x"].concat(), Malformed, "after its end"),
        (vec![0], Malformed, "too early"),
        (vec![1; 65_537], Malformed, "after its end"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Malformed, "unknown message type"),
        (Message::Leave.encode(), Malformed, "has to be HELLO"),
        (hello(2, "a\nb"), Malformed, "control characters"),
        (hello(2, &"n".repeat(256)), Malformed, "too long"),
        (hello(9, "greedy"), OverCredit, "max-frames-per-subscriber=8"),
        (hello(u32::MAX, "greedy"), OverCredit, "max-frames-per-subscriber=8"),
    ] {
        refused(&stage, &bytes, 0, reason, expected);
        stage.check();
    }
    for fds in [1, 4, 253] {
        refused(&stage, &joins, fds, Malformed, "fds came with it");
    }
    // Silent connections keep no other subscriber out.
    let silent: Vec<_> = (0..20).map(|_| stage.connect()).collect();
    drop(stage.join(1));
    drop(silent);
    stage.check();
}

#[test]
fn subscriber_that_violates_protocol_is_evicted() {
    let test = TestDir::new("hostile-rules");
    let mut stage = Stage::new(&test, |c| c.max_subscribers = 2);
    for bytes in [hello(1, "again"), vec![0; 3], welcome(2, 4, 4).encode(), vec![7; 66_000]] {
        let (peer, ..) = stage.join(1);
        assert!(peer.send(&bytes, &[]));
        let reason = std::iter::from_fn(|| peer.receive()).find_map(|(message, _)| match message {
            Message::Bye { reason, .. } => Some(reason),
            _ => None,
        });
        assert_eq!(reason, Some(RefusalReason::Malformed));
        stage.check();
        // Its place is free once it is gone.
        drop(peer);
        assert!(stage.gone.recv().unwrap().is_some());
    }
}

/// Messages are kept for a subscriber that reads none. It keeps its place, and costs the others nothing.
#[test]
fn subscriber_that_reads_nothing_gets_its_messages_later() {
    let test = TestDir::new("hostile-silent");
    let mut stage = Stage::new(&test, |c| c.max_subscribers = 2);
    let (peer, ..) = stage.join(1);
    let caps = |n: u32| format!("caps {n} {}", "x".repeat(50_000));
    for n in 1..=100 {
        stage.publisher.set_format(&caps(n), SIZE).unwrap();
        // The honest subscriber reads the format with the next frame.
        stage.check();
    }
    // It receives the newest caps. Most outdated caps are left out.
    let mut received = 0;
    while let Some((message, _)) = peer.receive() {
        let Message::Format { caps: text, .. } = message else { continue };
        received += 1;
        if text == caps(100) {
            break;
        }
    }
    assert!(received < 50, "{received}");
    drop(peer);
    assert_eq!(stage.gone.recv().unwrap(), None);
    stage.check();
}

/// An evicted subscriber reads the reason and then the end of the connection. It keeps its place until it closes its
/// own end.
#[test]
fn evicted_subscriber_reads_end_of_connection() {
    let test = TestDir::new("hostile-end");
    let mut stage = Stage::new(&test, |_| {});
    let (peer, ..) = stage.join(1);
    assert!(peer.send(&hello(1, "again"), &[]));
    let last = std::iter::from_fn(|| peer.receive()).last();
    assert!(matches!(last, Some((Message::Bye { reason: RefusalReason::Malformed, .. }, _))));
    stage.check();
    assert_eq!(stage.publisher.stats().subscribers.len(), 2);
    drop(peer);
    assert!(stage.gone.recv().unwrap().is_some());
    stage.check();
}

/// After LEAVE the publisher reads no message, however many there are, and waits for the end of the connection.
#[test]
fn messages_after_leave_are_not_read() {
    let test = TestDir::new("hostile-leave");
    let mut stage = Stage::new(&test, |c| c.max_subscribers = 3);
    let (peer, ..) = stage.join(1);
    assert!(peer.send(&Message::Leave.encode(), &[]));
    until(|| unread(&peer) == 0);
    // The first of them would be a reason for an eviction.
    assert!(peer.send(&hello(1, "again"), &[]));
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    for _ in 0..1000 {
        match send(peer.0.as_raw_fd(), &Message::Leave.encode(), flags) {
            // The socket is full, because the publisher reads nothing.
            Err(Errno::EAGAIN) => {}
            sent => assert!(sent.is_ok(), "{sent:?}"),
        }
    }
    let sent = unread(&peer);
    assert!(sent > 0);
    for _ in 0..3 {
        // The server thread handles messages of subscribers before it accepts another one.
        drop(stage.join(1));
        stage.gone.recv().unwrap();
        stage.check();
    }
    assert_eq!(unread(&peer), sent);
    assert_eq!(stage.publisher.stats().subscribers.len(), 2);
    // It was not evicted, and its place is free once it is gone.
    drop(peer);
    assert_eq!(stage.gone.recv().unwrap(), None);
    stage.check();
}

/// Returns how much memory the messages take that the peer has sent and the other side has not read.
fn unread(peer: &RawPeer) -> i32 {
    let mut bytes = 0;
    // SAFETY: SIOCOUTQ, which has the same number as TIOCOUTQ, writes an int.
    let result = unsafe { libc::ioctl(peer.0.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    assert_eq!(Errno::result(result), Ok(0));
    bytes
}

/// Random words in its page have one effect only: they keep as many slots as the subscriber has credit.
#[test]
fn random_page_disturbs_no_other_subscriber() {
    let test = TestDir::new("hostile-page");
    let mut stage = Stage::new(&test, |_| {});
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
        // The statistics read the page as well.
        stage.publisher.stats();
        drop(peer);
    }
    until(|| stage.publisher.stats().subscribers.len() == 1);

    // A subscriber that claims every slot over and over.
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
    let reason = std::iter::from_fn(|| peer.receive()).find_map(|(message, _)| match message {
        Message::Bye { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(reason, Some(RefusalReason::OverCredit));
}

/// No subscriber can write to memory that others read.
#[test]
fn shared_memory_is_read_only() {
    let test = TestDir::new("hostile-write");
    let mut stage = Stage::new(&test, |_| {});
    let track = stage.publisher.add_track(0, "a", Default::default()).unwrap();
    stage.check();
    let (peer, _page, control) = stage.join(1);
    let others = std::iter::from_fn(|| peer.receive()).flat_map(|(_, fds)| fds);
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

/// Raw messages that once did harm, or could have: both sides refuse each of them.
#[test]
fn corpus_is_refused() {
    let test = TestDir::new("hostile-corpus");
    let mut stage = Stage::new(&test, |_| {});
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/messages");
    let mut count = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let peer = stage.connect();
        peer.send(&bytes, &[]);
        assert!(matches!(peer.receive(), None | Some((Message::Refused { .. }, _))), "{bytes:x?}");
        for fds in 0..3 {
            assert!(Message::decode(&bytes, fds).is_err(), "{bytes:x?}");
        }
        stage.check();
        count += 1;
    }
    assert!(count > 0);
}
