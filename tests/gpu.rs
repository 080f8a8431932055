//! Frames that stay on the GPU: NVDEC, CUDA elements that are not ours, other processes.
//!
//! `make gpu-test` runs these where an NVIDIA GPU and GStreamer 1.24 or later are. Programs are started
//! through `$ON_GPU` where that is set, and the plugin and the examples are looked for in
//! `$CUFRAMES_BUILT`, so that a packed build runs on a host without cargo.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gst::prelude::*;
use gst_video::prelude::*;
use nix::sys::signal::Signal;

#[path = "support/programs.rs"]
mod programs;
#[path = "../examples/support/stamp.rs"]
mod stamp;

use programs::{Running, start};

const SIZE: (usize, usize) = (640, 360);

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
            if over.recv_timeout(Duration::from_secs(90)) == Err(Timeout) {
                eprintln!("{name} hangs");
                std::process::abort();
            }
        });
        Self { dir, _alive: alive }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = match std::env::var_os("ON_GPU") {
            Some(launcher) => {
                let mut command = Command::new(launcher);
                command.arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .env("CUFRAMES_RUNTIME_DIR", &self.dir)
            .env("GST_PLUGIN_PATH", std::env::join_paths([built(), built().join("deps")]).unwrap())
            .process_group(0)
            .stdin(Stdio::null());
        command
    }

    fn launch(&self, pipeline: &str) -> Running {
        let mut command = self.command("gst-launch-1.0");
        start(command.arg("-q").args(pipeline.split_whitespace()))
    }

    /// A pipeline of this process, playing.
    fn play(&self, description: &str) -> Playing {
        let pipeline = self.pipeline(description);
        pipeline.start();
        pipeline
    }

    /// A pipeline of this process, whose `cuframes` elements use the site's directory.
    fn pipeline(&self, description: &str) -> Playing {
        let pipeline = gst::parse::launch(description).unwrap();
        let pipeline = pipeline.downcast::<gst::Pipeline>().unwrap();
        for element in pipeline.iterate_recurse() {
            let element = element.unwrap();
            if element.has_property("runtime-dir") {
                element.set_property("runtime-dir", self.dir.to_str().unwrap());
            }
        }
        Playing(pipeline)
    }

    /// A strict subscriber in a process of its own, and the file that it writes frames to.
    fn subscriber(&self, name: &str, how: &str) -> (Running, PathBuf) {
        let file = self.dir.join(name);
        let pipeline = format!(
            "cuframessrc key=cam1 mode=strict num-buffers=90 {how} ! video/x-raw(memory:CUDAMemory) \
             ! cudadownload ! video/x-raw,format=NV12 ! filesink location={}",
            file.display()
        );
        (self.launch(&pipeline), file)
    }

    /// A camera, and a publisher that decodes it with NVDEC.
    fn camera(&self, options: &str, codec: &str) -> (Running, Running) {
        let (camera, decode) = self.decoded(options, codec);
        let sink = "cuframessink key=cam1 forward-eos=false";
        (camera, self.launch(&format!("{decode} ! {sink}")))
    }

    /// A camera, and what decodes it with NVDEC.
    fn decoded(&self, options: &str, codec: &str) -> (Running, String) {
        let program = built().join("examples/camera");
        let mut command = self.command(program.to_str().unwrap());
        command.args("--port 0".split(' ')).args(options.split_whitespace());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().expect("the camera says that it is ready").unwrap();
        let url = first.strip_prefix("ready ").expect(&first);
        let packed = if codec == "h264" { "avc" } else { "hvc1" };
        let decode = format!(
            "rtspsrc location={url} protocols=tcp latency=100 ! rtp{codec}depay \
             ! video/x-{codec},stream-format={packed},alignment=au ! {codec}parse ! nv{codec}dec"
        );
        std::thread::spawn(move || lines.for_each(drop));
        (Running(child), decode)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Where the plugin is, and the examples in a folder beneath.
fn built() -> PathBuf {
    let beside = || std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
    std::env::var_os("CUFRAMES_BUILT").map_or_else(beside, PathBuf::from)
}

/// A pipeline of this process, which ends with its scope.
struct Playing(gst::Pipeline);

impl Playing {
    fn start(&self) {
        self.0.set_state(gst::State::Playing).unwrap();
    }

    fn stats(&self, name: &str) -> gst::Structure {
        self.0.by_name(name).unwrap().property("stats")
    }

    fn count(&self, name: &str, field: &str) -> u64 {
        self.stats(name).get(field).unwrap()
    }

    /// The first error of the pipeline, as it comes.
    fn error(&self) -> String {
        let bus = self.0.bus().unwrap();
        let message = bus.timed_pop_filtered(gst::ClockTime::NONE, &[gst::MessageType::Error]);
        let gst::MessageView::Error(error) = message.as_ref().unwrap().view() else {
            unreachable!()
        };
        error.error().to_string()
    }

    /// What `look` makes of each buffer that reaches the element.
    fn probe<T: Send + 'static>(
        &self,
        name: &str,
        look: impl Fn(&gst::Pad, &gst::Buffer) -> T + Send + Sync + 'static,
    ) -> Arc<Mutex<Vec<T>>> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let into = seen.clone();
        let pad = self.0.by_name(name).unwrap().static_pad("sink").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            into.lock().unwrap().push(look(pad, info.buffer().unwrap()));
            gst::PadProbeReturn::Ok
        });
        seen
    }
}

