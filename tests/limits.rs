//! No file descriptor, memory, space or permission left: each is said in a sentence or waited out, and
//! nothing is left open on the way. Limits are those of a process, so each test is a child of its own.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use children::{Child, listen, say};
use cuframes::memory::host::HostBackend;
use cuframes::{
    Error, FrameInfo, Interrupt, Mode, Next, Policy, Publisher, PublisherConfig, RefusalReason,
    Subscriber, Wait,
};
use gst::prelude::*;
use nix::libc;
use support::{CAPS, SIZE, Site, fill, info, until};

#[path = "support/children.rs"]
mod children;
mod support;

macro_rules! in_a_child {
    ($($test:ident)*) => {
        $(mod $test {
            #[test]
            fn in_a_child() {
                let site = super::Site::new(concat!("limits-", stringify!($test)));
                super::Child::start(stringify!($test), &site.dir).finish();
            }
        })*

        /// The children's end of this file.
        #[test]
        fn child() {
            let Some((role, dir)) = children::role() else { return };
            let site = Site::at(&dir, &role);
            match &*role {
                $(stringify!($test) => tests::$test(&site),)*
                "publish" => tests::publish(&site),
                "join" => tests::join(&site),
                other => panic!("{other}?"),
            }
        }
    };
}

in_a_child! {
    a_publisher_without_fds
    a_subscriber_without_fds
    a_server_without_fds
    elements_without_fds
    no_memory_for_frames
    no_memory_for_another_subscriber
    no_memory_for_what_upstream_keeps
    no_memory_to_map_frames
    a_directory_without_room
}

fn limit(resource: libc::__rlimit_resource_t, most: u64) {
    // SAFETY: both calls get a pointer to a live struct.
    unsafe {
        let mut limit = std::mem::zeroed::<libc::rlimit>();
        assert_eq!(libc::getrlimit(resource, &mut limit), 0);
        limit.rlim_cur = most.min(limit.rlim_max);
        assert_eq!(libc::setrlimit(resource, &limit), 0);
    }
}

/// Leaves room for `more` fds, until it is dropped.
struct Full(#[expect(dead_code, reason = "dropping them is what counts")] Vec<OwnedFd>);

impl Full {
    fn but_for(more: usize) -> Self {
        let mut fds: Vec<OwnedFd> = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            fds.push(file.into());
        }
        assert!(fds.len() >= more);
        fds.truncate(fds.len() - more);
        Self(fds)
    }
}

/// Leaves room for `more` bytes of address space.
fn leave_memory(more: u64) {
    // A thread that has just started takes a lot, and gives a part of it back.
    until(threads_sleep);
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let used = statm.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096;
    limit(libc::RLIMIT_AS, used + more);
}

/// Whether all do but this one.
fn threads_sleep() -> bool {
    let own = nix::unistd::gettid().to_string();
    std::fs::read_dir("/proc/self/task").unwrap().all(|task| {
        let task = task.unwrap();
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        task.file_name() == *own || stat.rsplit(')').next().unwrap().starts_with(" S")
    })
}

fn own_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

mod tests {
    use super::*;

    fn send(publisher: &Publisher, n: u64, size: usize) {
        let mut loan = publisher.loan(size).unwrap().expect("a free slot");
        fill(loan.bytes_mut(), n);
        publisher.publish(loan, &info(n, size));
    }

    fn open(site: &Site) -> cuframes::Result<Publisher> {
        let publisher = Publisher::open(site.config(), Arc::new(HostBackend), |_| {})?;
        publisher.set_format(CAPS, SIZE)?;
        send(&publisher, 1, SIZE);
        Ok(publisher)
    }

    /// Publishes a frame of as many bytes as it is told, until it is told to end.
    pub fn publish(site: &Site) {
        let publisher = Publisher::open(site.config(), Arc::new(HostBackend), |_| {}).unwrap();
        say("ready");
        let mut size = String::new();
        std::io::stdin().read_line(&mut size).unwrap();
        let size = size.trim().parse().unwrap();
        publisher.set_format(CAPS, size).unwrap();
        send(&publisher, 1, size);
        say("published");
        listen();
    }

    /// Joins again and again until it is let in.
    pub fn join(site: &Site) {
        listen();
        let interrupt = Interrupt::new().unwrap();
        loop {
            let config = cuframes::SubscriberConfig { max_frames: 8, ..site.subscriber_config() };
            match Subscriber::connect(config, None, &interrupt) {
                Ok(_) => break say("in"),
                Err(Error::Refused { code: RefusalReason::NoMemory, text, .. }) => {
                    say(text);
                    listen();
                }
                Err(e) => panic!("{e}"),
            }
        }
        listen();
    }

    pub fn a_publisher_without_fds(site: &Site) {
        limit(libc::RLIMIT_NOFILE, 64);
        let before = own_fds();
        let mut refused = 0;
        for room in 0.. {
            let full = Full::but_for(room);
            let opened = open(site);
            drop(full);
            let Err(error) = opened else { break };
            assert!(error.to_string().contains("Too many open files"), "{room}: {error}");
            assert_eq!(own_fds(), before, "with room for {room}");
            assert!(!site.dir.join(".cam.new").exists());
            refused += 1;
        }
        assert!(refused > 3);
        until(|| own_fds() == before);
        assert_eq!(site.files(), [""; 0]);
    }

