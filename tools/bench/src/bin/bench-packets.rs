// SPDX-License-Identifier: LGPL-2.1-or-later
//! Measures the cost of packets between processes: `bench-packets [--cameras N[,N…]] [--readers N] [--mbit N]
//! [--fps N] [--seconds N] [--out FILE.json]`.
//!
//! One process publishes all cameras, each with a key of its own. Every second there is a keyframe of 8 times
//! the size of other packets. Each reader is a process that takes the packets of all cameras. Hand-over is
//! the time from publishing a packet to having its copy.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cuframes::memory::host::HostBackend;
use cuframes::sync::clock::now_ns;
use cuframes::{
    Interrupt, Next, PacketInfo, Publisher, PublisherConfig, Start, Subscriber, SubscriberConfig,
    TrackConfig, Wait,
};
use cuframes_bench::machine;
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

struct Options {
    cameras: Vec<usize>,
    readers: usize,
    mbit: f64,
    fps: u64,
    seconds: u64,
    out: Option<PathBuf>,
}

impl Options {
    fn parse() -> Result<Self, Failure> {
        let mut options =
            Self { cameras: vec![64], readers: 4, mbit: 8.0, fps: 30, seconds: 10, out: None };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let value = args.next().ok_or(format!("{arg} needs a value"))?;
            match arg.as_str() {
                "--cameras" => {
                    options.cameras = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
                }
                "--readers" => options.readers = value.parse()?,
                "--mbit" => options.mbit = value.parse()?,
                "--fps" => options.fps = value.parse()?,
                "--seconds" => options.seconds = value.parse()?,
                "--out" => options.out = Some(value.into()),
                other => return Err(format!("there is no option {other}").into()),
            }
        }
        Ok(options)
    }

    /// Returns the bytes of a keyframe and of other packets.
    fn sizes(&self) -> (usize, usize) {
        let second = self.mbit * 1e6 / 8.0;
        let delta = second / (self.fps + 7) as f64;
        (8 * delta as usize, delta as usize)
    }
}

/// Returns the CPU time of this process so far, in seconds.
fn cpu() -> f64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID);
    time.map_or(f64::NAN, |t| t.tv_sec() as f64 + t.tv_nsec() as f64 / 1e9)
}

/// Returns p50, p95 and p99 in µs.
fn quantiles(mut ns: Vec<i64>) -> Value {
    ns.sort_unstable();
    let last = ns.len().saturating_sub(1) as f64;
    let of = |q: f64| ns.get((last * q).round() as usize).map(|t| *t as f64 / 1e3);
    json!({ "p50": of(0.5), "p95": of(0.95), "p99": of(0.99) })
}

/// Formats the report of a process.
fn text(said: &Value) -> String {
    let of = |name: &str| said["us"][name].as_f64().unwrap_or(f64::NAN);
    format!(
        "p50 {:.1} µs, p95 {:.1} µs, p99 {:.1} µs; {:.1} % of a CPU",
        of("p50"),
        of("p95"),
        of("p99"),
        said["cpu_percent"].as_f64().unwrap_or(f64::NAN)
    )
}

fn main() -> Result<(), Failure> {
    let options = Options::parse()?;
    if let Ok(task) = std::env::var("CUFRAMES_BENCH_DIR") {
        let (cameras, dir) = task.split_once(' ').ok_or("a reader has a task")?;
        return read(cameras.parse()?, dir);
    }
    let mut results = Vec::new();
    for &cameras in &options.cameras {
        results.push(publish(&options, cameras)?);
    }
    if let Some(out) = &options.out {
        let all = json!({
            "machine": machine::machine(), "commit": machine::commit(),
            "options": {
                "readers": options.readers, "mbit": options.mbit, "fps": options.fps,
                "seconds": options.seconds,
            },
            "results": results,
        });
        std::fs::write(out, serde_json::to_string_pretty(&all)? + "\n")?;
    }
    Ok(())
}