impl Drop for Playing {
    fn drop(&mut self) {
        let _ = self.0.set_state(gst::State::Null);
    }
}

fn until(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The numbers in raw NV12 frames, all of which have to be whole and in order.
fn numbers(raw: &[u8]) -> Vec<u32> {
    let frames = raw.chunks(SIZE.0 * SIZE.1 * 3 / 2);
    let numbers: Vec<u32> =
        frames.map(|f| stamp::read(f, SIZE.0, SIZE.0, SIZE.1).expect("a whole frame")).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] > pair[0]), "{numbers:?}");
    numbers
}

fn nvdec_to_four_processes(name: &'static str, options: &str, codec: &str) {
    let site = Site::new(name);
    // The subscribers come first, and wait.
    let modes = ["", "", "io-mode=copy", "max-frames=1"];
    let start = |(n, mode): (usize, &&str)| site.subscriber(&format!("{n}.raw"), mode);
    let subscribers: Vec<_> = modes.iter().enumerate().map(start).collect();
    let _running = site.camera(options, codec);
    subscribers.into_iter().for_each(every_frame);
}

/// Waits for the subscriber, which has to have got every frame, in order and whole.
fn every_frame((subscriber, file): (Running, PathBuf)) {
    subscriber.success();
    let numbers = numbers(&std::fs::read(file).unwrap());
    assert_eq!(numbers.len(), 90);
    assert_eq!(numbers[89] - numbers[0], 89, "every frame in order");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn nvdec_h264_reaches_four_processes() {
    nvdec_to_four_processes("nvdec-h264", "--codec h264 --size 640x360 --gop 15", "h264");
}

/// With footage, since the packed GStreamer has no H.265 encoder: `$CUFRAMES_H265` is a stamped file.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn nvdec_h265_reaches_four_processes() {
    let options = match std::env::var("CUFRAMES_H265") {
        Ok(file) => format!("--file {file}"),
        Err(_) => "--codec h265 --size 640x360 --gop 15".to_owned(),
    };
    nvdec_to_four_processes("nvdec-h265", &options, "h265");
}

/// The number in a frame that is mapped for the CPU; it has to be whole.
fn number(pad: &gst::Pad, buffer: &gst::Buffer) -> u32 {
    let info = gst_video::VideoInfo::from_caps(&pad.current_caps().unwrap()).unwrap();
    let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info).unwrap();
    let (width, height) = (info.width() as usize, info.height() as usize);
    let stride = frame.plane_stride()[0] as usize;
    stamp::read(frame.plane_data(0).unwrap(), stride, width, height).expect("a whole frame")
}

fn rising(numbers: &[u32]) {
    assert!(numbers.windows(2).all(|pair| pair[1] > pair[0]), "{numbers:?}");
}

const DOWNLOADED: &str =
    "cuframessrc name=src key=cam1 ! video/x-raw,format=NV12 ! fakesink name=out sync=false";

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn host_memory_downstream_gets_downloads() {
    let site = Site::new("download");
    let watched = site.play(DOWNLOADED);
    let seen = watched.probe("out", number);
    let _running = site.camera("--size 640x360 --gop 15", "h264");
    until(|| watched.count("src", "received") >= 60);
    assert_eq!(watched.count("src", "downloaded"), watched.count("src", "received"));
    watched.0.set_state(gst::State::Null).unwrap();
    rising(&seen.lock().unwrap());
}

