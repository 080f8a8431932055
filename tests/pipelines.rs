//! Real processes: gst-launch, the scripts that are the manual, and a camera over RTSP.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gst::prelude::*;
use gst_video::prelude::*;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "support/programs.rs"]
mod programs;
#[path = "../examples/support/stamp.rs"]
mod stamp;

use programs::{Running, start};

/// A place for one test: a runtime directory, the plugin that was just built, a watchdog.
struct Site {
    dir: PathBuf,
    /// Tells the watchdog that the test is over.
    _alive: std::sync::mpsc::Sender<()>,
}

impl Site {
    fn new(name: &'static str) -> Self {
        gst::init().unwrap();
        gstcuframes::plugin_register_static().unwrap();
        let dir = std::env::temp_dir().join(format!("cuframes-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (alive, over) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            use std::sync::mpsc::RecvTimeoutError::Timeout;
            if over.recv_timeout(Duration::from_secs(120)) == Err(Timeout) {
                eprintln!("{name} hangs");
                // The children get SIGTERM through PR_SET_PDEATHSIG.
                std::process::abort();
            }
        });
        Self { dir, _alive: alive }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A program with this site's environment, in a process group that ends with the test.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        programs::command(&self.dir, program)
    }

    fn launch(&self, pipeline: &str) -> Command {
        let mut command = self.command("gst-launch-1.0");
        command.arg("-q").args(pipeline.split_whitespace());
        command
    }

    fn script(&self, name: &str) -> Command {
        self.command(Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines").join(name))
    }

    /// A camera on a port of its own, and its URL.
    fn camera(&self, options: &str) -> (Running, String) {
        let built =
            std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/camera");
        let mut command = self.command(built);
        command.args("--port 0".split(' ')).args(options.split_whitespace());
        // gst-rtsp-server 1.22 warns when clients of different transports meet.
        command.env_remove("G_DEBUG");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().expect("the camera says that it is ready").unwrap();
        let url = first.strip_prefix("ready ").expect(&first).to_owned();
        // Read on, so that it never blocks.
        std::thread::spawn(move || lines.for_each(drop));
        (Running(child), url)
    }

    /// A source of this process on the site's directory: the numbers in its frames.
    fn watch(&self, key: &str, mode: &str) -> Watched {
        let description =
            format!("cuframessrc name=src key={key} mode={mode} ! fakesink name=out sync=false");
        let pipeline = gst::parse::launch(&description).unwrap();
        let pipeline = pipeline.downcast::<gst::Pipeline>().unwrap();
        let source = pipeline.by_name("src").unwrap();
        source.set_property("runtime-dir", self.dir.to_str().unwrap());
        let numbers = Arc::new(Mutex::new(Vec::new()));
        let into = numbers.clone();
        let pad = pipeline.by_name("out").unwrap().static_pad("sink").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            let info = (info.buffer().unwrap(), pad.current_caps().unwrap());
            into.lock().unwrap().push(number(info.0, &info.1));
            gst::PadProbeReturn::Ok
        });
        pipeline.set_state(gst::State::Playing).unwrap();
        Watched { pipeline, numbers }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The number that is stamped into a frame, the same at its top and its bottom.
fn number(buffer: &gst::Buffer, caps: &gst::Caps) -> Option<u32> {
    let info = gst_video::VideoInfo::from_caps(caps).unwrap();
    let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info).unwrap();
    let stride = frame.plane_stride()[0] as usize;
    let luma = frame.plane_data(0).unwrap();
    stamp::read(luma, stride, info.width() as usize, info.height() as usize)
}

struct Watched {
    pipeline: gst::Pipeline,
    numbers: Arc<Mutex<Vec<Option<u32>>>>,
}

impl Watched {
    fn count(&self) -> usize {
        self.numbers.lock().unwrap().len()
    }

    /// Waits for more frames.
    fn more(&self, frames: usize) {
        let before = self.count();
        until(|| self.count() >= before + frames);
    }

    /// Every frame so far was whole, and none came twice or out of order.
    fn check(&self) -> Vec<u32> {
        let numbers = self.numbers.lock().unwrap();
        let numbers: Vec<u32> = numbers.iter().map(|n| n.expect("a whole frame")).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] > pair[0]), "{numbers:?}");
        numbers
    }

    fn stat(&self, field: &str) -> u64 {
        let source = self.pipeline.by_name("src").unwrap();
        source.property::<gst::Structure>("stats").get(field).unwrap()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.pipeline.set_state(gst::State::Null).unwrap();
    }
}

