//! Hand-over between processes, measured the same way for every system: `bench [--frames N] [--fps N]
//! [--size WxH] [--subscribers N] [SYSTEM…]`.
//!
//! A publisher notes the time of each frame at the sink's pad, subscribers read it at the element behind
//! the source: from the frame's first pixels, or with frames in device memory from a page that they
//! share (see [`Stamps`]). All are processes of their own; the systems are measured one after another in
//! turns, so that what else the machine does hits all alike.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use gst::prelude::*;
use gstcuframes::gpu::gstcuda;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

type Failure = Box<dyn std::error::Error>;

/// How a system's sink and source are written in a pipeline; `SITE` is a folder of this run's own. The
/// frames of those with `cuda` in their name are in CUDA memory.
const SYSTEMS: [(&str, &str, &str); 12] = [
    (
        "cuframes",
        "cuframessink name=sink key=bench runtime-dir=SITE",
        "cuframessrc name=src key=bench runtime-dir=SITE",
    ),
    (
        "cuframes-spin",
        "cuframessink name=sink key=bench runtime-dir=SITE",
        "cuframessrc name=src key=bench spin=500 runtime-dir=SITE",
    ),
    (
        "unixfd",
        "unixfdsink name=sink sync=false socket-path=SITE/unixfd",
        "unixfdsrc name=src socket-path=SITE/unixfd",
    ),
    (
        "shm",
        "shmsink name=sink sync=false wait-for-connection=false shm-size=200000000 socket-path=SITE/shm",
        "shmsrc name=src is-live=true socket-path=SITE/shm ! CAPS",
    ),
    (
        "cuframes-cuda",
        "cuframessink name=sink key=bench runtime-dir=SITE",
        "cuframessrc name=src key=bench runtime-dir=SITE",
    ),
    (
        "cuframes-cuda-spin",
        "cuframessink name=sink key=bench runtime-dir=SITE",
        "cuframessrc name=src key=bench spin=500 runtime-dir=SITE",
    ),
    (
        "cuframes-cuda-copy",
        "cuframessink name=sink key=bench runtime-dir=SITE",
        "cuframessrc name=src key=bench io-mode=copy runtime-dir=SITE",
    ),
    (
        "cuframes-cuda-event",
        "cuframessink name=sink key=bench sync-mode=event runtime-dir=SITE",
        "cuframessrc name=src key=bench runtime-dir=SITE",
    ),
    (
        "cuframes-cuda-host",
        "cuframessink name=sink key=bench sync-mode=host runtime-dir=SITE",
        "cuframessrc name=src key=bench runtime-dir=SITE",
    ),
    (
        "cudaipc",
        "cudaipcsink name=sink sync=false ipc-mode=legacy address=SITE/cudaipc",
        "cudaipcsrc name=src io-mode=import address=SITE/cudaipc",
    ),
    (
        "cudaipc-copy",
        "cudaipcsink name=sink sync=false ipc-mode=legacy address=SITE/cudaipc",
        "cudaipcsrc name=src io-mode=copy address=SITE/cudaipc",
    ),
    (
        "cudaipc-mmap",
        "cudaipcsink name=sink sync=false ipc-mode=mmap address=SITE/cudaipc",
        "cudaipcsrc name=src address=SITE/cudaipc",
    ),
];
/// What turns the camera's frames into those of a CUDA system.
const UPLOAD: &str = "cudaupload ! video/x-raw(memory:CUDAMemory) ! ";
/// Frames before those that are measured: connections, mappings, first allocations.
const WARM_UP: u32 = 30;
/// Turns that each system gets.
const ROUNDS: usize = 3;

struct Options {
    frames: u32,
    fps: u32,
    size: String,
    subscribers: u32,
    systems: Vec<String>,
}