/// A publisher that is killed, most likely between a copy and its end, hangs nobody.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_killed_publisher_is_replaced() {
    let site = Site::new("killed");
    let watched = site.play(DOWNLOADED);
    let seen = watched.probe("out", number);
    for round in 0..3 {
        let (camera, publisher) = site.camera("--size 640x360 --gop 5", "h264");
        let before = watched.count("src", "received");
        until(|| {
            watched.count("src", "reconnects") >= round
                && watched.count("src", "received") > before + 20
        });
        publisher.signal(Signal::SIGKILL);
        drop(camera);
        // Each camera counts anew.
        rising(&std::mem::take(&mut *seen.lock().unwrap()));
    }
}

/// All kinds of memory, and all ways to wait for it, between processes.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn every_kind_of_memory_crosses() {
    let site = Site::new("kinds");
    for (memory, sync) in [
        ("vmm", "timeline"),
        ("vmm", "host"),
        ("ipc", "timeline"),
        ("ipc", "event"),
        ("auto", "event"),
    ] {
        let subscribers =
            ["", "io-mode=copy"].map(|how| site.subscriber(&how.len().to_string(), how));
        let (_camera, decode) = site.decoded("--size 640x360 --gop 15", "h264");
        let publisher = site.play(&format!(
            "{decode} ! cuframessink name=sink key=cam1 policy=wait memory={memory} sync-mode={sync}"
        ));
        subscribers.into_iter().for_each(every_frame);
        let stats = publisher.stats("sink");
        let kind = if sync == "event" { "ipc" } else { memory };
        assert_eq!(stats.get::<String>("memory").unwrap(), kind);
        assert_eq!(stats.get::<String>("sync-mode").unwrap(), sync);
    }
    let refused =
        site.play("videotestsrc ! cudaupload ! cuframessink key=cam2 memory=vmm sync-mode=event");
    assert!(refused.error().contains("memory=ipc"));
}

/// The pixels alone, plane by plane.
fn pixels(pad: &gst::Pad, buffer: &gst::Buffer) -> Vec<u8> {
    let info = gst_video::VideoInfo::from_caps(&pad.current_caps().unwrap()).unwrap();
    let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info).unwrap();
    let mut pixels = Vec::new();
    for plane in 0..info.n_planes() {
        let of_plane = |c: &u32| info.format_info().plane()[*c as usize] == plane;
        let component = (0..info.n_components()).find(of_plane).unwrap();
        let row = (frame.comp_width(component) * frame.comp_pstride(component) as u32) as usize;
        let rows =
            frame.plane_data(plane).unwrap().chunks(frame.plane_stride()[plane as usize] as usize);
        for data in rows.take(frame.comp_height(component) as usize) {
            pixels.extend_from_slice(&data[..row]);
        }
    }
    pixels
}

/// Pictures of every layout arrive as they were: written into the slots or copied there, in place or copied
/// from there, and downloaded by whoever does so.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn every_format_crosses() {
    let site = Site::new("formats");
    let ways = ["mapped", "copied", "downloaded", "host"];
    for format in ["NV12", "P010_10LE", "I420", "YV12", "Y444", "Y444_16LE", "BGRA", "RGBx"] {
        for copied in [false, true] {
            let watched = site.play(
                "cuframessrc name=a key=cam1 io-mode=import ! video/x-raw(memory:CUDAMemory) ! fakesink name=mapped \
                 cuframessrc name=b key=cam1 io-mode=copy ! video/x-raw(memory:CUDAMemory) ! fakesink name=copied \
                 cuframessrc name=c key=cam1 ! cudadownload ! fakesink name=downloaded \
                 cuframessrc name=d key=cam1 ! video/x-raw ! fakesink name=host",
            );
            let seen = ways.map(|name| watched.probe(name, pixels));
            let own = if copied { "identity drop-allocation=true !" } else { "" };
            let publisher = site.pipeline(&format!(
                "videotestsrc is-live=true pattern=snow ! video/x-raw,format={format},width=318,height=202 \
                 ! cudaupload name=upload ! {own} cuframessink name=sink key=cam1"
            ));
            let sent = publisher.probe("upload", pixels);
            publisher.start();
            until(|| seen.iter().all(|seen| seen.lock().unwrap().len() >= 5));
            drop(watched);
            assert_eq!(publisher.count("sink", "copied") > 0, copied, "{format}");
            let sent = sent.lock().unwrap();
            for (way, seen) in ways.iter().zip(seen) {
                let whole = seen.lock().unwrap().iter().all(|picture| sent.contains(picture));
                assert!(whole, "{format} {way}, copied into the slots: {copied}");
            }
        }
    }
}