fn until(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The numbers in the frames of a recording, all of which have to decode.
fn decode(file: &Path) -> Vec<Option<u32>> {
    let description = format!(
        "filesrc location={} ! parsebin ! decodebin ! videoconvert ! video/x-raw,format=NV12 ! fakesink name=out sync=false",
        file.display()
    );
    let pipeline = gst::parse::launch(&description).unwrap().downcast::<gst::Pipeline>().unwrap();
    let numbers = Arc::new(Mutex::new(Vec::new()));
    let into = numbers.clone();
    let pad = pipeline.by_name("out").unwrap().static_pad("sink").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let found = number(info.buffer().unwrap(), &pad.current_caps().unwrap());
        into.lock().unwrap().push(found);
        gst::PadProbeReturn::Ok
    });
    pipeline.set_state(gst::State::Playing).unwrap();
    for message in pipeline.bus().unwrap().iter_timed(gst::ClockTime::NONE) {
        match message.view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(e) => panic!("{}: {:?}", e.error(), e.debug()),
            _ => {}
        }
    }
    pipeline.set_state(gst::State::Null).unwrap();
    std::mem::take(&mut numbers.lock().unwrap())
}

/// The main job: a camera over RTSP, one publisher, frames and packets in other processes.
fn a_camera_reaches_everybody(name: &'static str, codec: &str) {
    let site = Site::new(name);
    let options = format!("--codec {codec} --size 640x360 --fps 30 --gop 15");
    let (_camera, url) = site.camera(&options);
    let watched: Vec<_> = (0..2).map(|_| site.watch("cam1", "strict")).collect();
    let _publisher = start(site.script("publish-rtsp.sh").args(["--codec", codec, &url, "cam1"]));
    watched[0].more(20);
    let recording = site.path("late.mp4");
    let recorder = start(site.script("record.sh").args(["cam1", recording.to_str().unwrap()]));
    let picture = site.path("now.jpg");
    start(site.script("snapshot.sh").args(["cam1", picture.to_str().unwrap()])).success();
    until(|| recording.exists());
    watched[0].more(60);
    recorder.signal(Signal::SIGINT);
    recorder.success();

    for one in &watched {
        let numbers = one.check();
        // A queue in front of the decoder drops pictures rather than wait, as it does on a busy machine.
        let span = (numbers.last().unwrap() - numbers[0] + 1) as usize;
        assert!(numbers.len() * 2 >= span, "{} of {span}", numbers.len());
        assert_eq!(one.stat("duplicates"), 0);
    }
    assert_eq!(&std::fs::read(&picture).unwrap()[..2], b"\xff\xd8", "a JPEG");

    let numbers = check_recording(&recording, 0);
    assert!(numbers.len() >= 30, "{} frames", numbers.len());
}

#[test]
fn an_h264_camera_reaches_everybody() {
    a_camera_reaches_everybody("h264", "h264");
}

#[test]
fn an_h265_camera_reaches_everybody() {
    a_camera_reaches_everybody("h265", "h265");
}

#[test]
fn one_decode_gives_two_sizes() {
    let site = Site::new("scaled");
    let (_camera, url) = site.camera("--size 640x360 --fps 30 --gop 15");
    let (whole, small) = (site.watch("cam1", "newest"), site.watch("cam1.sub", "newest"));
    let options = ["--codec", "h264", "--scaled", "320x180", &url, "cam1"];
    let _publisher = start(site.script("publish-rtsp.sh").args(options));
    whole.more(20);
    small.more(20);
    whole.check();
    small.check();
    let pad = small.pipeline.by_name("out").unwrap().static_pad("sink").unwrap();
    let info = gst_video::VideoInfo::from_caps(&pad.current_caps().unwrap()).unwrap();
    assert_eq!((info.width(), info.height()), (320, 180));
}

#[test]
fn a_camera_that_drops_comes_back() {
    let site = Site::new("drop");
    let (camera, url) = site.camera("--size 320x240 --fps 30 --gop 15");
    let watched = site.watch("cam1", "newest");
    let _publisher = start(site.script("publish-rtsp.sh").args(["--codec", "h264", &url, "cam1"]));
    watched.more(10);
    kill(Pid::from_raw(camera.0.id() as i32), Signal::SIGUSR1).unwrap();
    until(|| watched.stat("reconnects") == 1);
    watched.more(10);
    watched.check();
}

/// Ten on one CPU are interrupted between any two of their steps.
#[test]
fn a_camera_that_has_just_come_can_be_ended() {
    let site = Site::new("short-lived");
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).unwrap();
    let mut one = CpuSet::new();
    one.set((0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu).unwrap()).unwrap()).unwrap();
    sched_setaffinity(this, &one).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| drop(site.camera("")));
        }
    });
}

