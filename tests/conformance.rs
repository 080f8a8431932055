//! What publisher and subscribers promise, for each kind of memory: the threads of one process, each
//! with its own subscriber.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use cuframes::cuda::{Context, Device, Stream};
use cuframes::memory::cuda::CudaBackend;
use cuframes::memory::host::HostBackend;
use cuframes::memory::{Backend, Importer};
use cuframes::{
    Error, Frame, Interrupt, Loan, Mode, Next, Policy, Publisher, PublisherEvent, RefusalReason,
    Start, Subscriber, SubscriberConfig, Wait,
};
use support::{CAPS, SIZE, Site, Viewer, info, item, until, watch};

#[path = "conformance/packets.rs"]
mod packets;
mod support;

/// A kind of memory under test.
trait Bench {
    fn backend() -> Arc<dyn Backend>;
    fn importer() -> Importer;
    /// Writes the number to every word of the slot.
    fn write(loan: &mut Loan, n: u64);
    /// The number that is in every word of the frame; `None` if they differ.
    fn read(frame: &Frame) -> Option<u64>;
}

struct Host;

impl Bench for Host {
    fn backend() -> Arc<dyn Backend> {
        Arc::new(HostBackend)
    }
    fn importer() -> Importer {
        Importer::host()
    }
    fn write(loan: &mut Loan, n: u64) {
        support::fill(loan.bytes_mut(), n);
    }
    fn read(frame: &Frame) -> Option<u64> {
        support::number(frame.bytes())
    }
}

/// Device memory as fds of the driver. The tests write and read it synchronously: what devices do in
/// their own time is tried in tests/gpu.rs.
struct Cuda;

impl Cuda {
    fn context() -> Context {
        let device = Device::by_ordinal(0).expect("a GPU");
        Context::primary(&device).expect("a context")
    }
}

impl Bench for Cuda {
    fn backend() -> Arc<dyn Backend> {
        Arc::new(CudaBackend::new(Self::context()).expect("memory that can be exported"))
    }
    fn importer() -> Importer {
        Importer::cuda(Self::context())
    }
    fn write(loan: &mut Loan, n: u64) {
        let mut bytes = vec![0; loan.len()];
        support::fill(&mut bytes, n);
        // SAFETY: the loan is as many bytes of device memory, and nobody else's.
        unsafe { Stream::default_of(&Self::context()).write(loan.address(), &bytes) }.unwrap();
    }
    fn read(frame: &Frame) -> Option<u64> {
        let mut bytes = vec![0; frame.info.size];
        // SAFETY: the frame is as many bytes of device memory, which stay as they are while it lives.
        unsafe { Stream::default_of(&Self::context()).read(frame.address(), &mut bytes) }.unwrap();
        support::number(&bytes)
    }
}

