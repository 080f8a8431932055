// SPDX-License-Identifier: LGPL-2.1-or-later
//! A process that is out of file descriptors, memory, space or permissions reports it or waits,
//! and leaves nothing open. Limits apply to a process, so each test runs in a child process.
//!
//! Root is exempt from the limit on file descriptors in unread messages. So these processes are of a user
//! without rights, unless they have to mount something. That limit applies to all processes of a user together, so these
//! tests run one after the other.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cuframes::memory::host::HostBackend;
use cuframes::sync::lock;
use cuframes::{
    Error, Interrupt, Mode, Next, Policy, Publisher, PublisherConfig, RefusalReason, Subscriber,
    Wait,
};
use nix::libc;
use nix::sys::resource::Resource;
use testing::raw::{RawPeer, RawSubscriber, hello_as};
use testing::{
    CAPS, Child, FullTable, Resources, SIZE, TestDir, TestSubscriber, drop_root, fill, info, limit,
    report, until, wait_for_parent,
};

/// Where the test `child` of all roles is.
const MODULE: &str = module_path!();

/// Held by the test that runs.
static ALONE: Mutex<()> = Mutex::new(());

macro_rules! in_a_child {
    ($($test:ident)*) => {
        $(
            #[test]
            fn $test() {
                let _alone = lock(&ALONE);
                let test = TestDir::new(concat!("limits-", stringify!($test))).unprivileged();
                Child::start(module_path!(), stringify!($test), &test.dir).finish();
            }
        )*

        /// Plays the role of a child.
        #[test]
        fn child() {
            let Some((role, dir)) = testing::role() else { return };
            let test = TestDir::at(&dir, &role);
            if role != "directory_without_space" {
                drop_root();
            }
            match &*role {
                $(stringify!($test) => roles::$test(&test),)*
                "publish" => roles::publish(&test),
                "join" => roles::join(&test),
                other => panic!("{other}?"),
            }
        }
    };
}

in_a_child! {
    publisher_without_fds
    subscriber_without_fds
    announcement_without_fds
    server_without_fds
    unread_fds_do_not_exhaust_publishers
    frames_without_memory
    join_without_memory
    waiting_publisher_without_memory
    mapping_without_memory
    directory_without_space
}

/// Leaves room for `more` bytes of address space.
fn leave_memory(more: u64) {
    // A thread that has just started takes a lot, and returns a part of it.
    until(threads_sleep);
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let used = statm.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096;
    limit(Resource::RLIMIT_AS, used + more);
}

/// Returns whether all threads sleep except this one.
fn threads_sleep() -> bool {
    let own = nix::unistd::gettid().to_string();
    std::fs::read_dir("/proc/self/task").unwrap().all(|task| {
        let task = task.unwrap();
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        task.file_name() == *own || stat.rsplit(')').next().unwrap().starts_with(" S")
    })
}

mod roles {
    use super::*;

    fn send(publisher: &Publisher, n: u64, size: usize) {
        let mut loan = publisher.loan(size).unwrap().expect("a free slot");
        fill(loan.bytes_mut(), n);
        publisher.publish(loan, &info(n, size));
    }

    fn open(test: &TestDir) -> cuframes::Result<Publisher> {
        let publisher = Publisher::open(test.config(), Arc::new(HostBackend), |_| {})?;
        publisher.set_format(CAPS, SIZE)?;
        send(&publisher, 1, SIZE);
        Ok(publisher)
    }

    /// Publishes a frame of as many bytes as the parent asks for, and waits for the end.
    pub(super) fn publish(test: &TestDir) {
        let publisher = Publisher::open(test.config(), Arc::new(HostBackend), |_| {}).unwrap();
        report("ready");
        let mut size = String::new();
        std::io::stdin().read_line(&mut size).unwrap();
        let size = size.trim().parse().unwrap();
        publisher.set_format(CAPS, size).unwrap();
        send(&publisher, 1, size);
        report("published");
        wait_for_parent();
    }