/// 2,000 frames at full speed to four processes that want every one of them.
#[test]
fn four_processes_get_every_frame() {
    const FRAMES: u32 = 2_000;
    const SIZE: (usize, usize) = (160, 120);
    let site = Site::new("four");
    let files: Vec<_> = (0..4).map(|n| site.path(&format!("{n}.raw"))).collect();
    let subscribers: Vec<_> = files
        .iter()
        .map(|file| {
            let sink =
                format!("cuframessrc key=a mode=strict ! filesink location={}", file.display());
            start(&mut site.launch(&sink))
        })
        .collect();
    let publisher = gst::parse::launch(&format!(
        "videotestsrc name=camera num-buffers={FRAMES} pattern=black \
         ! video/x-raw,format=GRAY8,width={},height={},framerate=30/1 \
         ! cuframessink name=pub key=a policy=wait runtime-dir={}",
        SIZE.0,
        SIZE.1,
        site.dir.display()
    ))
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    let next = std::sync::atomic::AtomicU32::new(1);
    let pad = publisher.by_name("camera").unwrap().static_pad("src").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let mut map = info.buffer_mut().unwrap().make_mut().map_writable().unwrap();
        let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        stamp::write(&mut map, SIZE.0, SIZE.0, SIZE.1, number);
        gst::PadProbeReturn::Ok
    });
    // Nothing is published before PLAYING, so all can join first.
    publisher.set_state(gst::State::Paused).unwrap();
    let bus = publisher.bus().unwrap();
    let added =
        |m: &gst::Message| m.structure().is_some_and(|s| s.name() == "cuframes-subscriber-added");
    for _ in bus.iter_timed(gst::ClockTime::NONE).filter(added).take(4) {}
    publisher.set_state(gst::State::Playing).unwrap();
    bus.timed_pop_filtered(gst::ClockTime::NONE, &[gst::MessageType::Eos]);
    subscribers.into_iter().for_each(Running::success);
    let stats: gst::Structure = publisher.by_name("pub").unwrap().property("stats");
    publisher.set_state(gst::State::Null).unwrap();
    assert_eq!(stats.get::<u64>("copied").unwrap(), 0);
    assert_eq!(stats.get::<u64>("dropped").unwrap(), 0);

    for file in files {
        let bytes = std::fs::read(file).unwrap();
        let frames = bytes.chunks(SIZE.0 * SIZE.1);
        let numbers: Vec<_> = frames.map(|f| stamp::read(f, SIZE.0, SIZE.0, SIZE.1)).collect();
        let expected: Vec<_> = (1..=FRAMES).map(Some).collect();
        assert!(numbers == expected, "{} frames, not all in order", numbers.len());
    }
}

/// What a recorder gets is, byte for byte, what the parser gave the sink.
#[test]
fn an_elementary_stream_crosses_unchanged() {
    let site = Site::new("bytes");
    let (sent, got) = (site.path("sent.h264"), site.path("got.h264"));
    let mut subscriber = site.launch(&format!(
        "cuframespacketsrc key=a start=oldest-keyframe ! filesink location={}",
        got.display()
    ));
    let subscriber = start(&mut subscriber);
    let mut publisher = site.launch(&format!(
        "videotestsrc num-buffers=300 is-live=true ! video/x-raw,width=320,height=240,framerate=100/1 \
         ! x264enc key-int-max=30 speed-preset=ultrafast ! h264parse \
         ! video/x-h264,stream-format=byte-stream,alignment=au ! tee name=t \
         t. ! queue ! filesink location={} t. ! queue ! cuframessink key=a",
        sent.display()
    ));
    start(&mut publisher).success();
    subscriber.success();
    let (sent, got) = (std::fs::read(sent).unwrap(), std::fs::read(got).unwrap());
    assert!(got.len() > 10_000);
    assert!(sent == got, "{} bytes became {}", sent.len(), got.len());
}

/// SIGKILL on either side: nothing is left that a person has to remove, the other side goes on.
#[test]
fn killed_processes_leave_nothing_behind() {
    let site = Site::new("kill");
    let source =
        "videotestsrc is-live=true ! video/x-raw,format=NV12,width=320,height=240,framerate=60/1";
    let watched = site.watch("a", "newest");
    let publish = || start(&mut site.launch(&format!("{source} ! cuframessink key=a")));
    for round in 0..3 {
        let publisher = publish();
        let before = watched.numbers.lock().unwrap().len();
        until(|| watched.stat("reconnects") == round && watched.count() > before + 5);
        let subscriber = start(&mut site.launch("cuframessrc key=a ! fakesink"));
        watched.more(5);
        subscriber.signal(Signal::SIGKILL);
        drop(subscriber);
        watched.more(5);
        publisher.signal(Signal::SIGKILL);
    }
    // The files are still there after SIGKILL, and are replaced; a clean end removes them.
    let publisher = publish();
    until(|| watched.stat("reconnects") == 3);
    publisher.signal(Signal::SIGINT);
    publisher.success();
    until(|| std::fs::read_dir(&site.dir).unwrap().count() == 0);
}

