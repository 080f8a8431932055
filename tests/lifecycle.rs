//! What a process may do to the elements and the library in it: any order of states, flushes, forks,
//! panics, crowds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use children::{Child, listen, say};
use cuframes::memory::host::HostBackend;
use cuframes::{Error, Interrupt, Mode, Next, Publisher, Subscriber, Wait};
use gst::prelude::*;
use nix::libc;
use support::{CAPS, SIZE, Site, fill, info, number, until};

#[path = "support/children.rs"]
mod children;
mod support;

const CAMERA: &str =
    "videotestsrc is-live=true ! video/x-raw,format=GRAY8,width=64,height=48,framerate=100/1";

/// The children's end of this file.
#[test]
fn child() {
    let Some((role, dir)) = children::role() else { return };
    let site = Site::at(&dir, &role);
    match &*role {
        "states" => any_order_of_states(&site),
        "fork" => forks(&site),
        "connects" => a_thousand_connects(&site),
        other => panic!("{other}?"),
    }
}

/// A pipeline of this site that ends with its scope.
struct Pipeline(gst::Pipeline);

impl Pipeline {
    fn new(site: &Site, description: &str) -> Self {
        gst::init().unwrap();
        gstcuframes::plugin_register_static().unwrap();
        let pipeline = gst::parse::launch(description).unwrap();
        let pipeline = pipeline.downcast::<gst::Pipeline>().unwrap();
        for element in pipeline.iterate_recurse().into_iter().flatten() {
            if element.has_property("runtime-dir") {
                element.set_property("runtime-dir", site.dir.to_str().unwrap());
            }
        }
        Self(pipeline)
    }

    fn set(&self, state: gst::State) {
        self.0.set_state(state).unwrap();
    }

    fn play(self) -> Self {
        self.set(gst::State::Playing);
        self
    }

    fn get(&self, name: &str) -> gst::Element {
        self.0.by_name(name).unwrap()
    }

    fn received(&self) -> u64 {
        self.get("src").property::<gst::Structure>("stats").get("received").unwrap()
    }

    /// Waits for frames from now on.
    fn sees_frames(&self) {
        let before = self.received();
        until(|| self.received() > before + 2);
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.0.set_state(gst::State::Null).unwrap();
    }
}

fn resources() -> (usize, usize) {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (fds, maps.lines().filter(|l| l.contains("memfd:cuframes")).count())
}

#[test]
fn states_change_in_any_order_a_thousand_times() {
    let site = Site::new("lifecycle-states");
    Child::start("states", &site.dir).finish();
}

fn any_order_of_states(site: &Site) {
    let make = || {
        [
            format!("{CAMERA} ! cuframessink key=a"),
            "cuframessrc key=a ! fakesink async=false sync=false".into(),
            "cuframessrc key=a mode=strict ! fakesink async=false sync=false".into(),
            "cuframespacketsrc key=a ! fakesink async=false sync=false".into(),
        ]
        .map(|description| Pipeline::new(site, &description))
    };
    // What GStreamer keeps from its first use on.
    make().into_iter().for_each(|p| drop(p.play()));
    let before = resources();
    let pipelines = make();
    let states = [gst::State::Null, gst::State::Ready, gst::State::Paused, gst::State::Playing];
    let mut dice = 1u64;
    for _ in 0..1000 {
        dice = dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let (which, state) = (dice >> 40 & 3, dice >> 50 & 3);
        pipelines[which as usize].set(states[state as usize]);
    }
    drop(pipelines);
    until(|| resources() == before);
}

#[test]
fn a_key_changes_between_runs() {
    let site = Site::new("lifecycle-key");
    let publisher = Pipeline::new(&site, &format!("{CAMERA} ! cuframessink name=pub key=a"));
    let subscriber = Pipeline::new(&site, "cuframessrc name=src key=a ! fakesink sync=false");
    for (key, state) in [("a", gst::State::Null), ("b", gst::State::Ready), ("c", gst::State::Null)]
    {
        publisher.get("pub").set_property("key", key);
        subscriber.get("src").set_property("key", key);
        publisher.set(gst::State::Playing);
        subscriber.set(gst::State::Playing);
        subscriber.sees_frames();
        assert_eq!(site.files(), [format!("{key}.lock"), format!("{key}.sock")]);
        publisher.set(state);
        subscriber.set(state);
    }
}