impl Options {
    fn parse() -> Result<Self, Failure> {
        let mut options = Self {
            frames: 300,
            fps: 30,
            size: "1920x1080".into(),
            subscribers: 1,
            systems: Vec::new(),
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--frames" => options.frames = value()?.parse()?,
                "--fps" => options.fps = value()?.parse()?,
                "--size" => options.size = value()?,
                "--subscribers" => options.subscribers = value()?.parse()?,
                name if SYSTEMS.iter().any(|s| s.0 == name) => options.systems.push(name.into()),
                other => return Err(format!("there is no option or system '{other}'").into()),
            }
        }
        if options.systems.is_empty() {
            options.systems = SYSTEMS.iter().map(|s| s.0.to_owned()).collect();
        }
        Ok(options)
    }

    fn caps(&self) -> Result<String, Failure> {
        let (width, height) = self.size.split_once('x').ok_or("a size is WIDTHxHEIGHT")?;
        let fps = self.fps;
        Ok(format!("video/x-raw,format=NV12,width={width},height={height},framerate={fps}/1"))
    }
}

fn main() -> Result<(), Failure> {
    gst::init()?;
    gstcuframes::plugin_register_static()?;
    if let Ok(role) = std::env::var("CUFRAMES_BENCH_ROLE") {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let [pipeline, stamps, frames, fps] = args.as_slice() else {
            return Err("a role has a pipeline, stamps, frames and their rate".into());
        };
        let (frames, fps): (u64, i64) = (frames.parse()?, fps.parse()?);
        // No source of any system can hang the rest.
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(frames / fps.unsigned_abs() + 30));
            eprintln!("{} comes to no end", std::process::id());
            std::process::exit(1);
        });
        let stamps = Stamps::open(stamps, 1_000_000_000 / fps / 2)?;
        return match role.as_str() {
            "publisher" => publish(pipeline, stamps),
            _ => subscribe(pipeline, stamps),
        };
    }
    measure(&Options::parse()?)
}

/// The first element of a pipeline that this machine does not have.
fn missing(pipeline: &str) -> Option<&str> {
    let words = pipeline.split('!').filter_map(|part| part.split_whitespace().next());
    // What has a slash is caps.
    words
        .filter(|w| !w.contains('/') && *w != "CAPS")
        .find(|w| gst::ElementFactory::find(w).is_none())
}

fn measure(options: &Options) -> Result<(), Failure> {
    let caps = options.caps()?;
    let mut results: BTreeMap<&str, Vec<Round>> = BTreeMap::new();
    let mut excuses: BTreeMap<&str, String> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for (name, sink, source) in
            SYSTEMS.iter().filter(|s| options.systems.iter().any(|o| o == s.0))
        {
            let cuda = name.contains("cuda");
            let upload = if cuda { UPLOAD } else { "" };
            if let Some(element) = [upload, sink, source].into_iter().find_map(missing) {
                excuses.insert(name, format!("not on this machine: no {element}"));
                continue;
            }
            let site = std::env::temp_dir().join(format!("cuframes-bench-{}", std::process::id()));
            std::fs::create_dir_all(&site)?;
            let place =
                |text: &str| text.replace("SITE", &site.to_string_lossy()).replace("CAPS", &caps);
            let frames = options.frames + WARM_UP;
            // Queue-free: the thread that makes a frame hands it over, as a decoder's does.
            let publisher = format!(
                "videotestsrc is-live=true num-buffers={frames} pattern=black ! {caps} ! {upload}{}",
                place(sink)
            );
            let subscriber = format!("{} ! fakesink name=out sync=false", place(source));
            let stamps = if cuda { place("SITE/stamps") } else { String::new() };
            match round(options, [&publisher, &subscriber, &stamps]) {
                Ok(round) => results.entry(name).or_default().push(round),
                Err(e) => drop(excuses.insert(name, format!("failed: {e}"))),
            }
            std::fs::remove_dir_all(&site)?;
        }
    }
    println!(
        "{} {} fps, {} subscribers, {} frames, {ROUNDS} rounds; median of the rounds (least–most)",
        options.size, options.fps, options.subscribers, options.frames
    );
    let times = ["p50 µs", "p95 µs", "p99 µs"].map(|t| format!("{t:>22}")).join(" ");
    let cpus = ["publisher µs/frame", "subscriber µs/frame"].map(|t| format!("{t:>20}")).join(" ");
    println!("{:18} {times} {cpus} {:>8} {:>6}", "system", "frames", "late");
    for (name, rounds) in &results {
        let spread = |of: &dyn Fn(&Round) -> f64| {
            let mut all: Vec<f64> = rounds.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            format!("{:.0} ({:.0}–{:.0})", all[all.len() / 2], all[0], all[all.len() - 1])
        };
        let times = [0.5, 0.95, 0.99].map(|q| format!("{:>22}", spread(&|r| r.quantile(q))));
        let cpus: [fn(&Round) -> f64; 2] = [|r| r.publisher_cpu, |r| r.subscriber_cpu];
        let cpus = cpus.map(|of| format!("{:>20}", spread(&of))).join(" ");
        let frames: usize = rounds.iter().map(|r| r.latencies.len()).sum();
        let late: u64 = rounds.iter().map(|r| r.late).sum();
        println!("{name:18} {} {cpus} {frames:>8} {late:>6}", times.join(" "));
    }
    for (name, excuse) in &excuses {
        println!("{name:18} {excuse}");
    }
    Ok(())
}