/// A pipeline under GStreamer's leaks tracer, which writes to `log`.
fn traced(site: &Site, pipeline: &str, log: &str) -> Running {
    let mut command = site.launch(pipeline);
    command
        .env("GST_TRACERS", "leaks")
        .env("GST_DEBUG", "GST_TRACER:7")
        .env("GST_DEBUG_NO_COLOR", "1")
        .stderr(std::fs::File::create(site.path(log)).unwrap());
    start(&mut command)
}

#[track_caller]
fn no_leaks_in(site: &Site, logs: &[&str]) {
    for log in logs {
        let log = std::fs::read_to_string(site.path(log)).unwrap();
        let leaks: Vec<_> =
            log.lines().filter(|l| l.contains("object-alive, type-name=(string)Gst")).collect();
        assert!(leaks.is_empty(), "{leaks:#?}");
    }
}

/// GStreamer's leaks tracer says nothing about our elements, or about what went through them.
#[test]
fn nothing_leaks() {
    let site = Site::new("leaks");
    let publisher = traced(
        &site,
        "videotestsrc is-live=true num-buffers=120 ! video/x-raw,width=320,height=240,framerate=60/1 \
         ! tee name=t t. ! queue ! cuframessink name=pub key=a \
         t. ! queue ! x264enc tune=zerolatency key-int-max=30 ! h264parse ! pub.packets_0",
        "publisher",
    );
    let frames = traced(&site, "cuframessrc key=a ! queue ! fakesink", "frames");
    let copies = traced(&site, "cuframessrc key=a max-frames=1 ! queue ! fakesink", "copies");
    let packets = traced(&site, "cuframespacketsrc key=a ! h264parse ! fakesink", "packets");
    for process in [publisher, frames, copies, packets] {
        process.success();
    }
    no_leaks_in(&site, &["publisher", "frames", "copies", "packets"]);
}

/// The same of subscribers whose publishers are killed.
#[test]
fn nothing_leaks_when_publishers_die() {
    let site = Site::new("leaks-kill");
    let watched = site.watch("a", "newest");
    let publish = || {
        start(&mut site.launch(
            "videotestsrc is-live=true ! video/x-raw,width=160,height=120,framerate=60/1 ! tee name=t \
             t. ! queue ! cuframessink name=pub key=a \
             t. ! queue ! x264enc tune=zerolatency key-int-max=10 ! h264parse ! pub.packets_0",
        ))
    };
    let rest = "num-buffers=150 ! queue ! fakesink sync=false";
    let frames = traced(&site, &format!("cuframessrc key=a {rest}"), "frames");
    let copies = traced(&site, &format!("cuframessrc key=a max-frames=1 {rest}"), "copies");
    let packets = traced(&site, &format!("cuframespacketsrc key=a {rest}"), "packets");
    for _ in 0..3 {
        let publisher = publish();
        watched.more(30);
        publisher.signal(Signal::SIGKILL);
    }
    let _publisher = publish();
    for process in [frames, copies, packets] {
        process.success();
    }
    no_leaks_in(&site, &["frames", "copies", "packets"]);
}

/// Decoders of GPUs name types in their caps that a subscriber has never heard of.
#[test]
fn caps_with_types_of_their_own_are_understood() {
    let site = Site::new("types");
    let _publisher = start(&mut site.launch(
        "videotestsrc is-live=true ! video/x-raw,format=NV12,width=320,height=240,framerate=60/1 \
         ! capssetter caps=video/x-raw,multiview-flags=(GstVideoMultiviewFlagsSet)0:ffffffff:/right-view-first/half-aspect \
         ! cuframessink key=a",
    ));
    start(&mut site.launch("cuframessrc key=a num-buffers=5 ! fakesink")).success();
}

/// A recording made while the publisher plays a file.
#[test]
fn a_file_is_published_and_recorded() {
    let site = Site::new("file");
    let (file, copy) = (site.path("source.mp4"), site.path("copy.mkv"));
    let make = format!(
        "videotestsrc num-buffers=90 ! video/x-raw,width=320,height=240,framerate=30/1 \
         ! x264enc bframes=2 key-int-max=15 ! h264parse ! mp4mux ! filesink location={}",
        file.display()
    );
    start(&mut site.launch(&make)).success();
    let recorder = start(site.script("record.sh").args(["clip", copy.to_str().unwrap()]));
    start(site.script("publish-file.sh").args([file.to_str().unwrap(), "clip"])).success();
    recorder.success();
    let frames = decode(&copy).len();
    assert!((30..=90).contains(&frames), "{frames} frames of 90");
}

/// Whether somebody takes packets of `cam1`, and no frames.
fn records(site: &Site) -> bool {
    let status = cuframes::status("cam1", Some(&site.dir));
    status.is_ok_and(|s| s.subscribers.iter().any(|s| s.max_frames == 0))
}