macro_rules! conformance {
    ($memory:ident, $bench:ident $(, $ignore:meta)?) => {
        mod $memory {
            conformance! { @tests $memory, $bench, ($(#[$ignore])?):
                newest_drop
                newest_wait
                strict_drop
                slots_are_used_when_they_are_needed
                strict_wait
                nothing_is_lost_at_full_speed
                the_last_frame_is_not_lost
                a_frame_given_back_by_a_device_is_held_until_then
                a_reader_that_waits_learns_what_a_device_gives_back
                a_slow_subscriber_disturbs_nobody
                a_held_credit_starves_nobody
                a_stalled_subscriber_is_sent_away
                a_publisher_that_waits_goes_on_in_the_end
                a_publisher_that_waits_goes_on_when_a_subscriber_leaves
                frames_outlive_the_publisher
                frames_outlive_their_subscriber
                frames_keep_their_format
                frames_keep_their_format_for_who_comes_later
                loans_have_the_size_of_the_format
                sizes_change_before_the_old_frames_are_taken
                nobody_within_its_credit_costs_a_frame
                the_pool_follows_the_credit
                who_leaves_takes_no_frames_along
                a_loan_that_is_dropped_is_free_again
                frames_are_in_the_order_of_publication
                the_stream_goes_on_behind_its_end
                all_places_taken
                too_much_credit
                a_key_has_one_publisher
                a_publisher_comes_again
                the_subscriber_comes_first
                no_publisher_comes
                an_interrupt_ends_every_wait
            }
        }
    };
    (@tests $memory:ident, $bench:ident, $ignore:tt: $($test:ident)*) => { $(
        conformance! { @test $memory, $bench, $ignore, $test }
    )* };
    (@test $memory:ident, $bench:ident, ($($ignore:tt)*), $test:ident) => {
        #[test]
        $($ignore)*
        fn $test() {
            let name = concat!(stringify!($memory), "-", stringify!($test));
            let mut site = super::Site::new(name);
            site.importer = <super::$bench as super::Bench>::importer();
            super::$test::<super::$bench>(&site);
        }
    };
}

conformance!(host, Host);
conformance!(cuda, Cuda, ignore = "needs an NVIDIA GPU");

const FRAMES: u64 = 500;
/// Frames where nobody looks at them.
const HASTE: u64 = 10_000;
const PATIENT: Policy = Policy::Wait(Duration::from_secs(60));

fn newest_drop<B: Bench>(site: &Site) {
    stream::<B>(site, Mode::Newest, Policy::Drop);
}

fn newest_wait<B: Bench>(site: &Site) {
    stream::<B>(site, Mode::Newest, PATIENT);
}

fn strict_drop<B: Bench>(site: &Site) {
    stream::<B>(site, Mode::Strict, Policy::Drop);
}

fn strict_wait<B: Bench>(site: &Site) {
    stream::<B>(site, Mode::Strict, PATIENT);
}

/// A strict subscriber that keeps up costs no more memory than others; one that lags finds as many frames as
/// there are slots.
fn slots_are_used_when_they_are_needed<B: Bench>(site: &Site) {
    for policy in [Policy::Drop, PATIENT] {
        let publisher = site.publisher(B::backend(), |c| (c.policy, c.window) = (policy, 2));
        let mut viewer = site.viewer(|c| (c.mode, c.max_frames) = (Mode::Strict, 5));
        let mut places = std::collections::HashSet::new();
        for n in 1..=50 {
            publish::<B>(&publisher, n);
            let frame = viewer.frame();
            assert_eq!(frame.seq, n);
            places.insert(frame.address());
        }
        assert!(places.len() <= 4, "{places:?}");
        let slots = u64::from(publisher.stats().pool.slots);
        assert_eq!(slots, 2 + 5 + 1);
        for n in 51..=50 + slots {
            publish::<B>(&publisher, n);
        }
        for n in 51..=50 + slots {
            let frame = viewer.frame();
            assert_eq!((frame.seq, frame.skipped), (n, 0));
        }
        // What upstream keeps is not at its expense.
        let behind = 51 + slots..=49 + 2 * slots;
        for n in behind.clone() {
            publish::<B>(&publisher, n);
        }
        let lent: Vec<_> = (0..6).map(|_| publisher.loan(SIZE).unwrap().unwrap()).collect();
        for n in behind {
            let frame = viewer.frame();
            assert_eq!((frame.seq, frame.skipped), (n, 0));
        }
        drop(lent);
    }
}

fn nothing_is_lost_at_full_speed<B: Bench>(site: &Site) {
    run::<B>(site, Mode::Strict, PATIENT, 4, 2000);
}

fn stream<B: Bench>(site: &Site, mode: Mode, policy: Policy) {
    for subscribers in [1, 4, 8] {
        run::<B>(site, mode, policy, subscribers, FRAMES);
    }
}

/// Everybody at full speed, each frame checked.
fn run<B: Bench>(site: &Site, mode: Mode, policy: Policy, subscribers: usize, frames: u64) {
    let publisher = site.publisher(B::backend(), |c| c.policy = policy);
    let viewers: Vec<_> = (0..subscribers)
        .map(|_| {
            let mut viewer = site.viewer(|c| c.mode = mode);
            std::thread::spawn(move || (watch(&mut viewer, B::read), viewer))
        })
        .collect();
    for n in 1..=frames {
        publish::<B>(&publisher, n);
    }
    publisher.end_of_frames();
    // They keep their places until the publisher's numbers were read.
    let ended: Vec<_> = viewers.into_iter().map(|v| v.join().unwrap()).collect();
    let stats = publisher.stats();
    assert_eq!(stats.pool.published, frames);
    assert_eq!(stats.subscribers.len(), subscribers);
    // Ids are given in the order of coming.
    for (its_own, (seen, _)) in stats.subscribers.iter().zip(&ended) {
        assert_eq!((its_own.received, its_own.skipped), (seen.received, seen.skipped));
        assert_eq!((its_own.cursor, its_own.held), (frames, 0));
        assert_eq!(seen.last, frames);
        if mode == Mode::Strict && policy != Policy::Drop {
            assert_eq!((seen.first, seen.received), (1, frames));
        }
    }
}

#[track_caller]
fn publish<B: Bench>(publisher: &Publisher, n: u64) {
    support::publish(publisher, n, B::write);
}

#[track_caller]
fn intact<B: Bench>(frame: &Frame) {
    assert_eq!(B::read(frame), Some(frame.seq));
    assert_eq!(frame.info.pts, Some(frame.seq as i64));
}

/// Runs `f` in a thread of its own, and returns when that sleeps.
fn asleep<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let (tell, told) = channel();
    let thread = std::thread::spawn(move || {
        tell.send(std::fs::read_link("/proc/thread-self").unwrap()).unwrap();
        f()
    });
    let stat = std::path::Path::new("/proc").join(told.recv().unwrap()).join("stat");
    until(|| {
        let stat = std::fs::read_to_string(&stat).unwrap_or_default();
        thread.is_finished() || stat.rsplit_once(") ").is_some_and(|(_, s)| s.starts_with('S'))
    });
    thread
}

fn the_last_frame_is_not_lost<B: Bench>(site: &Site) {
    for _ in 0..100 {
        let publisher = site.publisher(B::backend(), |_| {});
        let mut viewer = site.viewer(|_| {});
        let thread = asleep(move || {
            intact::<B>(&viewer.frame());
            let end = viewer.next();
            assert!(matches!(end, Next::Lost { code: RefusalReason::Closing, .. }), "{end:?}");
        });
        publish::<B>(&publisher, 1);
        drop(publisher);
        thread.join().unwrap();
    }
}

fn a_slow_subscriber_disturbs_nobody<B: Bench>(site: &Site) {
    let publisher = site.publisher(B::backend(), |_| {});
    let mut slow = site.viewer(|c| c.mode = Mode::Strict);
    let mut quick = site.viewer(|c| {
        c.mode = Mode::Strict;
        c.max_frames = 1;
    });
    let mut held = Vec::new();
    let mut skipped = 0;
    for n in 1..=200 {
        publish::<B>(&publisher, n);
        let frame = quick.frame();
        assert_eq!((frame.seq, frame.skipped), (n, 0));
        intact::<B>(&frame);
        if n % 10 == 0 {
            held.iter().for_each(intact::<B>);
            held.truncate(1);
            let frame = slow.frame();
            skipped += frame.skipped;
            intact::<B>(&frame);
            held.insert(0, frame);
        }
    }
    let last = held[0].seq;
    assert_eq!(slow.subscriber.counters(), (20, skipped));
    let stats = publisher.stats();
    let [slow, quick] = &stats.subscribers[..] else { panic!("there are two") };
    assert_eq!((slow.received, slow.skipped, slow.cursor, slow.held), (20, skipped, last, 2));
    assert_eq!((quick.received, quick.skipped, quick.cursor, quick.held), (200, 0, 200, 0));
}

fn a_held_credit_starves_nobody<B: Bench>(site: &Site) {
    let publisher = site.publisher(B::backend(), |_| {});
    let mut hog = site.viewer(|c| c.max_frames = 4);
    let mut quick = site.viewer(|c| {
        c.mode = Mode::Strict;
        c.max_frames = 1;
    });
    let mut held = Vec::new();
    for n in 1..=100 {
        publish::<B>(&publisher, n);
        assert_eq!(quick.frame().seq, n);
        if n <= 4 {
            held.push(hog.frame());
            assert_eq!(held.last().unwrap().credit(), (4, n as u32));
        } else {
            assert!(matches!(hog.look(), Next::TimedOut));
        }
    }
    held.iter().for_each(intact::<B>);
    assert_eq!(publisher.stats().subscribers[0].held, 4);
    held.pop();
    let frame = hog.frame();
    assert_eq!((frame.seq, frame.skipped), (100, 95));
    intact::<B>(&frame);

    // A release wakes one that waits with its credit used up.
    publish::<B>(&publisher, 101);
    let waits = asleep(move || hog.frame().seq);
    drop(frame);
    assert_eq!(waits.join().unwrap(), 101);
    held.iter().for_each(intact::<B>);
}

fn a_stalled_subscriber_is_sent_away<B: Bench>(site: &Site) {
    let mut config = site.config();
    config.stall_timeout = Some(Duration::from_millis(1));
    let (tell, told) = channel();
    let publisher = Publisher::open(config, B::backend(), move |e| tell.send(e).unwrap()).unwrap();
    publisher.set_format(CAPS, SIZE).unwrap();
    let mut hog = site.viewer(|c| {
        c.name = "hog".into();
        c.max_frames = 1;
    });
    let mut quick = site.viewer(|c| c.max_frames = 1);
    let mut n = 1;
    publish::<B>(&publisher, n);
    let held = hog.frame();
    // Frames go on, and it takes none.
    until(|| {
        n += 1;
        publish::<B>(&publisher, n);
        quick.frame();
        matches!(hog.look(), Next::Lost { code: RefusalReason::Stalled, .. })
    });
    intact::<B>(&held);
    drop((held, hog));
    let (who, reason) = std::iter::from_fn(|| told.recv().ok())
        .find_map(|event| match event {
            PublisherEvent::SubscriberRemoved(who, reason) => Some((who, reason)),
            _ => None,
        })
        .unwrap();
    assert_eq!(who.name, "hog");
    assert!(reason.is_some());
    publish::<B>(&publisher, n + 1);
    assert_eq!(quick.frame().seq, n + 1);
}

fn a_publisher_that_waits_goes_on_in_the_end<B: Bench>(site: &Site) {
    let policy = Policy::Wait(Duration::from_millis(30));
    let publisher = site.publisher(B::backend(), |c| c.policy = policy);
    let mut viewer = site.viewer(|c| c.mode = Mode::Strict);
    for n in 1..=20 {
        publish::<B>(&publisher, n);
    }
    let mut last = 0;
    let code = loop {
        match viewer.next() {
            Next::Item(frame) => {
                assert!(frame.seq > last);
                last = frame.seq;
                intact::<B>(&frame);
            }
            Next::Lost { code, .. } => break code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code, RefusalReason::Stalled);
}

fn a_publisher_that_waits_goes_on_when_a_subscriber_leaves<B: Bench>(site: &Site) {
    let publisher = site.publisher(B::backend(), |c| c.policy = PATIENT);
    let mut leaves = site.viewer(|c| c.mode = Mode::Strict);
    let mut stays = site.viewer(|c| c.mode = Mode::Strict);
    let stays = std::thread::spawn(move || watch(&mut stays, B::read));
    let publisher = asleep(move || {
        for n in 1..=100 {
            publish::<B>(&publisher, n);
        }
        publisher.end_of_frames();
        publisher
    });
    intact::<B>(&leaves.frame());
    drop(leaves);
    let _publisher = publisher.join().unwrap();
    assert_eq!(stays.join().unwrap().received, 100);
}

fn frames_outlive_the_publisher<B: Bench>(site: &Site) {
    let publisher = site.publisher(B::backend(), |_| {});
    let mut viewer = site.viewer(|_| {});
    publish::<B>(&publisher, 1);
    let first = viewer.frame();
    publish::<B>(&publisher, 2);
    drop(publisher);
    // What was published before the end is there to be taken.
    let second = viewer.frame();
    assert!(matches!(viewer.next(), Next::Lost { code: RefusalReason::Closing, .. }));
    // The next life of the key has nothing to do with them.
    let publisher = site.publisher(B::backend(), |_| {});
    for n in 1..=20 {
        publish::<B>(&publisher, n);
    }
    drop(viewer);
    intact::<B>(&first);
    intact::<B>(&second);
}

/// A device gives a frame back some time after the last reference to it is gone.
fn a_frame_given_back_by_a_device_is_held_until_then<B: Bench>(site: &Site) {
    let publisher = site.publisher(B::backend(), |_| {});
    let mut viewer = site.viewer(|c| c.max_frames = 1);
    publish::<B>(&publisher, 1);
    let frame = viewer.frame();
    let (page, len, _mapped) = viewer.subscriber.page();
    let mut word = None;
    frame.release_with(|offset| {
        assert!(offset + 8 <= len);
        word = Some(offset);
        true
    });
    publish::<B>(&publisher, 2);
    // Still claimed, so there is no credit for another.
    assert!(matches!(viewer.look(), Next::TimedOut));
    assert_eq!(publisher.stats().subscribers[0].held, 1);
    // SAFETY: an aligned word of the page, which is mapped and made of atomics.
    let word = unsafe { AtomicU64::from_ptr(page.add(word.unwrap()).cast()) };
    word.store(0, Ordering::Release);
    assert_eq!(viewer.frame().seq, 2);
    until(|| publisher.stats().subscribers[0].held == 0);
}

/// With its whole credit held a reader sleeps, until the last reference is gone and the device is done.
fn a_reader_that_waits_learns_what_a_device_gives_back<B: Bench>(site: &Site) {
    let publisher = site.publisher(B::backend(), |_| {});
    let mut viewer = site.viewer(|c| c.max_frames = 1);
    let (page, _, _mapped) = viewer.subscriber.page();
    publish::<B>(&publisher, 1);
    let frame = viewer.frame();
    publish::<B>(&publisher, 2);
    let (ready, reader) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || {
        ready.send(nix::unistd::gettid()).unwrap();
        viewer.frame().seq
    });
    let stat = format!("/proc/self/task/{}/stat", reader.recv().unwrap());
    until(|| std::fs::read_to_string(&stat).unwrap().contains(") S "));
    let mut word = None;
    frame.release_with(|offset| {
        word = Some(offset);
        true
    });
    // SAFETY: an aligned word of the page, which is mapped and made of atomics.
    unsafe { AtomicU64::from_ptr(page.add(word.unwrap()).cast()) }.store(0, Ordering::Release);
    assert_eq!(waiting.join().unwrap(), 2);
}

fn frames_outlive_their_subscriber<B: Bench>(site: &Site) {
    let publisher = site.publisher(B::backend(), |_| {});
    let mut viewer = site.viewer(|_| {});
    publish::<B>(&publisher, 1);
    let frame = viewer.frame();
    drop(viewer);
    for n in 2..=50 {
        publish::<B>(&publisher, n);
        intact::<B>(&frame);
    }
    // It keeps its place as long as it has frames.
    assert_eq!(publisher.stats().subscribers[0].held, 1);
    drop(frame);
    until(|| publisher.stats().subscribers.is_empty());
}

/// Publishes a frame of another size than [`SIZE`].
fn publish_sized<B: Bench>(publisher: &Publisher, n: u64, size: usize) {
    let mut loan = publisher.loan(size).unwrap().unwrap();
    assert!(loan.len() >= size, "{} bytes for a frame of {size}", loan.len());
    B::write(&mut loan, n);
    assert_eq!(publisher.publish(loan, &info(n, size)), n);
}

/// The pool gets smaller, but not at the expense of who stays.
fn who_leaves_takes_no_frames_along<B: Bench>(site: &Site) {
    for policy in [Policy::Drop, PATIENT] {
        let publisher = site.publisher(B::backend(), |c| (c.policy, c.window) = (policy, 1));
        let mut viewer = site.viewer(|c| (c.mode, c.max_frames) = (Mode::Strict, 5));
        let other = site.viewer(|c| c.max_frames = 8);
        (1..=6).for_each(|n| publish::<B>(&publisher, n));
        drop(other);
        until(|| publisher.stats().subscribers.len() == 1);
        publish::<B>(&publisher, 7);
        for n in 1..=7 {
            let frame = viewer.frame();
            assert_eq!((frame.seq, frame.skipped), (n, 0));
        }
        for n in 8.. {
            publish::<B>(&publisher, n);
            if publisher.stats().pool.slots == 1 + 5 + 1 {
                break;
            }
        }
    }
}

/// Bigger, smaller, and the same size under other caps.
const FORMATS: [(&str, usize); 5] =
    [(CAPS, SIZE), ("big", SIZE * 5), ("small", SIZE / 5), ("other", SIZE / 5), (CAPS, SIZE)];

fn frames_keep_their_format<B: Bench>(site: &Site) {
    // All of them fit into the window, so that a subscriber gets them when the last is published.
    let publisher = site.publisher(B::backend(), |c| c.window = 10);
    let mut at_once = site.viewer(|c| {
        c.mode = Mode::Strict;
        c.max_frames = 8;
    });
    let mut later = site.viewer(|c| c.mode = Mode::Strict);
    let mut held = Vec::new();
    for n in 1..=10 {
        let (caps, size) = FORMATS[(n as usize - 1) / 2];
        if n % 2 == 1 && n > 1 {
            publisher.set_format(caps, size).unwrap();
        }
        publish_sized::<B>(&publisher, n, size);
        let frame = at_once.frame();
        if n > 2 {
            held.push(frame);
        }
    }
    for n in 1..=10 {
        let frame = later.frame();
        let (caps, size) = FORMATS[(n as usize - 1) / 2];
        assert_eq!((frame.seq, &*frame.caps, frame.info.size), (n, caps, size));
        intact::<B>(&frame);
    }
    // Those that are held stay while many more go through the pool, and the pool forgets the formats.
    for n in 11..=60 {
        publish::<B>(&publisher, n);
        assert_eq!(later.frame().seq, n);
    }
    for (n, frame) in (3..).zip(&held) {
        let (caps, size) = FORMATS[(n as usize - 1) / 2];
        assert_eq!((frame.seq, &*frame.caps, frame.info.size), (n, caps, size));
        intact::<B>(frame);
    }
    assert!(
        held.windows(2).all(|w| (w[0].caps == w[1].caps) == (w[0].generation == w[1].generation))
    );
    held.clear();
    until(|| {
        publish::<B>(&publisher, publisher.stats().pool.published + 1);
        publisher.stats().pool.slots == 10 + 8 + 2 + 1
    });
}

fn frames_keep_their_format_for_who_comes_later<B: Bench>(site: &Site) {
    let publisher = site.publisher(B::backend(), |_| {});
    publish::<B>(&publisher, 1);
    publisher.set_format("other", SIZE * 3).unwrap();
    // The newest frame is still one of the format before.
    let mut viewer = site.viewer(|_| {});
    let frame = viewer.frame();
    assert_eq!((frame.seq, &*frame.caps, frame.info.size), (1, CAPS, SIZE));
    intact::<B>(&frame);
    publish_sized::<B>(&publisher, 2, SIZE * 3);
    let frame = viewer.frame();
    assert_eq!((frame.seq, &*frame.caps, frame.info.size), (2, "other", SIZE * 3));
    intact::<B>(&frame);
}

/// Takes frames and releases them as fast as it can, up to the end; gives what was received.
fn hurry(mut viewer: Viewer) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        loop {
            match viewer.next() {
                Next::Item(_) => {}
                Next::Eos => return viewer.subscriber.counters().0,
                other => panic!("{other:?}"),
            }
        }
    })
}

