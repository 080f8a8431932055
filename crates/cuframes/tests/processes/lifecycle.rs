// SPDX-License-Identifier: LGPL-2.1-or-later
//! Events in a process that uses the library: panics, forks, many threads, interrupts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cuframes::memory::Backend;
use cuframes::memory::host::HostBackend;
use cuframes::{
    Error, Interrupt, Mode, Next, PacketInfo, Policy, Publisher, Start, Subscriber, TrackConfig,
    Wait,
};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::ForkResult;
use testing::{
    CAPS, Child, Resources, SIZE, TestDir, exit_with_parent, fill, info, item, number, report,
    until, wait_for_parent,
};

/// Plays the role of a child.
#[test]
fn child() {
    let Some((role, dir)) = testing::role() else { return };
    let test = TestDir::at(&dir, &role);
    match &*role {
        "fork" => forks(&test),
        "fork-drops" => drops_in_forked_process(&test),
        "connects" => a_thousand_connects(&test),
        other => panic!("{other}?"),
    }
}

/// A panic of the application in its event handler does not end the publisher.
#[test]
fn panic_in_event_handler_is_contained() {
    let test = TestDir::new("lifecycle-panic");
    let count = Arc::new(AtomicU64::new(0));
    let counter = count.clone();
    let publisher = Publisher::open(test.config(), Arc::new(HostBackend), move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        panic!("of the test");
    });
    let publisher = publisher.unwrap();
    publisher.set_format(CAPS, SIZE).unwrap();
    for n in 1..4 {
        let mut viewer = test.subscriber(|_| {});
        send(&publisher, n);
        assert_eq!(viewer.frame().seq, n);
        drop(viewer);
        until(|| count.load(Ordering::Relaxed) == 2 * n);
    }
}

fn send(publisher: &Publisher, n: u64) {
    let mut loan = publisher.loan(SIZE).unwrap().expect("a free slot");
    fill(loan.bytes_mut(), n);
    publisher.publish(loan, &info(n, SIZE));
}

/// A forked process has all fds without using them.
#[test]
fn forked_process_holds_nothing() {
    let test = TestDir::new("lifecycle-fork");
    let publisher = test.publisher(Arc::new(HostBackend), |c| c.key = "other".into());
    let mut child = Child::start(module_path!(), "fork", &test.dir);
    assert_eq!(child.read_line(), "forked");
    // Its subscriber is disconnected, and its key is free.
    until(|| publisher.stats().subscribers.is_empty());
    drop(test.publisher(Arc::new(HostBackend), |_| {}));
    child.finish();
}

fn forks(test: &TestDir) {
    let publisher = test.publisher(Arc::new(HostBackend), |_| {});
    let other = test.subscriber(|c| c.key = "other".into());
    let mut own = test.subscriber(|_| {});
    // SAFETY: the forked process only waits and exits, which is async-signal-safe.
    let forked = unsafe { libc::fork() };
    if forked == 0 {
        // SAFETY: as above.
        unsafe {
            let _ = exit_with_parent(Signal::SIGKILL);
            libc::pause();
            libc::_exit(0);
        }
    }
    drop(other);
    send(&publisher, 1);
    assert_eq!(own.frame().seq, 1);
    drop(publisher);
    assert!(matches!(own.next_frame(), Next::Lost { .. }));
    report("forked");
    wait_for_parent();
    // SAFETY: a child of this process, which was not waited for.
    unsafe {
        libc::kill(forked, libc::SIGKILL);
        libc::waitpid(forked, std::ptr::null_mut(), 0);
    }
}

/// A forked process that drops its copies does not affect the process that created the objects.
#[test]
fn forked_process_drops_copies_only() {
    let test = TestDir::new("lifecycle-fork-drops");
    Child::start(module_path!(), "fork-drops", &test.dir).finish();
}