/// The camera's numbers in a recording: every frame decodes, and they go up one by one but for `gaps`.
fn check_recording(file: &Path, gaps: usize) -> Vec<u32> {
    let numbers: Vec<u32> = decode(file).into_iter().map(|n| n.expect("a whole frame")).collect();
    let jumps: Vec<_> = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
    assert!(jumps.len() <= gaps && jumps.iter().all(|pair| pair[1] > pair[0]), "{numbers:?}");
    numbers
}

/// Ctrl-C reaches every process of a terminal: one interrupt completes the file, a second would end it at once.
#[test]
fn interrupted_recordings_are_whole() {
    let site = Site::new("interrupt");
    let _published = published(&site, "--size 320x240");
    let watched = site.watch("cam1", "newest");
    let files: Vec<_> = (0..8).map(|n| site.path(&format!("{n}.mp4"))).collect();
    let record = |file| site.script("record.sh").args(["cam1", file, "50"]).spawn().unwrap();
    let recorders: Vec<_> =
        files.iter().map(|file| Running(record(file.to_str().unwrap()))).collect();
    until(|| files.iter().all(|file| file.exists()));
    watched.more(60);
    recorders.iter().for_each(|one| one.signal(Signal::SIGINT));
    recorders.into_iter().for_each(Running::success);
    assert!(files.iter().all(|file| check_recording(file, 0).len() >= 30));
}

/// An event is recorded from before the recorder knew of it.
#[test]
fn an_event_is_recorded_with_its_past() {
    let site = Site::new("event");
    let (_camera, url) = site.camera("--size 320x240 --fps 30 --gop 30");
    let watched = site.watch("cam1", "newest");
    let _publisher = start(site.script("publish-rtsp.sh").args(["--codec", "h264", &url, "cam1"]));
    watched.more(150);
    let file = site.path("event.mp4");
    let now = *watched.check().last().unwrap();
    let event = ["cam1", file.to_str().unwrap(), "3", "1"];
    start(site.script("record-event.sh").args(event)).success();
    let numbers = check_recording(&file, 0);
    let [first, last] = [numbers[0], *numbers.last().unwrap()];
    assert!(now - first >= 3 * 30 - 10, "it begins {} frames ago", now - first);
    assert!(last > now, "it goes on to {last}, from {now}");
}

/// The example that records by itself while the picture changes.
#[test]
fn motion_starts_a_recording_of_what_came_before() {
    let site = Site::new("motion");
    let (_camera, url) = site.camera("--size 320x240 --fps 30 --gop 15");
    let watched = site.watch("cam1", "newest");
    let publisher = start(site.script("publish-rtsp.sh").args(["--codec", "h264", &url, "cam1"]));
    watched.more(60);
    let built = std::env::current_exe().unwrap();
    let built = built.ancestors().nth(2).unwrap().join("examples/event-recorder");
    let mut recorder = site.command(built);
    let events = site.path("events");
    recorder.arg("cam1").arg(&events).stdout(Stdio::piped());
    recorder.args("--before 1 --after 1 --events 1".split(' '));
    // The test picture moves all the time.
    let mut recorder = recorder.spawn().unwrap();
    let mut lines = BufReader::new(recorder.stdout.take().unwrap()).lines();
    let recorder = Running(recorder);
    assert!(lines.next().unwrap().unwrap().ends_with("of the picture changed"));
    let now = *watched.check().last().unwrap();
    watched.more(30);
    // Nothing moves any more.
    drop(publisher);
    assert!(lines.next().unwrap().unwrap().ends_with("done"));
    recorder.success();
    let numbers = check_recording(&events.join("1.mp4"), 0);
    assert!(numbers[0] + 15 <= now && *numbers.last().unwrap() > now, "{now}: {numbers:?}");
}

/// The publisher is killed in the midst of a group of pictures and comes back; so does the camera.
#[test]
fn a_recording_has_a_gap_where_the_gap_was() {
    let site = Site::new("gap");
    let (camera, url) = site.camera("--size 320x240 --fps 30 --gop 20");
    let watched = site.watch("cam1", "newest");
    let publish = || {
        start(&mut site.launch(&format!(
            "rtspsrc location={url} protocols=tcp latency=50 ! rtph264depay \
             ! video/x-h264,stream-format=avc,alignment=au ! h264parse config-interval=-1 \
             ! video/x-h264,stream-format=byte-stream,alignment=au ! tee name=t \
             t. ! queue leaky=downstream ! avdec_h264 ! cuframessink name=pub key=cam1 forward-eos=false \
             t. ! queue ! pub.packets_0"
        )))
    };
    let file = site.path("gap.mkv");
    let recorder = start(&mut site.launch(&format!(
        "-e cuframespacketsrc key=cam1 ! h264parse ! matroskamux ! filesink location={}",
        file.display()
    )));
    let publisher = publish();
    until(|| records(&site));
    watched.more(50);
    publisher.signal(Signal::SIGKILL);
    drop(publisher);
    let publisher = publish();
    watched.more(50);
    kill(Pid::from_raw(camera.0.id() as i32), Signal::SIGUSR1).unwrap();
    drop(publisher);
    let _publisher = publish();
    watched.more(50);
    recorder.signal(Signal::SIGINT);
    recorder.success();
    let numbers = check_recording(&file, 2);
    assert!(numbers.len() >= 120, "{} frames", numbers.len());
}