/// One run of one system; CPU in µs a frame, with all that the process does: a publisher's camera too.
struct Round {
    /// Sorted, in µs.
    latencies: Vec<f64>,
    /// Frames of which it can't be said how long they took: see [`Seen`].
    late: u64,
    publisher_cpu: f64,
    subscriber_cpu: f64,
}

impl Round {
    fn quantile(&self, q: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((last as f64 * q).round() as usize).copied().unwrap_or(f64::NAN)
    }
}

fn round(options: &Options, [publisher, subscriber, stamps]: [&str; 3]) -> Result<Round, Failure> {
    let mut publisher = Role::start("publisher", publisher, stamps, options)?;
    // It says when its sink is there to be connected to.
    let mut said = BufReader::new(publisher.0.stdout.take().ok_or("no output")?);
    if said.read_line(&mut String::new())? == 0 {
        return Err("the publisher does not start".into());
    }
    let mut subscribers = Vec::new();
    for _ in 0..options.subscribers {
        subscribers.push(Role::start("subscriber", subscriber, stamps, options)?);
    }
    for one in &mut subscribers {
        // It says that it plays by its first byte.
        one.0.stdout.as_mut().ok_or("no output")?.read_exact(&mut [0])?;
    }
    publisher.0.stdin.take().ok_or("no input")?.write_all(b"\n")?;
    let (mut latencies, mut late, mut subscriber_cpu) = (Vec::new(), 0, 0.0);
    for mut one in subscribers {
        let mut text = String::new();
        one.0.stdout.take().ok_or("no output")?.read_to_string(&mut text)?;
        let mut words = text.split_whitespace();
        subscriber_cpu += words.next().ok_or("a subscriber says nothing")?.parse::<f64>()?;
        late += words.next().ok_or("a subscriber says too little")?.parse::<u64>()?;
        latencies.extend(words.map(str::parse::<f64>).collect::<Result<Vec<_>, _>>()?);
        one.0.wait()?;
    }
    let mut text = String::new();
    said.read_to_string(&mut text)?;
    publisher.0.wait()?;
    latencies.sort_by(f64::total_cmp);
    Ok(Round {
        publisher_cpu: text.trim().parse::<f64>()? / f64::from(options.frames),
        subscriber_cpu: subscriber_cpu / f64::from(options.subscribers),
        latencies,
        late,
    })
}

/// This program again, in another role; through the runner that this one was started with (`$ON_GPU`),
/// if any. It goes when this is dropped.
struct Role(Child);