/// There is room for two pools of slots, not for three.
fn sizes_change_before_the_old_frames_are_taken<B: Bench>(site: &Site) {
    for (policy, received) in [(Policy::Drop, 2 + 60), (PATIENT, 3 * 60)] {
        let publisher = site.publisher(B::backend(), |c| {
            (c.policy, c.window, c.max_subscribers, c.max_frames_per_subscriber) =
                (policy, 2, 1, 8);
        });
        let viewer = site.viewer(|c| (c.mode, c.max_frames) = (Mode::Strict, 8));
        let publish = |size| {
            // As a queue before the sink keeps them.
            let loans: Vec<_> = (0..60).map(|_| publisher.loan(size).unwrap().unwrap()).collect();
            for loan in loans {
                publisher.publish(loan, &info(publisher.stats().pool.published + 1, size));
            }
        };
        publish(SIZE);
        publisher.set_format(CAPS, SIZE * 3).unwrap();
        publish(SIZE * 3);
        publisher.set_format(CAPS, SIZE * 9).unwrap();
        let viewer = hurry(viewer);
        publish(SIZE * 9);
        publisher.end_of_frames();
        assert_eq!(viewer.join().unwrap(), received);
    }
}

fn loans_have_the_size_of_the_format<B: Bench>(site: &Site) {
    let publisher = site.publisher(B::backend(), |c| c.policy = PATIENT);
    let viewers: Vec<_> = (0..4).map(|_| hurry(site.viewer(|c| c.mode = Mode::Strict))).collect();
    // Often enough that slots of the old size come free at any moment of a loan.
    for n in 1..=HASTE {
        let size = if n / 20 % 2 == 0 { SIZE } else { SIZE * 3 };
        if n % 20 == 0 {
            publisher.set_format(CAPS, size).unwrap();
        }
        let loan = publisher.loan(size).unwrap().unwrap();
        assert!(loan.len() >= size, "{} bytes for a frame of {size}", loan.len());
        publisher.publish(loan, &info(n, size));
    }
    publisher.end_of_frames();
    assert!(viewers.into_iter().all(|v| v.join().unwrap() == HASTE));
}