    /// Tries to join until it is accepted.
    pub(super) fn join(test: &TestDir) {
        wait_for_parent();
        let interrupt = Interrupt::new().unwrap();
        loop {
            let config = cuframes::SubscriberConfig { max_frames: 8, ..test.subscriber_config() };
            match Subscriber::connect(config, None, &interrupt) {
                Ok(_) => break report("in"),
                Err(Error::Refused { reason: RefusalReason::NoMemory, text, .. }) => {
                    report(text);
                    wait_for_parent();
                }
                Err(e) => panic!("{e}"),
            }
        }
        wait_for_parent();
    }

    pub(super) fn publisher_without_fds(test: &TestDir) {
        limit(Resource::RLIMIT_NOFILE, 64);
        let before = Resources::now().fds;
        let mut refused = 0;
        for room in 0.. {
            let full = FullTable::with_room_for(room);
            let opened = open(test);
            drop(full);
            let Err(error) = opened else { break };
            assert!(error.to_string().contains("Too many open files"), "{room}: {error}");
            assert_eq!(Resources::now().fds, before, "with room for {room}");
            assert!(!test.dir.join(".cam.new").exists());
            refused += 1;
        }
        assert!(refused > 3);
        until(|| Resources::now().fds == before);
        assert_eq!(test.files(), [""; 0]);
    }

    pub(super) fn subscriber_without_fds(test: &TestDir) {
        let mut source = Child::start(MODULE, "publish", &test.dir);
        assert_eq!(source.read_line(), "ready");
        source.send_line("6000");
        assert_eq!(source.read_line(), "published");
        limit(Resource::RLIMIT_NOFILE, 64);
        let before = Resources::now().fds;
        let mut failed = 0;
        for room in 0.. {
            let full = FullTable::with_room_for(room);
            let interrupt = Interrupt::default();
            let joined = Subscriber::connect(test.subscriber_config(), None, &interrupt);
            let joined =
                joined.map(|mut subscriber| match subscriber.next_frame(&Wait::default()) {
                    Ok(Next::Item(_)) => None,
                    Ok(Next::Lost { reason: RefusalReason::NoMemory, text }) => Some(text),
                    other => panic!("{other:?}"),
                });
            drop((full, interrupt));
            let text = match joined {
                Ok(None) => break,
                Ok(Some(text)) => text,
                Err(error) => error.to_string(),
            };
            let known = ["Too many open files", "no file descriptor left"];
            assert!(known.iter().any(|known| text.contains(known)), "{room}: {text}");
            assert_eq!(Resources::now().fds, before, "with room for {room}: {text}");
            failed += 1;
        }
        assert!(failed > 1);
        source.finish();
    }

