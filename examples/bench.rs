//! Hand-over between processes, measured the same way for every system: `bench [--frames N] [--fps N]
//! [--size WxH] [--subscribers N] [SYSTEM…]`.
//!
//! A publisher writes the time into each frame at the sink's pad, subscribers read it at the element
//! behind the source. All are processes of their own; the systems are measured one after another in
//! turns, so that what else the machine does hits all alike.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use gst::prelude::*;

type Failure = Box<dyn std::error::Error>;

/// How a system's sink and source are written in a pipeline; `SITE` is a folder of this run's own.
const SYSTEMS: [(&str, &str, &str); 3] = [
    (
        "cuframes",
        "cuframessink name=sink key=bench runtime-dir=SITE",
        "cuframessrc name=src key=bench mode=strict runtime-dir=SITE",
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
];
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
        let pipeline = std::env::args().nth(1).ok_or("a role has a pipeline")?;
        return if role == "publisher" { publish(&pipeline) } else { subscribe(&pipeline) };
    }
    measure(&Options::parse()?)
}

fn measure(options: &Options) -> Result<(), Failure> {
    let caps = options.caps()?;
    let mut results: BTreeMap<&str, Vec<Round>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for (name, sink, source) in
            SYSTEMS.iter().filter(|s| options.systems.iter().any(|o| o == s.0))
        {
            let element = sink.split(' ').next().unwrap_or_default();
            if gst::ElementFactory::find(element).is_none() {
                continue;
            }
            let site = std::env::temp_dir().join(format!("cuframes-bench-{}", std::process::id()));
            std::fs::create_dir_all(&site)?;
            let place =
                |text: &str| text.replace("SITE", &site.to_string_lossy()).replace("CAPS", &caps);
            let frames = options.frames;
            // Queue-free: the thread that makes a frame hands it over, as a decoder's does.
            let publisher = format!(
                "videotestsrc name=camera is-live=true num-buffers={frames} pattern=black ! {caps} ! {}",
                place(sink)
            );
            let subscriber = format!("{} ! fakesink name=out sync=false", place(source));
            results.entry(name).or_default().push(round(options, &publisher, &subscriber)?);
            std::fs::remove_dir_all(&site)?;
        }
    }
    println!(
        "{} {} fps, {} subscribers, {} frames, {ROUNDS} rounds; median of the rounds (least–most)",
        options.size, options.fps, options.subscribers, options.frames
    );
    println!(
        "{:10} {:>22} {:>22} {:>22} {:>20} {:>20} {:>8}",
        "system",
        "p50 µs",
        "p95 µs",
        "p99 µs",
        "publisher µs/frame",
        "subscriber µs/frame",
        "frames"
    );
    for (name, rounds) in &results {
        let spread = |of: fn(&Round) -> f64| {
            let mut all: Vec<f64> = rounds.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            format!("{:.0} ({:.0}–{:.0})", all[all.len() / 2], all[0], all[all.len() - 1])
        };
        println!(
            "{name:10} {:>22} {:>22} {:>22} {:>20} {:>20} {:>8}",
            spread(|r| r.quantile(0.5)),
            spread(|r| r.quantile(0.95)),
            spread(|r| r.quantile(0.99)),
            spread(|r| r.publisher_cpu),
            spread(|r| r.subscriber_cpu),
            rounds.iter().map(|r| r.latencies.len()).sum::<usize>()
        );
    }
    for name in options.systems.iter().filter(|s| !results.contains_key(s.as_str())) {
        println!("{name:10} not on this machine");
    }
    Ok(())
}

/// One run of one system; CPU in µs a frame.
struct Round {
    /// Sorted, in µs.
    latencies: Vec<f64>,
    publisher_cpu: f64,
    subscriber_cpu: f64,
}

impl Round {
    fn quantile(&self, q: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((last as f64 * q).round() as usize).copied().unwrap_or(f64::NAN)
    }
}