/// Two upstreams at once, each with its own stream, and frames that are not published: each is whole, and all
/// become ready.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn two_upstreams_take_turns() {
    let site = Site::new("turns");
    let watched = site.play(
        "cuframessrc name=src key=cam1 mode=strict ! cudadownload ! fakesink name=out sync=false",
    );
    let seen = watched.probe("out", pixels);
    let picture = "videotestsrc is-live=true pattern=snow ! video/x-raw,format=NV12,width=1280,height=720,framerate=60/1";
    let publisher = site.pipeline(&format!(
        "funnel name=both ! cuframessink name=sink key=cam1 policy=wait \
         {picture} ! cudaupload name=a ! identity drop-probability=0.5 ! both. \
         {picture} ! cudaupload name=b ! queue ! identity drop-probability=0.5 ! both."
    ));
    let sent = ["a", "b"].map(|name| publisher.probe(name, pixels));
    publisher.start();
    until(|| seen.lock().unwrap().len() >= 90);
    drop(watched);
    let sent = sent.map(|sent| std::mem::take(&mut *sent.lock().unwrap()));
    let seen = seen.lock().unwrap();
    assert!(seen.iter().all(|picture| sent.iter().any(|sent| sent.contains(picture))));
}

/// Upstream is lent the slots, and writes into them.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn upstream_writes_into_the_slots() {
    let site = Site::new("lent");
    for make in [
        "NVDEC",
        "videotestsrc is-live=true ! video/x-raw,format=NV12,width=640,height=360 ! cudaupload ! cudaconvertscale ! video/x-raw(memory:CUDAMemory),width=320,height=180",
    ] {
        let (camera, decode) = site.decoded("--size 640x360 --gop 15", "h264");
        let nvdec = make == "NVDEC";
        let make = if nvdec { &decode } else { make };
        let subscriber = nvdec.then(|| site.subscriber("lent.raw", ""));
        let watched = site.play(DOWNLOADED);
        let publisher = site.play(&format!("{make} ! cuframessink name=sink key=cam1 policy=wait"));
        subscriber.into_iter().for_each(every_frame);
        until(|| watched.count("src", "received") >= 30);
        assert!(publisher.count("sink", "published") >= 30);
        assert_eq!(publisher.count("sink", "copied"), 0);
        assert_eq!(publisher.count("sink", "dropped"), 0);
        drop(camera);
    }
}

/// One source behind another in one process and one pipeline; each has every frame.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn two_subscribers_in_the_process_of_the_publisher() {
    let site = Site::new("two");
    let (_camera, decode) = site.decoded("--size 640x360 --gop 15", "h264");
    let both = site.play(
        "cuframessrc name=a key=cam1 mode=strict ! cudadownload ! fakesink name=x sync=false \
         cuframessrc name=b key=cam1 mode=strict ! cudadownload ! fakesink name=y sync=false",
    );
    let seen = ["x", "y"].map(|name| both.probe(name, number));
    let _publisher = site.play(&format!("{decode} ! cuframessink key=cam1 policy=wait"));
    until(|| seen.iter().all(|seen| seen.lock().unwrap().len() >= 60));
    for (source, seen) in ["a", "b"].iter().zip(&seen) {
        let seen = seen.lock().unwrap();
        assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1), "{source}: {seen:?}");
    }
}