#[test]
fn sources_are_disposed_while_they_wait() {
    let site = Site::new("lifecycle-dispose");
    let publisher = Pipeline::new(&site, &format!("{CAMERA} ! cuframessink key=here")).play();
    for round in 0..50 {
        for source in [
            "cuframessrc key=none",
            "cuframespacketsrc key=none",
            "cuframessrc key=here",
            "cuframespacketsrc key=here",
        ] {
            let pipeline = Pipeline::new(&site, &format!("{source} name=src ! fakesink")).play();
            let weak = pipeline.get("src").downgrade();
            if round % 2 == 0 {
                std::thread::yield_now();
            }
            drop(pipeline);
            until(|| weak.upgrade().is_none());
        }
    }
    drop(publisher);
}

#[test]
fn two_sinks_and_ten_sources_share_a_process() {
    let site = Site::new("lifecycle-many");
    let publishers = ["a", "b"].map(|key| {
        Pipeline::new(&site, &format!("{CAMERA} ! cuframessink name=pub key={key}")).play()
    });
    let sources: Vec<_> = (0..10)
        .map(|n| {
            let key = ["a", "b"][n % 2];
            let source = format!("cuframessrc name=src key={key} ! fakesink sync=false");
            Pipeline::new(&site, &source).play()
        })
        .collect();
    sources.iter().for_each(Pipeline::sees_frames);
    for publisher in publishers {
        let stats = publisher.get("pub").property::<gst::Structure>("stats");
        assert_eq!(stats.get::<gst::Array>("subscribers").unwrap().len(), 5);
    }
}

#[test]
fn flushes_pass_sources_that_wait() {
    let site = Site::new("lifecycle-flush");
    let subscriber =
        Pipeline::new(&site, "cuframessrc name=src key=a ! fakesink sync=false").play();
    // By way of the pipeline, which hands them to the source: GStreamer deadlocks where an element gets them
    // from outside while its pipeline changes its state.
    let flush = || {
        for _ in 0..50 {
            assert!(subscriber.0.send_event(gst::event::FlushStart::new()));
            assert!(subscriber.0.send_event(gst::event::FlushStop::new(true)));
        }
    };
    flush();
    let _publisher = Pipeline::new(&site, &format!("{CAMERA} ! cuframessink key=a")).play();
    flush();
    subscriber.sees_frames();
    flush();
    subscriber.sees_frames();
}