    pub fn a_subscriber_without_fds(site: &Site) {
        let mut source = Child::start("publish", &site.dir);
        assert_eq!(source.hear(), "ready");
        source.tell("6000");
        assert_eq!(source.hear(), "published");
        limit(libc::RLIMIT_NOFILE, 64);
        let before = own_fds();
        let mut failed = 0;
        for room in 0.. {
            let full = Full::but_for(room);
            let interrupt = Interrupt::default();
            let joined = Subscriber::connect(site.subscriber_config(), None, &interrupt);
            let joined = joined.map(|mut subscriber| {
                match subscriber.next_frame(&Wait::forever(&interrupt)) {
                    Ok(Next::Item(_)) => None,
                    Ok(Next::Lost { code: RefusalReason::NoMemory, text }) => Some(text),
                    Err(Error::Refused { code: RefusalReason::NoMemory, text, .. }) => Some(text),
                    other => panic!("{other:?}"),
                }
            });
            drop((full, interrupt));
            let text = match joined {
                Ok(None) => break,
                Ok(Some(text)) => text,
                Err(error) => error.to_string(),
            };
            let known = ["Too many open files", "no file descriptor left"];
            assert!(known.iter().any(|known| text.contains(known)), "{room}: {text}");
            assert_eq!(own_fds(), before, "with room for {room}: {text}");
            failed += 1;
        }
        assert!(failed > 1);
        source.finish();
    }

    /// Frames go on, and who could not be let in is let in when there is an fd again.
    pub fn a_server_without_fds(site: &Site) {
        let publisher = open(site).unwrap();
        let mut late = Child::start("join", &site.dir);
        limit(libc::RLIMIT_NOFILE, 64);
        // Its page needs one more than its connection.
        for room in 0..3 {
            let full = Full::but_for(room);
            if room == 0 {
                late.go_on();
            }
            for _ in 0..20 {
                let n = publisher.stats().pool.published + 1;
                send(&publisher, n, SIZE);
                std::thread::sleep(Duration::from_millis(10));
            }
            drop(full);
        }
        loop {
            match &*late.hear() {
                "in" => break,
                text => assert!(text.contains("no memory or file descriptors left"), "{text}"),
            }
            late.go_on();
        }
        late.finish();
    }

    pub fn elements_without_fds(site: &Site) {
        gst::init().unwrap();
        gstcuframes::plugin_register_static().unwrap();
        let publisher = open(site).unwrap();
        publisher
            .set_format("video/x-raw, format=GRAY8, width=100, height=60, framerate=30/1", SIZE)
            .unwrap();
        // What GStreamer itself needs, a bus and a clock, is there before.
        let dir = site.dir.display();
        let source =
            format!("cuframessrc name=src key=cam runtime-dir={dir} ! fakesink sync=false");
        let make = |text: &str| gst::parse::launch(text).unwrap();
        let warm = make(&source);
        warm.set_state(gst::State::Paused).unwrap();
        warm.set_state(gst::State::Null).unwrap();
        let subscriber = make(&source);
        let sink = make(&format!("videotestsrc ! cuframessink key=other runtime-dir={dir}"));
        limit(libc::RLIMIT_NOFILE, own_fds() as u64 + 40);
        let full = Full::but_for(0);
        // Elements can be made all the same.
        let _another = gst::ElementFactory::make("cuframespacketsrc").build().unwrap();

        assert!(sink.set_state(gst::State::Paused).is_err());
        let error = sink.bus().unwrap().pop_filtered(&[gst::MessageType::Error]).unwrap();
        let gst::MessageView::Error(error) = error.view() else { unreachable!() };
        assert!(error.error().message().contains("Too many open files"), "{error:?}");

        subscriber.set_state(gst::State::Playing).unwrap();
        let awaited = [gst::MessageType::Error, gst::MessageType::Warning];
        let said = subscriber.bus().unwrap().timed_pop_filtered(gst::ClockTime::NONE, &awaited);
        let said = said.unwrap();
        let gst::MessageView::Warning(warning) = said.view() else { panic!("{said:?}") };
        assert!(warning.error().message().contains("Too many open files"), "{warning:?}");
        drop(full);
        // It goes on by itself.
        let src = subscriber.clone().downcast::<gst::Bin>().unwrap().by_name("src").unwrap();
        until(|| {
            let loan = publisher.loan(SIZE).unwrap().expect("a free slot");
            let planes = cuframes::Planes::new(&[0], &[100]);
            publisher.publish(loan, &FrameInfo { planes, ..info(0, SIZE) });
            src.property::<gst::Structure>("stats").get::<u64>("received").unwrap() > 0
        });
        subscriber.set_state(gst::State::Null).unwrap();
        sink.set_state(gst::State::Null).unwrap();
    }

    const BIG: usize = 64 << 20;