/// The picture grows and shrinks while it is published, and moves to host memory and back.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn caps_change_while_frames_flow() {
    let site = Site::new("caps");
    let source = "videotestsrc is-live=true ! capsfilter name=size caps=video/x-raw,format=NV12,width=640,height=360,framerate=60/1";
    let watched = site.play("cuframessrc name=src key=cam1 ! fakesink name=out sync=false");
    let seen = watched.probe("out", |pad, buffer| {
        let caps = pad.current_caps().unwrap();
        let info = gst_video::VideoInfo::from_caps(&caps).unwrap();
        // What the caps say is what is there, whichever memory it is in.
        let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info).unwrap();
        assert_eq!(
            frame.plane_data(0).unwrap().len() / frame.plane_stride()[0] as usize,
            info.height() as usize
        );
        (info.width(), buffer.peek_memory(0).is_type("gst.cuda.memory"))
    });
    let last = |width, cuda| {
        let seen = seen.clone();
        move || {
            seen.lock().unwrap().iter().rev().take(20).filter(|s| **s == (width, cuda)).count()
                == 20
        }
    };
    for upload in ["cudaupload !", "", "cudaupload !"] {
        let publisher = site.play(&format!(
            "{source} ! {upload} cuframessink name=sink key=cam1 forward-eos=false"
        ));
        let size = publisher.0.by_name("size").unwrap();
        for width in [640, 1280, 320] {
            let caps = format!(
                "video/x-raw,format=NV12,width={width},height={},framerate=60/1",
                width * 9 / 16
            );
            size.set_property("caps", caps.parse::<gst::Caps>().unwrap());
            until(last(width, !upload.is_empty()));
        }
        assert_eq!(publisher.count("sink", "dropped"), 0);
    }
}

/// Who maps a frame for writing is refused, and so is who writes to its address.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_subscriber_that_writes_is_refused_and_nobody_notices() {
    use cuframes::cuda::Stream;
    use gstcuframes::testing;
    let site = Site::new("write");
    let other = site.subscriber("other.raw", "");
    let vandal = site.play("cuframessrc name=src key=cam1 ! video/x-raw(memory:CUDAMemory) ! fakesink name=out sync=false");
    let refused = vandal.probe("out", |_, buffer| {
        let memory = buffer.peek_memory(0);
        let context = testing::memory_context(memory).unwrap();
        let (address, len) = testing::device_range(memory).unwrap();
        // SAFETY: zeros are a valid GstMapInfo; the memory is valid, and not mapped if that fails.
        let mapped = unsafe {
            let mut info: gst::ffi::GstMapInfo = std::mem::zeroed();
            gst::ffi::gst_memory_map(memory.as_ptr().cast_mut(), &mut info, gst::ffi::GST_MAP_WRITE)
        };
        // SAFETY: that the driver refuses it is what is tried here.
        let filled = unsafe { Stream::default_of(&context).fill(address, 0, len) };
        (mapped == gst::glib::ffi::GFALSE, filled.is_err())
    });
    let _running = site.camera("--size 640x360 --gop 15", "h264");
    every_frame(other);
    let refused = refused.lock().unwrap();
    assert!(refused.len() > 10 && refused.iter().all(|r| *r == (true, true)), "{refused:?}");
}

/// A frame that was let go of stays as it is while the GPU has still to read it, whatever stream it does that
/// on: that of the frame, the default one of whoever names none, or one of another element's. So does a copy.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_frame_stays_until_the_gpu_has_read_it() {
    use cuframes::cuda::{DeviceMemory, Stream};
    use gstcuframes::testing;
    let site = Site::new("pending");
    for mode in ["import", "copy"] {
        let watched = site.play(&format!("cuframessrc name=src key=cam1 io-mode={mode} ! video/x-raw(memory:CUDAMemory) ! fakesink name=out sync=false enable-last-sample=false"));
        let turn = std::sync::atomic::AtomicUsize::new(0);
        let read = |stream: &Stream, from: u64, len: usize| {
            let mut bytes = vec![0; len];
            // SAFETY: the callers' memory is as long.
            unsafe { stream.read(from, &mut bytes) }.unwrap();
            bytes
        };
        let enqueued = watched.probe("out", move |_, buffer| {
            let memory = buffer.peek_memory(0);
            let context = testing::memory_context(memory).unwrap();
            let own = testing::memory_stream(memory).unwrap();
            // Copies need not be complete.
            own.synchronize().unwrap();
            let stream = match turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 3 {
                0 => own,
                1 => Stream::default_of(&context),
                _ => testing::new_stream(memory).unwrap(),
            };
            let (address, len) = testing::device_range(memory).unwrap();
            // On a stream that does not wait for the others.
            let before = read(&Stream::new(&context).unwrap(), address, len);
            let [ballast, copy] =
                [1 << 30, len].map(|len| DeviceMemory::new(&context, len).unwrap());
            // SAFETY: what is written is kept until it was read, below, and the frame until it is given back.
            unsafe {
                // Longer than it takes to publish as many frames as there are slots.
                for byte in 0..1500 {
                    stream.fill(ballast.address(), byte as u8, ballast.len()).unwrap();
                }
                stream.copy(address, copy.address(), len).unwrap();
            }
            assert!(!stream.is_done().unwrap(), "the GPU is too fast for this test");
            assert!(!Stream::default_of(&context).is_idle().unwrap());
            (stream, before, copy, ballast)
        });
        let _running = site.camera("--size 640x360 --fps 100 --gop 15", "h264");
        until(|| enqueued.lock().unwrap().len() >= 6);
        let enqueued: Vec<_> = enqueued.lock().unwrap().drain(..6).collect();
        for (stream, before, copy, _) in enqueued {
            assert!(before == read(&stream, copy.address(), copy.len()), "the frame was written");
        }
    }
}