fn nobody_within_its_credit_costs_a_frame<B: Bench>(site: &Site) {
    for policy in [Policy::Drop, PATIENT] {
        let publisher = site.publisher(B::backend(), |c| c.policy = policy);
        let viewers: Vec<_> = [Mode::Strict, Mode::Newest, Mode::Strict, Mode::Strict]
            .into_iter()
            .map(|mode| {
                hurry(site.viewer(|c| {
                    c.mode = mode;
                    c.max_frames = 1;
                }))
            })
            .collect();
        for n in 1..=HASTE * 4 {
            // With one slot to spare, whatever they are just doing.
            let loan = publisher.loan(SIZE).unwrap();
            publisher.publish(loan.expect("a free slot"), &info(n, SIZE));
        }
        publisher.end_of_frames();
        viewers.into_iter().for_each(|v| assert!(v.join().unwrap() > 0));
    }
}

fn the_pool_follows_the_credit<B: Bench>(site: &Site) {
    let publisher = site.publisher(B::backend(), |c| c.window = 3);
    let mut n = 0;
    let mut settle = |credits: u32| {
        // A subscriber that left goes when the publisher has noticed.
        until(|| {
            n += 1;
            publish::<B>(&publisher, n);
            publisher.stats().pool.slots == 3 + credits + 1
        });
    };
    settle(0);
    let join = |max_frames| site.viewer(|c| c.max_frames = max_frames);
    let mut a = join(2);
    settle(2);
    let b = join(5);
    settle(7);
    let c = join(2);
    settle(9);
    drop(b);
    settle(4);
    // Who holds frames keeps them, whoever leaves.
    let frame = a.frame();
    drop(c);
    settle(2);
    intact::<B>(&frame);
    drop(a);
    settle(2);
    intact::<B>(&frame);
    drop(frame);
    settle(0);
    // Who takes packets only costs no memory of frames.
    let _d = join(0);
    settle(0);
    let pool = publisher.stats().pool;
    assert_eq!(pool.chunks, 1);
    assert!(pool.bytes >= 4 * SIZE as u64);
}