impl Role {
    fn start(role: &str, pipeline: &str, stamps: &str, all: &Options) -> Result<Self, Failure> {
        // Not current_exe: with a runner that is the runner's loader.
        let own = std::env::args_os().next().ok_or("a program has a name")?;
        let runner = std::env::var_os("ON_GPU");
        let mut command = Command::new(runner.as_ref().unwrap_or(&own));
        command.args(runner.is_some().then_some(&own));
        command.args([pipeline, stamps]);
        command.args([(all.frames + WARM_UP).to_string(), all.fps.to_string()]);
        command.env("CUFRAMES_BENCH_ROLE", role);
        Ok(Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?))
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the publisher leaves the time at which a frame reached its sink; 0 while it warms up.
#[derive(Clone, Copy)]
enum Stamps {
    /// In the frame itself.
    Pixels,
    /// Device memory can't be stamped without work that would be measured as well, so the publisher keeps
    /// the time of its last frame here, and a subscriber takes it for that of the frame it just got. That
    /// holds while a frame takes less than the time to the next one, so what seems to take `limit`, half
    /// of that, or more is not counted but reported as late.
    Shared { last: &'static AtomicI64, limit: i64 },
}

impl Stamps {
    fn open(path: &str, limit: i64) -> Result<Self, Failure> {
        if path.is_empty() {
            return Ok(Self::Pixels);
        }
        let len = size_of::<AtomicI64>();
        let mut options = File::options();
        let file = options.create(true).truncate(false).read(true).write(true).open(path)?;
        file.set_len(len as u64)?;
        let (all, shared) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping, which nothing else in this process refers to.
        let at = unsafe { mmap(None, len.try_into()?, all, shared, &file, 0) }?;
        // SAFETY: the mapping is as long as the atomic and aligned to a page, never unmapped, and every
        // process uses it as an atomic only. Nobody makes the file shorter.
        Ok(Self::Shared { last: unsafe { at.cast::<AtomicI64>().as_ref() }, limit })
    }

    fn write(self, buffer: &mut gst::Buffer, warm: bool) {
        match self {
            Self::Pixels => {
                if let Ok(mut map) = buffer.make_mut().map_writable() {
                    let stamp = if warm { now() } else { 0 };
                    map[..8].copy_from_slice(&stamp.to_ne_bytes());
                }
            }
            Self::Shared { last, .. } => {
                // cudaupload hands on frames that are still being uploaded.
                gstcuda::sync(buffer.peek_memory(0));
                last.store(if warm { now() } else { 0 }, Ordering::Release);
            }
        }
    }

    fn read(self, buffer: &gst::BufferRef) -> Option<i64> {
        match self {
            Self::Pixels => {
                buffer.map_readable().ok()?[..8].try_into().ok().map(i64::from_ne_bytes)
            }
            Self::Shared { last, .. } => {
                gstcuda::is_cuda(buffer.peek_memory(0)).then(|| last.load(Ordering::Acquire))
            }
        }
    }
}

fn now() -> i64 {
    gstcuframes::core::wake::now_ns()
}

/// CPU time of this process so far, in µs.
fn cpu() -> f64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID);
    time.map_or(f64::NAN, |t| t.tv_sec() as f64 * 1e6 + t.tv_nsec() as f64 / 1e3)
}

fn parse(pipeline: &str) -> Result<gst::Pipeline, Failure> {
    let parsed = gst::parse::launch(pipeline)?;
    parsed.downcast::<gst::Pipeline>().map_err(|_| "not a pipeline".into())
}

fn run_to_the_end(pipeline: &gst::Pipeline) -> Result<(), Failure> {
    let bus = pipeline.bus().ok_or("a pipeline has a bus")?;
    for message in bus.iter_timed(gst::ClockTime::NONE) {
        match message.view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(e) => return Err(e.error().into()),
            _ => {}
        }
    }
    Ok(())
}