/// A camera that is set to another picture size, and back, in the midst of a recording.
#[test]
fn a_recording_goes_on_when_the_picture_changes_its_size() {
    let site = Site::new("size");
    let (camera, url) = site.camera("--size 640x480 --fps 30 --gop 15");
    let watched = site.watch("cam1", "newest");
    let _publisher = start(site.script("publish-rtsp.sh").args(["--codec", "h264", &url, "cam1"]));
    watched.more(20);
    let file = site.path("size.ts");
    let recorder = start(&mut site.launch(&format!(
        "-e cuframespacketsrc key=cam1 ! h264parse ! mpegtsmux ! filesink location={}",
        file.display()
    )));
    until(|| records(&site));
    watched.more(40);
    for _ in 0..2 {
        kill(Pid::from_raw(camera.0.id() as i32), Signal::SIGUSR2).unwrap();
        watched.more(60);
    }
    recorder.signal(Signal::SIGINT);
    recorder.success();
    let numbers = check_recording(&file, 0);
    assert!(numbers.len() >= 140, "{} frames", numbers.len());
}

/// The camera's own time, which rtspsrc learns by NTP, arrives with each packet as it left the parser.
#[test]
fn the_time_of_the_camera_crosses() {
    let site = Site::new("ntp");
    let (_camera, url) = site.camera("--size 320x240 --fps 30 --gop 15");
    let pipeline = |description: &str| {
        let parsed = gst::parse::launch(description).unwrap().downcast::<gst::Pipeline>().unwrap();
        for element in parsed.iterate_elements().into_iter().flatten() {
            if element.has_property("runtime-dir") {
                element.set_property("runtime-dir", site.dir.to_str().unwrap());
            }
        }
        let seen = Arc::new(Mutex::new(Vec::new()));
        let into = seen.clone();
        let pad = parsed.by_name("out").unwrap().static_pad("sink").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            let meta = info.buffer().unwrap().meta::<gst::ReferenceTimestampMeta>();
            let time = meta.map(|m| (m.reference().to_string(), m.timestamp().nseconds()));
            into.lock().unwrap().push(time);
            gst::PadProbeReturn::Ok
        });
        parsed.set_state(gst::State::Playing).unwrap();
        (parsed, seen)
    };
    let (subscriber, got) =
        pipeline("cuframespacketsrc key=cam1 start=oldest-keyframe ! fakesink name=out sync=false");
    let (publisher, sent) = pipeline(&format!(
        "rtspsrc location={url} protocols=tcp latency=50 add-reference-timestamp-meta=true \
         ! rtph264depay ! h264parse ! video/x-h264,stream-format=byte-stream,alignment=au \
         ! identity name=out ! sink.packets_0 cuframessink name=sink key=cam1"
    ));
    let known = |seen: &Mutex<Vec<Option<_>>>| seen.lock().unwrap().iter().flatten().count();
    until(|| known(&got) > 30);
    for pipeline in [publisher, subscriber] {
        pipeline.set_state(gst::State::Null).unwrap();
    }
    let (sent, got) = (sent.lock().unwrap(), got.lock().unwrap());
    // The first packets may have come before a keyframe.
    let first = got.iter().flatten().next().unwrap();
    assert!(first.0.starts_with("timestamp/x-ntp"), "{first:?}");
    let at = sent.iter().position(|s| s.as_ref() == Some(first)).unwrap();
    let here = got.iter().position(|g| g.as_ref() == Some(first)).unwrap();
    assert_eq!(got[here..], sent[at..at + got.len() - here]);
}