/// A converter drops a frame before the GPU has read it, so frames come on the stream that it works on.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn frames_come_on_the_stream_of_downstream() {
    use gstcuframes::testing;
    let site = Site::new("stream");
    let watched = site.play(
        "cuframessrc name=src key=cam1 ! cudaconvertscale name=scale \
         ! video/x-raw(memory:CUDAMemory),width=320,height=180 ! fakesink name=out sync=false",
    );
    let stream = |_: &gst::Pad, buffer: &gst::Buffer| {
        testing::memory_stream(buffer.peek_memory(0)).map(|stream| stream.handle() as usize)
    };
    let (before, behind) = (watched.probe("scale", stream), watched.probe("out", stream));
    let _running = site.camera("--size 640x360 --gop 15", "h264");
    until(|| behind.lock().unwrap().len() >= 5);
    let (before, behind) = (before.lock().unwrap(), behind.lock().unwrap());
    assert!(before[0].is_some());
    assert_eq!(before[..5], behind[..5]);
}

/// Downstream wants host memory, and device memory again, while a frame is awaited: that one is so already.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn downstream_changes_its_mind() {
    let site = Site::new("mind");
    let watched = site.play(
        "cuframessrc key=cam1 mode=strict ! capsfilter name=wish ! fakesink name=out sync=false",
    );
    let look =
        |_: &gst::Pad, b: &gst::Buffer| (b.peek_memory(0).is_type("gst.cuda.memory"), b.offset());
    let seen = watched.probe("out", look);
    let _publisher = site.play(
        "videotestsrc is-live=true ! video/x-raw,format=NV12 ! cudaupload ! cuframessink key=cam1",
    );
    until(|| !seen.lock().unwrap().is_empty());
    for (wish, cuda) in [("video/x-raw", false), ("video/x-raw(memory:CUDAMemory)", true)] {
        let caps = wish.parse::<gst::Caps>().unwrap();
        // The next is far away when one has just come.
        let before = seen.lock().unwrap().len();
        until(|| seen.lock().unwrap().len() > before);
        watched.0.by_name("wish").unwrap().set_property("caps", caps);
        until(|| seen.lock().unwrap().len() > before + 1);
        let first = seen.lock().unwrap()[before + 1].0;
        assert_eq!(first, cuda, "{wish}");
    }
    let seen = seen.lock().unwrap();
    assert!(seen.windows(2).all(|pair| pair[1].1 == pair[0].1 + 1), "{seen:?}");
}