    pub fn no_memory_for_frames(site: &Site) {
        let publisher = open(site).unwrap();
        let mut viewer = site.viewer(|_| {});
        assert_eq!(viewer.frame().seq, 1);
        leave_memory(32 << 20);
        let error = publisher.set_format("big", BIG).unwrap_err().to_string();
        assert!(error.contains("get memory for frames"), "{error}");
        assert!(publisher.loan(BIG).is_err());
        // Smaller ones, or more memory, will do.
        publisher.set_format(CAPS, SIZE).unwrap();
        send(&publisher, 2, SIZE);
        assert_eq!(viewer.frame().seq, 2);
        limit(libc::RLIMIT_AS, u64::MAX);
        publisher.set_format("big", BIG).unwrap();
        send(&publisher, 3, BIG);
        assert_eq!(viewer.frame().seq, 3);
    }

    pub fn no_memory_for_another_subscriber(site: &Site) {
        let config = PublisherConfig { window: 1, ..site.config() };
        let publisher = Publisher::open(config, Arc::new(HostBackend), |_| {}).unwrap();
        let mut viewer = site.viewer(|c| c.max_frames = 1);
        let size = 8 << 20;
        publisher.set_format("large", size).unwrap();
        send(&publisher, 1, size);
        assert_eq!(viewer.frame().seq, 1);
        let mut late = Child::start("join", &site.dir);
        leave_memory(40 << 20);
        late.go_on();
        let text = late.hear();
        assert!(text.contains("get memory for frames"), "{text}");
        for n in 2..20 {
            send(&publisher, n, size);
            assert_eq!(viewer.frame().seq, n);
        }
        limit(libc::RLIMIT_AS, u64::MAX);
        late.go_on();
        assert_eq!(late.hear(), "in");
        late.finish();
    }

    /// A publisher that may wait does so, rather than lose a frame.
    pub fn no_memory_for_what_upstream_keeps(site: &Site) {
        let policy = Policy::Wait(Duration::from_millis(10));
        let config = PublisherConfig { window: 1, policy, ..site.config() };
        let publisher = Publisher::open(config, Arc::new(HostBackend), |_| {}).unwrap();
        let mut viewer = site.viewer(|c| (c.mode, c.max_frames) = (Mode::Strict, 1));
        let size = 8 << 20;
        publisher.set_format("large", size).unwrap();
        send(&publisher, 1, size);
        send(&publisher, 2, size);
        let _kept = publisher.loan(size).unwrap().expect("a free slot");
        leave_memory(4 << 20);
        send(&publisher, 3, size);
        until(|| matches!(viewer.look(), Next::Lost { code: RefusalReason::Stalled, .. }));
    }

    pub fn no_memory_to_map_frames(site: &Site) {
        let mut source = Child::start("publish", &site.dir);
        assert_eq!(source.hear(), "ready");
        let mut viewer = site.viewer(|_| {});
        leave_memory(32 << 20);
        source.tell(&BIG.to_string());
        assert_eq!(source.hear(), "published");
        let interrupt = viewer.interrupt.clone();
        let text = match viewer.subscriber.next_frame(&Wait::forever(&interrupt)) {
            Ok(Next::Lost { text, .. }) | Err(Error::Refused { text, .. }) => text,
            other => panic!("{other:?}"),
        };
        assert!(text.contains("can't be mapped: Cannot allocate memory"), "{text}");
        drop(viewer);
        limit(libc::RLIMIT_AS, u64::MAX);
        assert_eq!(site.viewer(|_| {}).frame().seq, 1);
        source.finish();
    }

    /// False where this user may not mount.
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

    pub fn a_directory_without_room(site: &Site) {
        // SAFETY: it concerns this process alone, which has one thread that cares.
        let own = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let root = c"/".as_ptr();
        // SAFETY: pointers to C strings, or null where nothing is needed.
        let own = own
            && unsafe { libc::mount(root, root, std::ptr::null(), private, std::ptr::null()) } == 0;
        if !own || !mount(&site.dir, "size=4k,nr_inodes=2", 0) {
            eprintln!("mounts are not allowed: left out");
            return;
        }
        let refused = |expected: &str| match open(site) {
            Err(Error::RuntimeDir { problem, .. }) => {
                assert!(problem.contains(expected), "{problem}")
            }
            other => panic!("{:?}", other.err()),
        };
        // Room for the lock file, and none for the socket.
        refused("does not take a socket (ENOSPC");
        std::fs::write(site.dir.join("full"), "").unwrap_or_default();
        refused("No space left");
        assert!(mount(&site.dir, "", libc::MS_RDONLY));
        refused("can't be written to (EROFS");
        // SAFETY: a pointer to a C string.
        let dir = std::ffi::CString::new(site.dir.to_str().unwrap()).unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { libc::umount(dir.as_ptr()) }, 0);
        std::fs::remove_file(site.dir.join("full")).unwrap_or_default();
        assert_eq!(unsafe { libc::umount(dir.as_ptr()) }, 0);
        drop(open(site).unwrap());
        assert_eq!(site.files(), [""; 0]);
    }
}