fn publish(options: &Options, cameras: usize) -> Result<Value, Failure> {
    let dir = std::env::temp_dir().join(format!("cuframes-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let mut tracks = Vec::new();
    for camera in 0..cameras {
        let key = format!("cam{camera}");
        let config =
            PublisherConfig { runtime_dir: Some(dir.clone()), ..PublisherConfig::new(key) };
        let publisher = Publisher::open(config, Arc::new(HostBackend), |_| {})?;
        let config = TrackConfig { bytes: 4 << 20, ..Default::default() };
        tracks.push((publisher.add_track(0, "video/x-h264", config)?, publisher));
    }
    let mut readers: Vec<Child> = (0..options.readers)
        .map(|_| {
            Command::new(std::env::current_exe()?)
                .args(std::env::args().skip(1))
                .env("CUFRAMES_BENCH_DIR", format!("{cameras} {}", dir.display()))
                .stdout(Stdio::piped())
                .spawn()
        })
        .collect::<Result<_, _>>()?;
    let mut outputs = Vec::new();
    for reader in &mut readers {
        let mut output = BufReader::new(reader.stdout.take().ok_or("no output")?);
        output.read_line(&mut String::new())?;
        outputs.push(output);
    }

    // Cameras are not synchronized: their packets are spread over the time of one frame.
    let (large, small) = options.sizes();
    let data = vec![0x5a; large];
    let packets = options.fps * options.seconds;
    let step = Duration::from_nanos(1_000_000_000 / options.fps / cameras as u64);
    let (mut took, began, cpu_before) = (Vec::new(), Instant::now(), cpu());
    for n in 0..packets * cameras as u64 {
        let due = step * n as u32;
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        let (camera, frame) = (n % cameras as u64, n / cameras as u64);
        let keyframe = (frame + camera).is_multiple_of(options.fps);
        let info = PacketInfo { keyframe, ..Default::default() };
        let start = now_ns();
        let data = &data[..if keyframe { large } else { small }];
        tracks[camera as usize].0.push(info, data).map_err(|e| format!("{e:?}"))?;
        took.push(now_ns() - start);
    }
    let (wall, used) = (began.elapsed().as_secs_f64(), cpu() - cpu_before);
    tracks.iter().for_each(|(track, _)| track.end());
    println!(
        "{cameras} cameras of {} Mbit/s and {} fps, {} readers of all of them, {wall:.0} s; packets of {small} and {large} bytes",
        options.mbit, options.fps, options.readers
    );
    let published = json!({ "us": quantiles(took), "cpu_percent": used / wall * 100.0 });
    println!("publish    {}", text(&published));
    let mut read = Vec::new();
    for mut output in outputs {
        let mut line = String::new();
        output.read_to_string(&mut line)?;
        let said: Value = serde_json::from_str(&line)?;
        println!("reader     {}; {} packets, {} lost", text(&said), said["packets"], said["lost"]);
        read.push(said);
    }
    for mut reader in readers {
        reader.wait()?;
    }
    drop(tracks);
    std::fs::remove_dir_all(&dir)?;
    Ok(json!({ "cameras": cameras, "publisher": published, "readers": read }))
}

fn read(cameras: usize, dir: &str) -> Result<(), Failure> {
    let (lost, began) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut threads = Vec::new();
    for camera in 0..cameras {
        let interrupt = Interrupt::new()?;
        let config = SubscriberConfig {
            runtime_dir: Some(dir.into()),
            max_frames: 0,
            ..SubscriberConfig::new(format!("cam{camera}"))
        };
        let subscriber = Subscriber::connect(config, None, &interrupt)?;
        let mut packets = subscriber.packets(0, Start::LatestKeyframe);
        let lost = lost.clone();
        threads.push(std::thread::spawn(move || {
            let (_subscriber, mut took) = (subscriber, Vec::new());
            while let Ok(Next::Item(packet)) = packets.next(&Wait::default()) {
                took.push(now_ns() - packet.published_ns);
                lost.fetch_add(packet.lost, Ordering::Relaxed);
            }
            took
        }));
    }
    println!("ready");
    std::io::stdout().flush()?;
    let (joined, cpu_before) = (began.elapsed(), cpu());
    let mut all = Vec::new();
    for thread in threads {
        all.extend(thread.join().map_err(|_| "a reader panicked")?);
    }
    let wall = (began.elapsed() - joined).as_secs_f64();
    let said = json!({
        "packets": all.len(), "lost": lost.load(Ordering::Relaxed), "us": quantiles(all),
        "cpu_percent": (cpu() - cpu_before) / wall * 100.0,
    });
    println!("{said}");
    Ok(())
}