/// GStreamer's memory stays with its slot, and what the CPU reads there is the frame that is in it.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn memory_is_made_once_for_a_place() {
    let site = Site::new("once");
    let branch = |mode: &str| {
        format!(
            "cuframessrc name={mode} key=cam1 io-mode={mode} ! video/x-raw(memory:CUDAMemory) \
             ! fakesink name={mode}-out sync=false "
        )
    };
    let watched = site.play(&(branch("import") + &branch("copy")));
    let mark = gst::glib::Quark::from_str("cuframes-test-seen");
    let look = move |pad: &gst::Pad, buffer: &gst::Buffer| {
        let memory = buffer.peek_memory(0).as_ptr().cast_mut().cast::<gst::ffi::GstMiniObject>();
        use gst::glib::translate::IntoGlib;
        // SAFETY: a valid memory; the mark is not null, and needs not be freed.
        let is_new = unsafe {
            let seen = gst::ffi::gst_mini_object_get_qdata(memory, mark.into_glib());
            let any = std::ptr::NonNull::dangling().as_ptr();
            gst::ffi::gst_mini_object_set_qdata(memory, mark.into_glib(), any, None);
            seen.is_null()
        };
        (is_new, number(pad, buffer))
    };
    let all = ["import", "copy"].map(|mode| watched.probe(&format!("{mode}-out"), look));
    let _running = site.camera("--size 640x360 --gop 15", "h264");
    until(|| all.iter().all(|seen| seen.lock().unwrap().len() >= 90));
    watched.0.set_state(gst::State::Null).unwrap();
    for (seen, most) in all.iter().zip([16, 2]) {
        let seen = seen.lock().unwrap();
        let made = seen.iter().filter(|(is_new, _)| *is_new).count();
        assert!(made <= most, "{made} for {} frames", seen.len());
        rising(&seen.iter().map(|(_, number)| *number).collect::<Vec<_>>());
    }
}

const ROLE: &str = "CUFRAMES_GPU_ROLE";

/// Not a test: a publisher that is killed while its GPU still works on the frame that it published.
#[test]
#[ignore = "a process of another test"]
fn role() {
    use cuframes::cuda::{Context, Device, DeviceMemory, HostAccess, RegisteredHost, Stream};
    use cuframes::memory::cuda::CudaBackend;
    use cuframes::{FrameInfo, Publisher, PublisherConfig};
    let Some(dir) = std::env::var_os(ROLE) else { return };
    let context = Context::primary(&Device::by_ordinal(0).unwrap()).unwrap();
    let mut config = PublisherConfig::new("cam1");
    config.runtime_dir = Some(dir.into());
    let (joined, came) = std::sync::mpsc::channel();
    let backend = Arc::new(CudaBackend::new(context.clone()).unwrap());
    let publisher = Publisher::open(config, backend, move |_| joined.send(()).unwrap()).unwrap();
    let size = 640 * 360 * 3 / 2;
    let caps = "video/x-raw(memory:CUDAMemory),format=NV12,width=640,height=360,framerate=30/1";
    publisher.set_format(caps, size).unwrap();
    came.recv().unwrap();
    let stream = Stream::new(&context).unwrap();
    let ballast = DeviceMemory::new(&context, 1 << 30).unwrap();
    let (at, len, offset, keep) = publisher.ready_word();
    // SAFETY: mapped for writing while `keep` lives, and read as what others write.
    let ready =
        unsafe { RegisteredHost::new(&context, at, len, HostAccess::ReadWrite, keep) }.unwrap();
    let planes = cuframes::Planes::new(&[0, 640 * 360], &[640, 640]);
    let info = FrameInfo { size, planes, ..Default::default() };
    let loan = publisher.loan(size).unwrap().unwrap();
    let address = loan.address();
    let seq = publisher.publish_unready(loan, &info);
    // SAFETY: both memories live longer than this process.
    unsafe {
        for byte in 0..=255 {
            stream.fill(ballast.address(), byte, ballast.len()).unwrap();
        }
        stream.fill(address, 7, size).unwrap();
    }
    stream.write_value(&ready, offset, seq).unwrap();
    assert!(!stream.is_done().unwrap(), "the GPU is too fast for this test");
    nix::sys::signal::raise(Signal::SIGKILL).unwrap();
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_publisher_killed_while_its_gpu_works_hangs_nobody() {
    let site = Site::new("enqueued");
    let watched = site.play(DOWNLOADED);
    let seen = watched.probe("out", number);
    let own = std::env::args().next().unwrap();
    let mut role = site.command(&own);
    role.args(["--exact", "role", "--ignored"]).env(ROLE, &site.dir).stdout(Stdio::null());
    let status = role.status().unwrap();
    assert!(!status.success());
    // The frame was never complete, so nobody gets it; the source goes on with the next publisher.
    let _running = site.camera("--size 640x360 --gop 5", "h264");
    until(|| watched.count("src", "received") > 20);
    assert_eq!(watched.count("src", "reconnects"), 1);
    rising(&seen.lock().unwrap());
}

/// A socket in a directory that both see is all that they share.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn other_namespaces_get_the_frames() {
    let site = Site::new("namespaces");
    let isolate = "--pid --ipc --mount --net --uts --fork --mount-proc --kill-child";
    let tried = Command::new("unshare").args(isolate.split(' ')).arg("true").status();
    if !tried.is_ok_and(|status| status.success()) {
        eprintln!("skipped: this user may not make namespaces");
        return;
    }
    let file = site.dir.join("isolated.raw");
    let inner = site.command("gst-launch-1.0");
    let mut command = Command::new("unshare");
    command.args(isolate.split(' ')).arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["-q", "cuframessrc", "key=cam1", "mode=strict", "num-buffers=90", "!"]);
    command.args(["video/x-raw(memory:CUDAMemory)", "!", "cudadownload", "!"]);
    command.args(["video/x-raw,format=NV12", "!", "filesink"]);
    let location = format!("location={}", file.display());
    let isolated = start(command.arg(location).process_group(0));
    let _running = site.camera("--size 640x360 --gop 15", "h264");
    every_frame((isolated, file));
}