    /// A subscriber whose process has no fd for the memory that is announced after it joined.
    pub(super) fn announcement_without_fds(test: &TestDir) {
        let mut source = Child::start(MODULE, "publish", &test.dir);
        assert_eq!(source.read_line(), "ready");
        limit(Resource::RLIMIT_NOFILE, 64);
        let interrupt = Interrupt::new().unwrap();
        let mut subscriber =
            Subscriber::connect(test.subscriber_config(), None, &interrupt).unwrap();
        let full = FullTable::with_room_for(0);
        source.send_line("6000");
        assert_eq!(source.read_line(), "published");
        let lost = subscriber.next_frame(&Wait::default());
        drop(full);
        match lost {
            Ok(Next::Lost { reason: RefusalReason::NoMemory, text }) => {
                assert!(text.contains("no file descriptor left"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        source.finish();
    }

    /// Publishing continues, and a subscriber joins as soon as there is an fd for it.
    pub(super) fn server_without_fds(test: &TestDir) {
        let publisher = open(test).unwrap();
        let mut late = Child::start(MODULE, "join", &test.dir);
        limit(Resource::RLIMIT_NOFILE, 64);
        // Its page needs one more than its connection.
        for room in 0..3 {
            let full = FullTable::with_room_for(room);
            if room == 0 {
                late.resume();
            }
            for _ in 0..20 {
                let n = publisher.stats().pool.published + 1;
                send(&publisher, n, SIZE);
                std::thread::sleep(Duration::from_millis(10));
            }
            drop(full);
        }
        loop {
            match &*late.read_line() {
                "in" => break,
                text => assert!(text.contains("no memory or file descriptors left"), "{text}"),
            }
            late.resume();
        }
        late.finish();
    }

    /// Subscribers that read no messages keep no other subscriber out: neither from their publisher nor from another one of its user.
    ///
    /// There are more announcements than file descriptors that a user may have in unread messages.
    pub(super) fn unread_fds_do_not_exhaust_publishers(test: &TestDir) {
        const DEAF: usize = 20;
        const MUTE: usize = 8;
        const ROUNDS: u64 = 60;
        const FDS: u64 = 1024;
        limit(Resource::RLIMIT_NOFILE, FDS);
        let join = |credit, name| {
            let joined = RawSubscriber::join(&test.dir, &hello_as(Mode::Newest, credit, name));
            joined.unwrap_or_else(|| panic!("{name} is kept out"))
        };
        let publisher = open(test).unwrap();
        let mut stays = test.subscriber(|_| {});
        assert_eq!(stays.frame().seq, 1);
        let mut n = 1;
        let mut pass = |stays: &mut TestSubscriber| {
            n += 1;
            let size = SIZE << (n % 4);
            publisher.set_format(CAPS, size).unwrap();
            send(&publisher, n, size);
            assert_eq!(stays.frame().seq, n);
            n
        };
        let deaf: Vec<_> = (0..DEAF).map(|_| join(1, "deaf")).collect();
        for _ in 0..ROUNDS {
            let guest = join(8, "guest");
            pass(&mut stays);
            drop(guest);
            until(|| publisher.stats().subscribers.iter().all(|s| s.name != "guest"));
            pass(&mut stays);
        }
        assert!(DEAF as u64 * ROUNDS > FDS);
        // They do not even read WELCOME.
        let mute: Vec<_> = (0..MUTE).map(|_| RawPeer::connect(&test.dir)).collect();
        assert!(mute.iter().all(|peer| peer.send(&hello_as(Mode::Newest, 1, "mute"), &[])));
        until(|| publisher.stats().subscribers.len() == 1 + DEAF + MUTE);

        let mut newcomer = test.subscriber(|_| {});
        let n = pass(&mut stays);
        assert_eq!(newcomer.frame().seq, n);
        let other = test.publisher(Arc::new(HostBackend), |c| c.key = "other".into());
        let mut other_subscriber = test.subscriber(|c| c.key = "other".into());
        send(&other, 1, SIZE);
        assert_eq!(other_subscriber.frame().seq, 1);
        drop((deaf, mute));
    }

    const BIG: usize = 64 << 20;

    pub(super) fn frames_without_memory(test: &TestDir) {
        let publisher = open(test).unwrap();
        let mut viewer = test.subscriber(|_| {});
        assert_eq!(viewer.frame().seq, 1);
        leave_memory(32 << 20);
        let error = publisher.set_format("big", BIG).unwrap_err().to_string();
        assert!(error.contains("get memory for frames"), "{error}");
        assert!(publisher.loan(BIG).is_err());
        // Smaller frames, or more memory, help.
        publisher.set_format(CAPS, SIZE).unwrap();
        send(&publisher, 2, SIZE);
        assert_eq!(viewer.frame().seq, 2);
        limit(Resource::RLIMIT_AS, u64::MAX);
        publisher.set_format("big", BIG).unwrap();
        send(&publisher, 3, BIG);
        assert_eq!(viewer.frame().seq, 3);
    }

    pub(super) fn join_without_memory(test: &TestDir) {
        let config = PublisherConfig { window: 1, ..test.config() };
        let publisher = Publisher::open(config, Arc::new(HostBackend), |_| {}).unwrap();
        let mut viewer = test.subscriber(|c| c.max_frames = 1);
        let size = 8 << 20;
        publisher.set_format("large", size).unwrap();
        send(&publisher, 1, size);
        assert_eq!(viewer.frame().seq, 1);
        let mut late = Child::start(MODULE, "join", &test.dir);
        leave_memory(40 << 20);
        late.resume();
        let text = late.read_line();
        assert!(text.contains("get memory for frames"), "{text}");
        for n in 2..20 {
            send(&publisher, n, size);
            assert_eq!(viewer.frame().seq, n);
        }
        limit(Resource::RLIMIT_AS, u64::MAX);
        late.resume();
        assert_eq!(late.read_line(), "in");
        late.finish();
    }

    /// A publisher that may wait does so, and loses no frame.
    pub(super) fn waiting_publisher_without_memory(test: &TestDir) {
        let policy = Policy::Wait(Duration::from_millis(10));
        let config = PublisherConfig { window: 1, policy, ..test.config() };
        let publisher = Publisher::open(config, Arc::new(HostBackend), |_| {}).unwrap();
        let mut viewer = test.subscriber(|c| (c.mode, c.max_frames) = (Mode::Strict, 1));
        let size = 8 << 20;
        publisher.set_format("large", size).unwrap();
        send(&publisher, 1, size);
        send(&publisher, 2, size);
        let _kept = publisher.loan(size).unwrap().expect("a free slot");
        leave_memory(4 << 20);
        send(&publisher, 3, size);
        until(|| matches!(viewer.poll(), Next::Lost { reason: RefusalReason::Stalled, .. }));
    }

    pub(super) fn mapping_without_memory(test: &TestDir) {
        let mut source = Child::start(MODULE, "publish", &test.dir);
        assert_eq!(source.read_line(), "ready");
        let mut viewer = test.subscriber(|_| {});
        leave_memory(32 << 20);
        source.send_line(&BIG.to_string());
        assert_eq!(source.read_line(), "published");
        let text = match viewer.subscriber.next_frame(&Wait::default()) {
            Ok(Next::Lost { reason, text }) => {
                // The lack of memory may pass.
                assert_eq!(reason, RefusalReason::NoMemory);
                text
            }
            other => panic!("{other:?}"),
        };
        assert!(text.contains("can't be mapped: Cannot allocate memory"), "{text}");
        drop(viewer);
        limit(Resource::RLIMIT_AS, u64::MAX);
        assert_eq!(test.subscriber(|_| {}).frame().seq, 1);
        source.finish();
    }

    /// Returns false if this user may not mount.
    fn mount(dir: &Path, options: &str, flags: u64) -> bool {
        let text = |s: &str| std::ffi::CString::new(s).unwrap();
        let (dir, kind) = (text(dir.to_str().unwrap()), text("tmpfs"));
        let options = text(options);
        // SAFETY: all pointers are to live C strings.
        unsafe {
            let (dir, kind) = (dir.as_ptr(), kind.as_ptr());
            libc::mount(kind, dir, kind, flags, options.as_ptr().cast()) == 0
        }
    }

    fn unmount(dir: &Path) {
        let dir = std::ffi::CString::new(dir.to_str().unwrap()).unwrap();
        // SAFETY: a pointer to a live C string.
        assert_eq!(unsafe { libc::umount(dir.as_ptr()) }, 0);
    }

    pub(super) fn directory_without_space(test: &TestDir) {
        // SAFETY: the call concerns this process only, and no other thread uses paths.
        let own = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let root = c"/".as_ptr();
        // SAFETY: pointers to C strings, or null where nothing is needed.
        let own = own
            && unsafe { libc::mount(root, root, std::ptr::null(), private, std::ptr::null()) } == 0;
        if !own || !mount(&test.dir, "size=4k,nr_inodes=2", 0) {
            eprintln!("mounts are not allowed: left out");
            return;
        }
        let refused = |expected: &str| match open(test) {
            Err(Error::RuntimeDir { problem, .. }) => {
                assert!(problem.contains(expected), "{problem}")
            }
            other => panic!("{:?}", other.err()),
        };
        // There is room for the lock file, and none for the socket.
        refused("can't contain a socket (ENOSPC");
        std::fs::write(test.dir.join("full"), "").unwrap_or_default();
        refused("No space left");
        assert!(mount(&test.dir, "", libc::MS_RDONLY));
        refused("can't be written to (EROFS");
        unmount(&test.dir);
        std::fs::remove_file(test.dir.join("full")).unwrap_or_default();
        unmount(&test.dir);
        drop(open(test).unwrap());
        assert_eq!(test.files(), [""; 0]);
    }
}
