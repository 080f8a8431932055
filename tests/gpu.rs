//! Frames that stay on the GPU: NVDEC, CUDA elements that are not ours, other processes.
//!
//! `make gpu-test` runs these where an NVIDIA GPU and GStreamer 1.24 or later are. Programs are started
//! through `$ON_GPU` where that is set, and the plugin and the examples are looked for in
//! `$CUFRAMES_BUILT`, so that a packed build runs on a host without cargo.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gst::prelude::*;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

#[path = "../examples/support/stamp.rs"]
mod stamp;

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
        Running(command.arg("-q").args(pipeline.split_whitespace()).spawn().unwrap())
    }

    /// A camera, and a publisher that decodes it with NVDEC.
    fn camera(&self, options: &str, codec: &str) -> (Running, Running) {
        let program = built().join("examples/camera");
        let mut command = self.command(program.to_str().unwrap());
        command.args("--port 0".split(' ')).args(options.split_whitespace());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().expect("the camera says that it is ready").unwrap();
        let url = first.strip_prefix("ready ").expect(&first);
        let packed = if codec == "h264" { "avc" } else { "hvc1" };
        let publisher = self.launch(&format!(
            "rtspsrc location={url} protocols=tcp latency=100 ! rtp{codec}depay \
             ! video/x-{codec},stream-format={packed},alignment=au ! {codec}parse ! nv{codec}dec \
             ! cuframessink key=cam1 forward-eos=false"
        ));
        std::thread::spawn(move || lines.for_each(drop));
        (Running(child), publisher)
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

/// A process group that ends with its scope.
struct Running(Child);

impl Running {
    fn success(mut self) {
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    fn kill(self) {
        killpg(Pid::from_raw(self.0.id() as i32), Signal::SIGKILL).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.0.id() as i32);
        let _ = killpg(group, Signal::SIGTERM);
        let _ = self.0.wait();
        let _ = killpg(group, Signal::SIGKILL);
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
    let files: Vec<_> = (0..4).map(|n| site.dir.join(format!("{n}.raw"))).collect();
    let subscribers: Vec<_> = ["", "", "io-mode=copy", "max-held=0"]
        .iter()
        .zip(&files)
        .map(|(mode, file)| {
            site.launch(&format!(
                "cuframessrc key=cam1 mode=strict num-buffers=90 {mode} ! video/x-raw(memory:CUDAMemory) \
                 ! cudadownload ! video/x-raw,format=NV12 ! filesink location={}",
                file.display()
            ))
        })
        .collect();
    let _running = site.camera(options, codec);
    subscribers.into_iter().for_each(Running::success);
    for file in files {
        let numbers = numbers(&std::fs::read(file).unwrap());
        assert_eq!(numbers.len(), 90);
        assert_eq!(numbers[89] - numbers[0], 89, "every frame in order");
    }
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

/// A source of this process; what it sees is downloaded, as downstream takes host memory only.
fn watch(site: &Site) -> (gst::Pipeline, Arc<Mutex<Vec<u8>>>) {
    let pipeline = gst::parse::launch(
        "cuframessrc name=src key=cam1 ! video/x-raw,format=NV12 ! fakesink name=out sync=false",
    );
    let pipeline = pipeline.unwrap().downcast::<gst::Pipeline>().unwrap();
    let source = pipeline.by_name("src").unwrap();
    source.set_property("runtime-dir", site.dir.to_str().unwrap());
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let into = bytes.clone();
    let pad = pipeline.by_name("out").unwrap().static_pad("sink").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let map = info.buffer().unwrap().map_readable().unwrap();
        into.lock().unwrap().extend_from_slice(&map);
        gst::PadProbeReturn::Ok
    });
    pipeline.set_state(gst::State::Playing).unwrap();
    (pipeline, bytes)
}

fn stat(pipeline: &gst::Pipeline, field: &str) -> u64 {
    let source = pipeline.by_name("src").unwrap();
    source.property::<gst::Structure>("stats").get(field).unwrap()
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn host_memory_downstream_gets_downloads() {
    let site = Site::new("download");
    let (pipeline, bytes) = watch(&site);
    let _running = site.camera("--size 640x360 --gop 15", "h264");
    until(|| stat(&pipeline, "received") >= 60);
    assert_eq!(stat(&pipeline, "downloaded"), stat(&pipeline, "received"));
    pipeline.set_state(gst::State::Null).unwrap();
    assert!(numbers(&bytes.lock().unwrap()).len() >= 60);
}

/// A publisher that is killed, most likely between a copy and its end, hangs nobody.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_killed_publisher_is_replaced() {
    let site = Site::new("killed");
    let (pipeline, bytes) = watch(&site);
    for round in 0..3 {
        let (camera, publisher) = site.camera("--size 640x360 --gop 5", "h264");
        let before = stat(&pipeline, "received");
        until(|| {
            stat(&pipeline, "reconnects") >= round && stat(&pipeline, "received") > before + 20
        });
        publisher.kill();
        drop(camera);
        // Each camera counts anew.
        let seen = std::mem::take(&mut *bytes.lock().unwrap());
        numbers(&seen);
    }
    pipeline.set_state(gst::State::Null).unwrap();
}