fn round(options: &Options, publisher: &str, subscriber: &str) -> Result<Round, Failure> {
    let mut publisher = child("publisher", publisher)?;
    // It says when its sink is there to be connected to.
    let mut said = BufReader::new(publisher.stdout.take().ok_or("no output")?);
    said.read_line(&mut String::new())?;
    let mut subscribers = Vec::new();
    for _ in 0..options.subscribers {
        subscribers.push(child("subscriber", subscriber)?);
    }
    for one in &mut subscribers {
        // It says that it plays by its first byte.
        one.stdout.as_mut().ok_or("no output")?.read_exact(&mut [0])?;
    }
    publisher.stdin.take().ok_or("no input")?.write_all(b"\n")?;
    let (mut latencies, mut subscriber_cpu) = (Vec::new(), 0.0);
    for mut one in subscribers {
        let mut text = String::new();
        one.stdout.take().ok_or("no output")?.read_to_string(&mut text)?;
        let mut numbers = text.split_whitespace().map(str::parse::<f64>);
        subscriber_cpu += numbers.next().ok_or("a subscriber says nothing")??;
        latencies.extend(numbers.collect::<Result<Vec<_>, _>>()?);
        one.wait()?;
    }
    let mut text = String::new();
    said.read_to_string(&mut text)?;
    publisher.wait()?;
    let frames = f64::from(options.frames);
    latencies.sort_by(f64::total_cmp);
    Ok(Round {
        publisher_cpu: text.trim().parse::<f64>()? / frames,
        subscriber_cpu: subscriber_cpu / frames / f64::from(options.subscribers),
        latencies,
    })
}

/// This program again, in another role; through the runner that this one was started with (`$ON_GPU`),
/// if any.
fn child(role: &str, pipeline: &str) -> Result<Child, Failure> {
    // Not current_exe: with a runner that is the runner's loader.
    let own = std::env::args_os().next().ok_or("a program has a name")?;
    let mut command = match std::env::var_os("ON_GPU") {
        Some(runner) => {
            let mut command = Command::new(runner);
            command.arg(own);
            command
        }
        None => Command::new(own),
    };
    command.arg(pipeline).env("CUFRAMES_BENCH_ROLE", role);
    Ok(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?)
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

fn publish(pipeline: &str) -> Result<(), Failure> {
    let pipeline = parse(pipeline)?;
    let pad = pipeline.by_name("camera").and_then(|c| c.static_pad("src")).ok_or("no camera")?;
    let sink = pipeline.by_name("sink").ok_or("no sink")?;
    pad.add_probe(gst::PadProbeType::BUFFER, |_, info| {
        if let Some(Ok(mut map)) = info.buffer_mut().map(|b| b.make_mut().map_writable()) {
            map[..8].copy_from_slice(&now().to_ne_bytes());
        }
        gst::PadProbeReturn::Ok
    });
    pipeline.set_state(gst::State::Paused)?;
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    let before = cpu();
    pipeline.set_state(gst::State::Playing)?;
    run_to_the_end(&pipeline)?;
    println!("{}", cpu() - before);
    let stats =
        sink.has_property("stats").then(|| sink.property::<Option<gst::Structure>>("stats"));
    if let Some(copied) = stats.flatten().and_then(|s| s.get::<u64>("copied").ok()) {
        assert_eq!(copied, 0, "the publisher copies");
    }
    pipeline.set_state(gst::State::Null)?;
    Ok(())
}

fn subscribe(pipeline: &str) -> Result<(), Failure> {
    let pipeline = parse(pipeline)?;
    let pad = pipeline.by_name("out").and_then(|c| c.static_pad("sink")).ok_or("no output")?;
    let latencies = Arc::new(Mutex::new(Vec::new()));
    let into = latencies.clone();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let now = now();
        if let Some(Ok(map)) = info.buffer().map(|b| b.map_readable())
            && let Ok(stamp) = map[..8].try_into()
            && let Ok(mut all) = into.lock()
        {
            all.push(now - i64::from_ne_bytes(stamp));
        }
        gst::PadProbeReturn::Ok
    });
    pipeline.set_state(gst::State::Playing)?;
    print!("!");
    std::io::stdout().flush()?;
    let before = cpu();
    // Some sources know no end of the stream, but all an end of the publisher.
    let _ = run_to_the_end(&pipeline);
    println!("{}", cpu() - before);
    for ns in latencies.lock().map_err(|_| "a probe panicked")?.iter() {
        println!("{}", *ns as f64 / 1e3);
    }
    pipeline.set_state(gst::State::Null)?;
    Ok(())
}