fn publish(pipeline: &str, stamps: Stamps) -> Result<(), Failure> {
    let pipeline = parse(pipeline)?;
    let sink = pipeline.by_name("sink").ok_or("no sink")?;
    let pad = sink.static_pad("sink").ok_or("no pad")?;
    let start = Arc::new(OnceLock::new());
    let (begin, frames) = (start.clone(), AtomicU32::new(0));
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let warm = frames.fetch_add(1, Ordering::Relaxed) >= WARM_UP;
        if warm {
            begin.get_or_init(cpu);
        }
        if let Some(buffer) = info.buffer_mut() {
            stamps.write(buffer, warm);
        }
        gst::PadProbeReturn::Ok
    });
    pipeline.set_state(gst::State::Paused)?;
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    pipeline.set_state(gst::State::Playing)?;
    run_to_the_end(&pipeline)?;
    println!("{}", cpu() - start.get().ok_or("too few frames")?);
    if matches!(stamps, Stamps::Pixels)
        && sink.has_property("stats")
        && let Some(stats) = sink.property::<Option<gst::Structure>>("stats")
        && let Ok(copied) = stats.get::<u64>("copied")
    {
        assert_eq!(copied, 0, "the publisher copies");
    }
    pipeline.set_state(gst::State::Null)?;
    Ok(())
}

/// What a subscriber saw. The pixels are complete when a frame gets here, in device memory too:
/// cuframessrc pushes a frame when the GPU has said that it wrote it, and its io-mode=copy waits for the
/// copy; cudaipcsink sends a frame only when its stream is done, and cudaipcsrc waits for its copy.
#[derive(Default)]
struct Seen {
    /// In ns.
    latencies: Vec<i64>,
    late: u64,
    /// The stamp of the last frame, and whether its latency counts.
    last: (i64, bool),
    /// CPU time before the first frame that counts.
    start: f64,
    /// In another memory than that of the system.
    wrong: bool,
}

impl Seen {
    fn add(&mut self, now: i64, stamp: Option<i64>, limit: i64) {
        let Some(stamp) = stamp else {
            self.wrong = true;
            return;
        };
        if stamp == 0 {
            return;
        }
        if self.last.0 == 0 {
            self.start = cpu();
        }
        // Two frames in the time of one: the first was older than its stamp.
        if self.last == (stamp, true) {
            self.latencies.pop();
            self.late += 1;
        }
        let counts = now - stamp < limit;
        if counts {
            self.latencies.push(now - stamp);
        } else {
            self.late += 1;
        }
        self.last = (stamp, counts);
    }
}

fn subscribe(pipeline: &str, stamps: Stamps) -> Result<(), Failure> {
    let pipeline = parse(pipeline)?;
    let pad = pipeline.by_name("out").and_then(|c| c.static_pad("sink")).ok_or("no output")?;
    let limit = match stamps {
        Stamps::Pixels => i64::MAX,
        Stamps::Shared { limit, .. } => limit,
    };
    let seen = Arc::new(Mutex::new(Seen::default()));
    let into = seen.clone();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let now = now();
        if let Some(buffer) = info.buffer()
            && let Ok(mut seen) = into.lock()
        {
            seen.add(now, stamps.read(buffer), limit);
        }
        gst::PadProbeReturn::Ok
    });
    pipeline.set_state(gst::State::Playing)?;
    print!("!");
    std::io::stdout().flush()?;
    // Some sources know no end of the stream, but all an end of the publisher.
    let _ = run_to_the_end(&pipeline);
    let end = cpu();
    {
        let seen = seen.lock().map_err(|_| "a probe panicked")?;
        if seen.wrong {
            return Err("frames came in the wrong memory".into());
        }
        let frames = seen.latencies.len() as u64 + seen.late;
        println!("{} {}", (end - seen.start) / frames as f64, seen.late);
        for ns in &seen.latencies {
            println!("{}", *ns as f64 / 1e3);
        }
    }
    pipeline.set_state(gst::State::Null)?;
    Ok(())
}