fn a_loan_that_is_dropped_is_free_again<B: Bench>(site: &Site) {
    let publisher = site.publisher(B::backend(), |_| {});
    let mut viewer = site.viewer(|_| {});
    let slots = publisher.stats().pool.slots;
    publish::<B>(&publisher, 1);
    let frame = viewer.frame();
    for n in 0..100 {
        B::write(&mut publisher.loan(SIZE).unwrap().unwrap(), 1000 + n);
    }
    intact::<B>(&frame);
    publish::<B>(&publisher, 2);
    let stats = publisher.stats();
    assert_eq!((stats.pool.published, stats.pool.slots), (2, slots));
    let frame = viewer.frame();
    assert_eq!((frame.seq, frame.skipped), (2, 0));
    intact::<B>(&frame);

    // A loan may outlive its publisher.
    let mut loan = publisher.loan(SIZE).unwrap().unwrap();
    drop(publisher);
    B::write(&mut loan, 3);
    drop(loan);
    intact::<B>(&frame);
}

fn frames_are_in_the_order_of_publication<B: Bench>(site: &Site) {
    let publisher = site.publisher(B::backend(), |c| c.window = 4);
    let mut viewer = site.viewer(|c| c.mode = Mode::Strict);
    // As a decoder with frames that are shown in another order than they are decoded in.
    let mut loans: Vec<_> = [3, 1, 4, 2]
        .into_iter()
        .map(|n| {
            let mut loan = publisher.loan(SIZE).unwrap().unwrap();
            B::write(&mut loan, n);
            (n, loan)
        })
        .collect();
    assert!(matches!(viewer.look(), Next::TimedOut));
    loans.sort_by_key(|(n, _)| *n);
    for (n, loan) in loans {
        assert_eq!(publisher.publish(loan, &info(n, SIZE)), n);
    }
    for n in 1..=4 {
        let frame = viewer.frame();
        assert_eq!((frame.seq, frame.skipped), (n, 0));
        intact::<B>(&frame);
    }
}