/// The recorder of the manual: picture and sound of a camera, from the past on, in one file.
#[test]
fn picture_and_sound_are_recorded_together() {
    let site = Site::new("sound");
    let (_camera, url) = site.camera("--size 320x240 --fps 30 --gop 30 --audio");
    let _publisher = start(&mut site.launch(&format!(
        "cuframessink name=pub key=cam1 rtspsrc location={url} protocols=tcp latency=50 name=camera \
         camera. ! application/x-rtp,media=video ! rtph264depay ! video/x-h264,stream-format=avc,alignment=au \
         ! h264parse config-interval=-1 ! video/x-h264,stream-format=byte-stream,alignment=au ! queue ! pub.packets_0 \
         camera. ! application/x-rtp,media=audio ! rtpmp4gdepay ! aacparse ! queue ! pub.packets_1"
    )));
    // Some seconds of a past.
    start(&mut site.launch("cuframespacketsrc key=cam1 num-buffers=120 ! fakesink")).success();
    let file = site.path("sound.mp4");
    let recorder = format!(
        "mp4mux name=mux ! filesink location={} \
         cuframespacketsrc key=cam1 track=0 preroll-time=2000000000 num-buffers=90 ! h264parse ! queue ! mux. \
         cuframespacketsrc key=cam1 track=1 num-buffers=140 ! aacparse ! queue ! mux.",
        file.display()
    );
    start(&mut site.launch(&recorder)).success();

    let description = format!(
        "filesrc location={} ! parsebin name=all all. ! video/x-h264 ! fakesink name=v sync=false async=false \
         all. ! audio/mpeg ! fakesink name=a sync=false async=false",
        file.display()
    );
    let pipeline = gst::parse::launch(&description).unwrap().downcast::<gst::Pipeline>().unwrap();
    let times = ["v", "a"].map(|name| {
        let times = Arc::new(Mutex::new(Vec::new()));
        let into = times.clone();
        let pad = pipeline.by_name(name).unwrap().static_pad("sink").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            let buffer = info.buffer().unwrap();
            let delta = buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
            into.lock().unwrap().push((buffer.pts().unwrap().mseconds() as i64, delta));
            gst::PadProbeReturn::Ok
        });
        times
    });
    pipeline.set_state(gst::State::Playing).unwrap();
    let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
    let end = pipeline.bus().unwrap().timed_pop_filtered(gst::ClockTime::NONE, &kinds).unwrap();
    assert_eq!(end.type_(), gst::MessageType::Eos, "{end:?}");
    pipeline.set_state(gst::State::Null).unwrap();
    let [video, sound] = times.map(|t| std::mem::take(&mut *t.lock().unwrap()));
    assert!(video.len() == 90 && sound.len() >= 130, "{} and {}", video.len(), sound.len());
    assert!(!video[0].1, "it begins with a keyframe");
    // What rtspsrc makes of the camera's clock is uneven on a busy machine, but not by a group of pictures.
    assert!((sound[0].0 - video[0].0).abs() < 500, "{:?} and {:?}", video[0], sound[0]);
    for times in [&video, &sound] {
        assert!(times.windows(2).all(|pair| pair[1].0 > pair[0].0), "{times:?}");
    }
}

/// A camera whose frames and packets are published as `cam1`, until both are dropped.
fn published(site: &Site, options: &str) -> (Running, Running) {
    let (camera, url) = site.camera(&format!("--fps 30 --gop 15 --slices 3 {options}"));
    let mut publish = site.script("publish-rtsp.sh");
    let publisher = start(publish.args(["--codec", "h264", &url, "cam1"]));
    (camera, publisher)
}

#[test]
fn a_list_of_cameras_makes_a_mosaic() {
    let site = Site::new("mosaic");
    let (_camera, url) = site.camera("--size 320x240 --fps 30 --gop 15");
    let list = site.path("list");
    std::fs::write(
        &list,
        format!("# two\ncam1 {url} --codec h264\n\ncam2 {url} --scaled 160x120\n"),
    )
    .unwrap();
    let publishers = start(site.script("publish-many.sh").arg(&list));
    let keys = ["cam1", "cam2", "cam2.sub"];
    for watched in keys.map(|key| site.watch(key, "newest")) {
        // The camera lets the second client in between two slices: its first pictures may lack a half.
        until(|| watched.numbers.lock().unwrap().iter().flatten().count() >= 5);
    }
    // None is black.
    let mosaic = ["cam1", "cam2", "nobody", "cam1", "mosaic", "640x480"];
    let _mosaic = start(site.script("mosaic.sh").args(mosaic));
    let picture = site.path("mosaic.raw");
    // Some frames later all that are there have delivered.
    let take = format!(
        "cuframessrc key=mosaic num-buffers=50 ! video/x-raw,format=NV12,width=640,height=480 \
         ! multifilesink location={} max-files=1",
        picture.display()
    );
    start(&mut site.launch(&take)).success();
    let luma = std::fs::read(&picture).unwrap();
    let bright = |x: usize, y: usize| {
        let lines = (y..y + 240).flat_map(|line| &luma[line * 640 + x..][..320]);
        lines.filter(|&&pixel| pixel > 60).count() > 320 * 240 / 4
    };
    let tiles = [(0, 0), (320, 0), (0, 240), (320, 240)].map(|(x, y)| bright(x, y));
    assert_eq!(tiles, [true, true, false, true]);

    drop(publishers);
    let live = || cuframes::keys(Some(&site.dir)).into_iter().any(|k| k.key != "mosaic");
    until(|| !live());
}