fn drops_in_forked_process(test: &TestDir) {
    let backend: Arc<dyn Backend> = Arc::new(HostBackend);
    let wait = Policy::Wait(Duration::from_secs(3600));
    let mut publisher = test.publisher(backend.clone(), |c| c.policy = wait);
    let track = publisher.add_track(0, "a", TrackConfig::default()).unwrap();
    let mut own = test.subscriber(|c| c.mode = Mode::Strict);
    let mut reader = own.subscriber.packets(0, Start::NextKeyframe);
    send(&publisher, 1);
    let mut held = own.frame();
    let (files, stats) = (test.files(), publisher.stats());
    assert_eq!(stats.subscribers[0].packets.len(), 1);

    drop_in_forked_process(&mut reader);
    drop_in_forked_process(&mut held);
    drop_in_forked_process(&mut own.subscriber);
    drop_in_forked_process(&mut publisher);

    assert_eq!(test.files(), files);
    assert_eq!(publisher.stats().subscribers, stats.subscribers);
    // The server thread accepts a subscriber, after it has handled all earlier messages.
    let mut newcomer = test.subscriber(|_| {});
    // The publisher still waits for the strict subscriber, which did not leave.
    let mut last = 1;
    while let Some(loan) = publisher.loan_in(&backend, SIZE, &|| true).unwrap() {
        last = publisher.publish(loan, &info(last + 1, SIZE));
        assert!(last < 1000, "the publisher does not wait");
    }
    for seq in 2..=last {
        assert_eq!(own.frame().seq, seq);
    }
    // The listening thread receives announcements: a format, and memory for larger frames.
    publisher.set_format("video/x-raw,larger", 4 * SIZE).unwrap();
    let loan = publisher.loan(4 * SIZE).unwrap().expect("a free slot");
    let seq = publisher.publish(loan, &info(last + 1, 4 * SIZE));
    for subscriber in [&mut own, &mut newcomer] {
        let frame = subscriber.frame();
        assert_eq!((frame.seq, &*frame.caps), (seq, "video/x-raw,larger"));
    }
    track.push(PacketInfo { keyframe: true, ..Default::default() }, b"packet").unwrap();
    let packet = item(reader.next(&Wait::default()).unwrap());
    assert_eq!(packet.data, b"packet");
    assert_eq!(number(held.bytes().unwrap()), Some(1));
    drop(publisher);
    assert!(matches!(own.next_frame(), Next::Lost { .. }));
}

/// Drops a value in a forked process, and waits until that process has exited. This process keeps the value.
#[track_caller]
fn drop_in_forked_process<T>(value: &mut T) {
    // SAFETY: the forked process uses only its copy of the value, and exits. glibc permits it to free memory.
    match unsafe { nix::unistd::fork() }.unwrap() {
        ForkResult::Child => {
            let _ = exit_with_parent(Signal::SIGKILL);
            let value = std::ptr::from_mut(value);
            // SAFETY: this process does not use the value again.
            let drop = AssertUnwindSafe(|| unsafe { value.drop_in_place() });
            let status = catch_unwind(drop).is_err().into();
            // SAFETY: `_exit` only ends the process.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
        }
    }
}

#[test]
fn thousand_connects_leak_nothing() {
    let test = TestDir::new("lifecycle-connects");
    Child::start(module_path!(), "connects", &test.dir).finish();
}

fn a_thousand_connects(test: &TestDir) {
    let publisher = test.publisher(Arc::new(HostBackend), |_| {});
    let mut stays = test.subscriber(|c| c.mode = Mode::Strict);
    send(&publisher, 1);
    assert_eq!(stays.frame().seq, 1);
    let before = Resources::now();
    let (done, mut n) = (AtomicBool::new(false), 1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let crowd: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..250 {
                            drop(test.subscriber(|c| c.max_frames = 8));
                        }
                    })
                })
                .collect();
            crowd.into_iter().for_each(|one| one.join().unwrap());
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            n += 1;
            send(&publisher, n);
            let frame = stays.frame();
            assert_eq!((frame.seq, frame.skipped), (n, 0));
            assert_eq!(number(frame.bytes().unwrap()), Some(n));
        }
    });
    until(|| {
        n += 1;
        send(&publisher, n);
        stays.frame();
        publisher.stats().subscribers.len() == 1 && Resources::now() == before
    });
}

/// Interrupts that are set after their waits have ended.
#[test]
fn interrupt_outlives_its_waits() {
    let test = TestDir::new("lifecycle-interrupt");
    let interrupt = Interrupt::default();
    for _ in 0..20 {
        let (config, its) = (test.subscriber_config(), interrupt.clone());
        let waits = std::thread::spawn(move || Subscriber::connect(config, None, &its).err());
        interrupt.set();
        assert!(matches!(waits.join().unwrap(), Some(Error::Interrupted)));
        interrupt.sleep(Duration::from_secs(3600));
        interrupt.clear();
    }
    let publisher = test.publisher(Arc::new(HostBackend), |_| {});
    let mut subscriber = Subscriber::connect(test.subscriber_config(), None, &interrupt).unwrap();
    send(&publisher, 1);
    let next = subscriber.next_frame(&Wait::default()).unwrap();
    assert!(matches!(next, Next::Item(_)));
}