fn the_stream_goes_on_behind_its_end<B: Bench>(site: &Site) {
    let publisher = site.publisher(B::backend(), |_| {});
    let mut viewer = site.viewer(|c| c.mode = Mode::Strict);
    publish::<B>(&publisher, 1);
    publisher.end_of_frames();
    // The end is behind the last frame.
    assert_eq!(viewer.frame().seq, 1);
    assert!(matches!(viewer.next(), Next::Eos));
    assert!(matches!(viewer.next(), Next::Eos));
    assert!(matches!(viewer.look(), Next::TimedOut), "who waits past the end does not see it");
    let waits = asleep(move || {
        let wait = Wait { past_eos: true, ..Wait::forever(&viewer.interrupt) };
        let frame = item(viewer.subscriber.next_frame(&wait).unwrap());
        intact::<B>(&frame);
        (frame.seq, viewer)
    });
    publish::<B>(&publisher, 2);
    let (seq, mut viewer) = waits.join().unwrap();
    assert_eq!(seq, 2);
    let waits = asleep(move || (matches!(viewer.next(), Next::Eos), viewer));
    publisher.end_of_frames();
    let (ended, mut viewer) = waits.join().unwrap();
    assert!(ended);
    drop(publisher);
    // That it has ended is worth more than that it is gone.
    assert!(matches!(viewer.next(), Next::Eos));
}