/// The GPUs of this machine; a test that needs more says so and ends.
fn has_two_gpus() -> bool {
    let two = cuframes::cuda::Device::all().unwrap().len() > 1;
    if !two {
        eprintln!("skipped: this machine has one GPU");
    }
    two
}

const ON_SECOND: &str = "videotestsrc is-live=true pattern=ball ! video/x-raw,format=NV12,width=640,height=360 \
     ! cudaupload cuda-device-id=1 ! cuframessink name=sink key=cam1";

/// Sums of the bytes of frames: the ball moves, so they differ, and both see the same.
fn sums(site: &Site, source: &str, device: i32) -> Vec<(u64, u64)> {
    let watched = site
        .play(&format!("{source} ! video/x-raw(memory:CUDAMemory) ! fakesink name=out sync=false"));
    let seen = watched.probe("out", move |_, buffer| {
        let memory = buffer.peek_memory(0);
        let context = gstcuframes::testing::memory_context(memory).unwrap();
        assert_eq!(context.device().ordinal(), device);
        let map = buffer.map_readable().unwrap();
        (buffer.offset(), map.iter().map(|b| u64::from(*b)).sum())
    });
    until(|| seen.lock().unwrap().len() >= 30);
    watched.0.set_state(gst::State::Null).unwrap();
    std::mem::take(&mut *seen.lock().unwrap())
}

#[test]
#[ignore = "needs two NVIDIA GPUs"]
fn frames_reach_another_gpu() {
    if !has_two_gpus() {
        return;
    }
    let site = Site::new("peers");
    for memory in ["vmm", "ipc"] {
        // Processes of their own, since a process can't open its own memory with memory=ipc.
        let _publisher =
            site.launch(&ON_SECOND.replace("key=cam1", &format!("key=cam1 memory={memory}")));
        // By itself a source goes to the publisher's GPU.
        let own = sums(&site, "cuframessrc key=cam1 mode=strict", 1);
        let peer = sums(&site, "cuframessrc key=cam1 mode=strict cuda-device-id=0", 0);
        let copied =
            sums(&site, "cuframessrc key=cam1 mode=strict cuda-device-id=0 io-mode=copy", 0);
        for all in [own, peer, copied] {
            assert!(all.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1), "{all:?}");
            assert!(all.windows(2).any(|pair| pair[1].1 != pair[0].1), "{all:?}");
        }
    }
}

/// PyTorch and CuPy read the publisher's memory where it is, in Python.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn python_takes_tensors_without_a_copy() {
    let site = Site::new("tensor");
    let python = std::env::var("PYTHON").unwrap_or("python3".into());
    let script = std::env::var_os("CUFRAMES_BUILT").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/python/tensor.py"),
        |built| PathBuf::from(built).join("examples/python/tensor.py"),
    );
    let _publisher = site.launch(
        "videotestsrc is-live=true pattern=white ! video/x-raw,format=NV12,width=640,height=360 \
         ! cudaupload ! cuframessink key=cam1",
    );
    for library in ["torch", "cupy"] {
        let has = Command::new(&python).args(["-c", &format!("import {library}")]).status();
        if !has.is_ok_and(|status| status.success()) {
            eprintln!("skipped: {python} has no {library}");
            continue;
        }
        let mut command = site.command(&python);
        let output = command.arg(&script).args(["cam1", "20", library]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.matches("(360, 640) mean 235.000 no copy").count(), 20, "{output:?}");
    }
}