#[test]
fn browsers_and_programs_that_read_a_pipe_get_packets() {
    let site = Site::new("live");
    let _published = published(&site, "--size 320x240");
    let dir = site.path("hls");
    let _hls = start(site.script("hls.sh").args(["cam1", dir.to_str().unwrap(), "1"]));
    let packets = site.path("packets.ts");
    let frames = site.path("frames.y4m");
    let into = |file: &Path| std::fs::File::create(file).unwrap();
    let stream = start(site.script("stdout.sh").args(["--packets", "cam1"]).stdout(into(&packets)));
    let raw = start(site.script("stdout.sh").args(["cam1", "160x120", "10"]).stdout(into(&frames)));

    let length = |file: &Path| file.metadata().map_or(0, |m| m.len());
    until(|| length(&packets) > 100_000 && length(&frames) > 200_000);
    until(|| dir.join("live.m3u8").exists());
    drop((stream, raw));
    for file in [packets, dir.join("00000.ts")] {
        let numbers = decode(&file);
        let numbers: Vec<u32> = numbers.into_iter().map(|n| n.expect("a whole frame")).collect();
        assert!(numbers.len() >= 15, "{}: {numbers:?}", file.display());
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    }
    let list = std::fs::read_to_string(dir.join("live.m3u8")).unwrap();
    assert!(list.starts_with("#EXTM3U") && list.contains("00000.ts"), "{list}");
    let raw = std::fs::read(frames).unwrap();
    assert!(raw.starts_with(b"YUV4MPEG2 ") && raw[..60].windows(9).any(|w| w == b"W160 H120"));
}

#[test]
fn packets_are_served_by_rtsp() {
    let site = Site::new("restream");
    let _published = published(&site, "--size 320x240");
    let watched = site.watch("cam1", "newest");
    watched.more(1);
    let own = std::env::current_exe().unwrap();
    let mut server = site.command(own.ancestors().nth(2).unwrap().join("examples/restream"));
    // gst-rtsp-server 1.22 warns when clients of different transports meet.
    server.args(["--listen", "127.0.0.1:0", "cam1"]).env_remove("G_DEBUG").stdout(Stdio::piped());
    let mut server = server.spawn().unwrap();
    let mut first = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let _server = Running(server);
    let url = first.trim().strip_prefix("ready ").expect(&first);
    let again = site.watch("cam2", "strict");
    let _publisher = start(site.script("publish-rtsp.sh").args(["--codec", "h264", url, "cam2"]));
    again.more(30);
    again.check();
}

/// A network of its own, as another host has it.
struct Network(Running);

impl Network {
    fn new() -> Option<Self> {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo; exec sleep 120"]).process_group(0);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let said = BufReader::new(child.stdout.take().unwrap()).lines().next();
        let network = Self(Running(child));
        said.map(|_| network)
    }

    fn pid(&self) -> String {
        self.0.0.id().to_string()
    }

    fn path(&self) -> String {
        format!("--net=/proc/{}/ns/net", self.pid())
    }

    fn has(&self, line: &str) -> bool {
        let mut command = Command::new("nsenter");
        command.arg(self.path()).args(line.split(' ')).status().is_ok_and(|s| s.success())
    }
}

/// Two networks with a cable between them: 10.77.0.1 and 10.77.0.2.
fn two_hosts() -> Option<(Network, Network)> {
    let (a, b) = (Network::new()?, Network::new()?);
    let cable =
        format!("ip link add cable netns {} type veth peer name cable netns {}", a.pid(), b.pid());
    let up = |host: &Network, n| {
        host.has(&format!("ip addr add 10.77.0.{n}/24 dev cable"))
            && host.has("ip link set cable up")
    };
    (a.has(&cable) && up(&a, 1) && up(&b, 2)).then_some((a, b))
}

#[test]
fn a_camera_is_published_on_another_host() {
    let site = Site::new("hosts");
    let Some((here, there)) = two_hosts() else {
        // The harness keeps what a test that passes prints.
        let _ = writeln!(std::io::stderr(), "SKIPPED: two networks take root, unshare and ip");
        return;
    };
    let _published = published(&site, "--size 320x240");
    let on = |host: &Network, script: &str, args: [&str; 2]| {
        let mut command = site.command("nsenter");
        command.arg(host.path()).arg(site.script(script).get_program()).args(args);
        command.env("CUFRAMES_PASSPHRASE", "only for the two of us");
        command
    };
    let _sender = start(&mut on(&here, "send.sh", ["cam1", "7001"]));
    let other = Site { dir: site.path("other"), _alive: std::sync::mpsc::channel().0 };
    std::fs::create_dir(&other.dir).unwrap();
    let mut receive = on(&there, "receive.sh", ["10.77.0.1:7001", "cam1"]);
    let _receiver = start(receive.env("CUFRAMES_RUNTIME_DIR", &other.dir));
    let watched = other.watch("cam1", "strict");
    watched.more(30);
    watched.check();
}