fn connect(site: &Site, config: SubscriberConfig) -> Result<Subscriber, Error> {
    let config = SubscriberConfig { runtime_dir: Some(site.dir.clone()), ..config };
    Subscriber::connect(config, None, &Interrupt::new().unwrap())
}

fn all_places_taken<B: Bench>(site: &Site) {
    let publisher = site.publisher(B::backend(), |c| c.max_subscribers = 2);
    let mut stays = site.viewer(|_| {});
    let leaves = site.viewer(|_| {});
    match connect(site, site.subscriber_config()) {
        Err(Error::Refused { code: RefusalReason::Full, key, .. }) => assert_eq!(key, "cam"),
        other => panic!("{:?}", other.err()),
    }
    // That disturbs nobody who is there, and a place that is left is free again.
    publish::<B>(&publisher, 1);
    intact::<B>(&stays.frame());
    drop(leaves);
    until(|| publisher.stats().subscribers.len() == 1);
    connect(site, site.subscriber_config()).unwrap();
}

fn too_much_credit<B: Bench>(site: &Site) {
    let publisher = site.publisher(B::backend(), |c| c.max_frames_per_subscriber = 3);
    let slots = publisher.stats().pool.slots;
    for max_frames in [4, u32::MAX] {
        let refused = connect(site, SubscriberConfig { max_frames, ..site.subscriber_config() });
        assert!(matches!(refused, Err(Error::Refused { code: RefusalReason::OverCredit, .. })));
    }
    assert_eq!(publisher.stats().pool.slots, slots);
    connect(site, SubscriberConfig { max_frames: 3, ..site.subscriber_config() }).unwrap();
}

fn a_key_has_one_publisher<B: Bench>(site: &Site) {
    let first = site.publisher(B::backend(), |c| c.name = "the front door".into());
    let mut viewer = site.viewer(|_| {});
    match Publisher::open(site.config(), B::backend(), |_| {}) {
        Err(Error::Busy { key, owner }) => {
            assert_eq!(key, "cam");
            assert!(owner.contains("the front door"), "{owner}");
            assert!(owner.contains(&std::process::id().to_string()), "{owner}");
        }
        other => panic!("{:?}", other.err()),
    }
    let other = site.publisher(B::backend(), |c| c.key = "cam.sub".into());
    // The first goes on as if nothing had been.
    publish::<B>(&first, 1);
    assert_eq!(viewer.frame().seq, 1);
    drop(first);
    site.publisher(B::backend(), |_| {});
    drop(other);
    assert_eq!(site.files(), [""; 0]);
}