/// What an application does of an event is its own matter.
#[test]
fn a_panic_in_an_event_ends_nothing() {
    let site = Site::new("lifecycle-panic");
    let count = Arc::new(AtomicU64::new(0));
    let told = count.clone();
    let publisher = Publisher::open(site.config(), Arc::new(HostBackend), move |_| {
        told.fetch_add(1, Ordering::Relaxed);
        panic!("of the test");
    });
    let publisher = publisher.unwrap();
    publisher.set_format(CAPS, SIZE).unwrap();
    for n in 1..4 {
        let mut viewer = site.viewer(|_| {});
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

/// A process that was forked off has all fds, and does not know it.
#[test]
fn what_was_forked_off_holds_nothing() {
    let site = Site::new("lifecycle-fork");
    let publisher = site.publisher(Arc::new(HostBackend), |c| c.key = "other".into());
    let mut child = Child::start("fork", &site.dir);
    assert_eq!(child.hear(), "forked");
    // Its subscriber is gone, and its key is free.
    until(|| publisher.stats().subscribers.is_empty());
    drop(site.publisher(Arc::new(HostBackend), |_| {}));
    child.finish();
}

fn forks(site: &Site) {
    let publisher = site.publisher(Arc::new(HostBackend), |_| {});
    let other = site.viewer(|c| c.key = "other".into());
    let mut own = site.viewer(|_| {});
    // SAFETY: what is forked off does nothing but wait and end, which is async-signal-safe.
    let forked = unsafe { libc::fork() };
    if forked == 0 {
        // SAFETY: as above.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::pause();
            libc::_exit(0);
        }
    }
    drop(other);
    send(&publisher, 1);
    assert_eq!(own.frame().seq, 1);
    drop(publisher);
    assert!(matches!(own.next(), Next::Lost { .. }));
    say("forked");
    listen();
    // SAFETY: a child of this process, which was not waited for.
    unsafe {
        libc::kill(forked, libc::SIGKILL);
        libc::waitpid(forked, std::ptr::null_mut(), 0);
    }
}

#[test]
fn subscribers_come_and_go_a_thousand_times() {
    let site = Site::new("lifecycle-connects");
    Child::start("connects", &site.dir).finish();
}

fn a_thousand_connects(site: &Site) {
    let publisher = site.publisher(Arc::new(HostBackend), |_| {});
    let mut stays = site.viewer(|c| c.mode = Mode::Strict);
    send(&publisher, 1);
    assert_eq!(stays.frame().seq, 1);
    let before = resources();
    let (done, mut n) = (AtomicBool::new(false), 1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let crowd: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..250 {
                            drop(site.viewer(|c| c.max_frames = 8));
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
            assert_eq!(number(frame.bytes()), Some(n));
        }
    });
    until(|| {
        n += 1;
        send(&publisher, n);
        stays.frame();
        publisher.stats().subscribers.len() == 1 && resources() == before
    });
}

/// The 33rd of 32 is told why, waits, and gets the place of one that leaves.
#[test]
fn a_crowd_is_served_and_the_last_one_waits() {
    let site = Site::new("lifecycle-crowd");
    let publisher = Pipeline::new(&site, &format!("{CAMERA} ! cuframessink name=pub key=a")).play();
    let mut crowd: Vec<_> = (0..33)
        .map(|_| {
            Pipeline::new(&site, "cuframessrc name=src key=a max-frames=2 ! fakesink sync=false")
                .play()
        })
        .collect();
    until(|| crowd.iter().filter(|p| p.received() > 0).count() >= 32);
    let late = crowd.iter().position(|p| p.received() == 0).expect("one has to wait");
    let late = crowd.swap_remove(late);
    let warning = [gst::MessageType::Warning, gst::MessageType::Error];
    let said = late.0.bus().unwrap().timed_pop_filtered(gst::ClockTime::NONE, &warning).unwrap();
    let gst::MessageView::Warning(said) = said.view() else { panic!("{said:?}") };
    assert!(said.error().message().contains("all 32 places are taken"), "{said:?}");
    crowd.iter().for_each(Pipeline::sees_frames);
    assert_eq!(late.received(), 0);
    crowd.pop();
    late.sees_frames();
    let stats = publisher.get("pub").property::<gst::Structure>("stats");
    assert_eq!(stats.get::<u64>("dropped").unwrap(), 0);
}

/// Ends of waits that nobody is there for any more.
#[test]
fn interrupts_outlive_what_they_interrupt() {
    let site = Site::new("lifecycle-interrupt");
    let interrupt = Arc::new(Interrupt::default());
    for _ in 0..20 {
        let (config, its) = (site.subscriber_config(), interrupt.clone());
        let waits = std::thread::spawn(move || Subscriber::connect(config, None, &its).err());
        interrupt.set();
        assert!(matches!(waits.join().unwrap(), Some(Error::Interrupted)));
        interrupt.sleep(Duration::from_secs(3600));
        interrupt.clear();
    }
    let publisher = site.publisher(Arc::new(HostBackend), |_| {});
    let mut subscriber = Subscriber::connect(site.subscriber_config(), None, &interrupt).unwrap();
    send(&publisher, 1);
    let next = subscriber.next_frame(&Wait::forever(&interrupt)).unwrap();
    assert!(matches!(next, Next::Item(_)));
}