fn a_publisher_comes_again<B: Bench>(site: &Site) {
    let publisher = site.publisher(B::backend(), |_| {});
    let mut viewer = site.viewer(|_| {});
    for n in 1..=10 {
        publish::<B>(&publisher, n);
    }
    assert_eq!(viewer.frame().seq, 10);
    let lost = asleep(move || viewer.next());
    drop(publisher);
    match lost.join().unwrap() {
        Next::Lost { code: RefusalReason::Closing, text } => {
            assert!(text.contains("cam"), "{text}")
        }
        other => panic!("{other:?}"),
    }
    let again = {
        let config = site.subscriber_config();
        asleep(move || {
            let interrupt = Arc::new(Interrupt::new().unwrap());
            let subscriber = Subscriber::connect(config, None, &interrupt).unwrap();
            Viewer { subscriber, interrupt }
        })
    };
    let publisher = site.publisher(B::backend(), |_| {});
    let mut viewer = again.join().unwrap();
    publish::<B>(&publisher, 1);
    let frame = viewer.frame();
    assert_eq!((frame.seq, frame.skipped), (1, 0));
    intact::<B>(&frame);
}

fn the_subscriber_comes_first<B: Bench>(site: &Site) {
    for dir in [site.dir.clone(), site.dir.join("not/there/yet")] {
        let config =
            SubscriberConfig { runtime_dir: Some(dir.clone()), ..site.subscriber_config() };
        let viewer = asleep(move || {
            let interrupt = Interrupt::new().unwrap();
            let mut subscriber = Subscriber::connect(config, None, &interrupt).unwrap();
            let frame = item(subscriber.next_frame(&Wait::forever(&interrupt)).unwrap());
            intact::<B>(&frame);
        });
        let publisher = site.publisher(B::backend(), |c| c.runtime_dir = Some(dir));
        publish::<B>(&publisher, 1);
        viewer.join().unwrap();
    }
}

fn no_publisher_comes<B: Bench>(site: &Site) {
    // One of another key is none.
    let _other = site.publisher(B::backend(), |c| c.key = "cam2".into());
    let interrupt = Interrupt::new().unwrap();
    for timeout in [Duration::ZERO, Duration::from_millis(20)] {
        match Subscriber::connect(site.subscriber_config(), Some(timeout), &interrupt) {
            Err(Error::NoPublisher { key, searched }) => {
                assert_eq!((&*key, &searched[..]), ("cam", &[site.dir.clone()][..]));
            }
            other => panic!("{:?}", other.err()),
        }
    }
}

fn an_interrupt_ends_every_wait<B: Bench>(site: &Site) {
    let interrupt = Arc::new(Interrupt::new().unwrap());
    let (config, its) = (site.subscriber_config(), interrupt.clone());
    let connects = asleep(move || Subscriber::connect(config, None, &its));
    interrupt.set();
    assert!(matches!(connects.join().unwrap(), Err(Error::Interrupted)));
    // It stays until it is taken back.
    let again = Subscriber::connect(site.subscriber_config(), None, &interrupt);
    assert!(matches!(again, Err(Error::Interrupted)));
    interrupt.clear();

    let publisher = site.publisher(B::backend(), |_| {});
    publisher.add_track(0, "video/x-h264", Default::default()).unwrap();
    let config = SubscriberConfig { max_frames: 1, ..site.subscriber_config() };
    let subscriber = Subscriber::connect(config, None, &interrupt).unwrap();
    // Track 1 does not exist.
    for track in [0, 1] {
        let mut packets = subscriber.packets(track, Start::default());
        let its = interrupt.clone();
        let waits = asleep(move || packets.next(&Wait::forever(&its)).unwrap());
        interrupt.set();
        assert!(matches!(waits.join().unwrap(), Next::Interrupted));
        interrupt.clear();
    }
    let mut viewer = Viewer { subscriber, interrupt };
    let interrupted = |mut viewer: Viewer| {
        let interrupt = viewer.interrupt.clone();
        let waits = asleep(move || (viewer.next(), viewer));
        interrupt.set();
        let (next, mut viewer) = waits.join().unwrap();
        assert!(matches!(next, Next::Interrupted), "{next:?}");
        assert!(matches!(viewer.look(), Next::Interrupted));
        interrupt.clear();
        viewer
    };
    viewer = interrupted(viewer);
    publish::<B>(&publisher, 1);
    let held = viewer.frame();
    // With the credit used up it waits for something else.
    viewer = interrupted(viewer);
    publish::<B>(&publisher, 2);
    drop(held);
    assert_eq!(viewer.frame().seq, 2);
}
