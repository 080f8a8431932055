// SPDX-License-Identifier: LGPL-2.1-or-later
//! The worker processes: a publisher or a subscriber of one system, as a [`Task`] describes.

use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use gst::prelude::*;
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};

use crate::observations::Observations;
use crate::steps::Listener;
use crate::timestamps::{Place, Stamps};
use crate::{Failure, WARM_UP, restarts, source};

/// Paths that mark a trace. Nothing else accesses them.
pub const BEGIN: &str = "/cuframes-bench/begin";
pub const END: &str = "/cuframes-bench/end";

pub struct Task {
    pub publishes: bool,
    /// Runs until it is killed, and reports when frames begin. Otherwise it measures `frames` frames.
    pub lives: bool,
    /// Takes the times of each frame's steps.
    pub steps: bool,
    /// A publisher that publishes nothing.
    pub silent: bool,
    /// The cameras of the process, usually one.
    pub cameras: Vec<Camera>,
    /// Where the stamps of frames are.
    pub place: Place,
    /// For each camera.
    pub frames: u32,
    /// 0 means full speed.
    pub fps: u32,
    /// Seconds that other processes may take to start.
    pub patience: u32,
}

/// The part of a task for one camera. Its index is appended to the names of its elements.
pub struct Camera {
    pub pipeline: String,
    /// The page with the times of its frames; empty without one.
    pub page: String,
}

const PLACES: [(&str, Place); 3] =
    [("pixels", Place::Pixels), ("drawn", Place::Drawn), ("device", Place::Device)];

impl Task {
    pub fn to_json(&self) -> String {
        let place = PLACES.iter().find(|p| p.1 == self.place).map(|p| p.0);
        let cameras: Vec<_> = self.cameras.iter().map(|c| [&c.pipeline, &c.page]).collect();
        json!({
            "publishes": self.publishes, "lives": self.lives, "steps": self.steps,
            "silent": self.silent, "cameras": cameras, "place": place,
            "frames": self.frames, "fps": self.fps, "patience": self.patience,
        })
        .to_string()
    }

    fn of(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let number = |name: &str| Some(value[name].as_u64()? as u32);
        let camera = |c: &Value| {
            Some(Camera { pipeline: c[0].as_str()?.into(), page: c[1].as_str()?.into() })
        };
        Some(Self {
            publishes: value["publishes"].as_bool()?,
            lives: value["lives"].as_bool()?,
            steps: value["steps"].as_bool()?,
            silent: value["silent"].as_bool()?,
            cameras: value["cameras"].as_array()?.iter().map(camera).collect::<Option<_>>()?,
            place: PLACES.iter().find(|p| value["place"] == p.0)?.1,
            frames: number("frames")?,
            fps: number("fps")?,
            patience: number("patience")?,
        })
    }

    /// Returns whether frames start before all processes are ready, and continue until all have counted
    /// theirs. This holds for cameras, and for memory with which processes take long to start.
    pub fn is_endless(&self) -> bool {
        let device = self.place == Place::Device && self.fps > 0;
        !self.silent && (device || self.place == Place::Drawn)
    }

    fn pace(&self) -> u32 {
        if self.fps == 0 { 30 } else { self.fps }
    }

    /// For each camera.
    pub fn stamps(&self) -> Result<Vec<Stamps>, Failure> {
        let limit = 1_000_000_000_i64.checked_div(self.fps.into()).unwrap_or(0) / 2;
        let open = |Camera { pipeline, page }: &Camera| {
            Stamps::open(self.place, page, limit, pipeline.contains("cuframessrc"))
        };
        self.cameras.iter().map(open).collect()
    }

    /// Returns one pipeline for all cameras.
    pub fn pipeline(&self) -> Result<gst::Pipeline, Failure> {
        let all: Vec<_> = self.cameras.iter().map(|c| c.pipeline.as_str()).collect();
        let parsed = gst::parse::launch(&all.join(" "))?;
        parsed.downcast::<gst::Pipeline>().map_err(|_| "not a pipeline".into())
    }
}

pub fn run(task: &str) -> Result<(), Failure> {
    let task = Task::of(task).ok_or("a role has a task")?;
    let steps = task.steps.then(Listener::start);
    gst::init()?;
    gstcuframes::plugin_register_static()?;
    source::register()?;
    // A source that hangs does not block the other processes.
    let seconds = u64::from((task.frames + WARM_UP) / task.pace() + task.patience);
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(seconds));
        eprintln!("{} comes to no end", std::process::id());
        std::process::exit(1);
    });
    match (task.publishes, task.lives) {
        (true, false) => publish(&task, steps),
        (true, true) => restarts::publisher(&task),
        (false, false) => subscribe(&task, steps),
        (false, true) => restarts::subscriber(&task),
    }
}

pub fn now() -> i64 {
    cuframes::sync::clock::now_ns()
}

/// Resources that this process has used so far: CPU time in µs, and context switches.
#[derive(Clone, Copy)]
pub struct Usage {
    time: i64,
    cpu: f64,
    switches: i64,
}

impl Usage {
    /// Takes the usage. Also marks in a trace where the measurement begins or ends.
    pub fn at(mark: &str) -> Self {
        let _ = nix::unistd::access(mark, nix::unistd::AccessFlags::F_OK);
        let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID);
        let cpu = time.map_or(f64::NAN, |t| t.tv_sec() as f64 * 1e6 + t.tv_nsec() as f64 / 1e3);
        let switches = getrusage(UsageWho::RUSAGE_SELF)
            .map_or(0, |u| u.voluntary_context_switches() + u.involuntary_context_switches());
        Self { time: now(), cpu, switches }
    }

    /// Returns the usage since `start`, per frame.
    fn per_frame(self, start: Self, frames: u64) -> (f64, f64) {
        let frames = frames as f64;
        ((self.cpu - start.cpu) / frames, (self.switches - start.switches) as f64 / frames)
    }
}

/// Waits for the end of the pipeline, or for this time.
pub fn run_until(pipeline: &gst::Pipeline, time: Option<gst::ClockTime>) -> Result<(), Failure> {
    let bus = pipeline.bus().ok_or("a pipeline has a bus")?;
    let types = [gst::MessageType::Eos, gst::MessageType::Error];
    let message = bus.timed_pop_filtered(time, &types);
    match message.as_ref().map(|m| m.view()) {
        Some(gst::MessageView::Error(e)) => Err(e.error().into()),
        _ => Ok(()),
    }
}

/// Calls a function for each buffer at the sink pad of an element.
pub fn each_buffer(
    pipeline: &gst::Pipeline,
    element: &str,
    does: impl Fn(&mut gst::PadProbeInfo) + Send + Sync + 'static,
) -> Result<(), Failure> {
    let pad = pipeline.by_name(element).and_then(|e| e.static_pad("sink")).ok_or("no pad")?;
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        does(info);
        gst::PadProbeReturn::Ok
    });
    Ok(())
}

pub fn print_json(value: &Value) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

fn publish(task: &Task, steps: Option<Listener>) -> Result<(), Failure> {
    let pipeline = task.pipeline()?;
    let all_stamps = task.stamps()?;
    let cameras = all_stamps.len() as u64;
    let (start, go) = (Arc::new(OnceLock::new()), Arc::new(AtomicBool::new(false)));
    let flat_out = task.fps == 0;
    // Frames of all cameras are counted together.
    let warm_up = u64::from(WARM_UP) * cameras;
    let end = if flat_out { u64::MAX } else { u64::from(WARM_UP + task.frames) * cameras };
    let end = Arc::new(AtomicU64::new(end));
    let endless = task.is_endless();
    // The time of the last frame that counts, and the number of frames.
    let last = Arc::new((AtomicI64::new(0), AtomicU64::new(0)));
    let silent = Arc::new(AtomicU64::new(cameras));
    for (n, stamps) in all_stamps.iter().copied().enumerate() {
        let bus = pipeline.bus().ok_or("a pipeline has a bus")?;
        let (begin, going) = (start.clone(), go.clone());
        let (latest, silent) = (last.clone(), silent.clone());
        let (first, own, end) = (AtomicBool::new(true), AtomicU64::new(0), end.clone());
        each_buffer(&pipeline, &format!("sink{n}"), move |info| {
            let is_first = endless && first.swap(false, Ordering::Relaxed);
            if is_first && silent.fetch_sub(1, Ordering::Relaxed) == 1 {
                println!("ready");
            }
            let counts = going.load(Ordering::Relaxed);
            let of_all = if counts { latest.1.fetch_add(1, Ordering::Relaxed) } else { 0 };
            let number = if counts { own.fetch_add(1, Ordering::Relaxed) } else { 0 };
            let warm = of_all >= warm_up;
            if warm {
                begin.get_or_init(|| Usage::at(BEGIN));
            }
            // Frames before and after the measurement have no time.
            let timed = endless || warm && of_all < end.load(Ordering::Relaxed);
            if let Some(buffer) = info.buffer_mut().filter(|_| counts || endless) {
                stamps.write(buffer, if timed { now() } else { 0 }, number);
            }
            if of_all < end.load(Ordering::Relaxed) {
                latest.0.store(now(), Ordering::Relaxed);
            }
            if of_all == end.load(Ordering::Relaxed) {
                let _ = bus.post(gst::message::Eos::new());
            }
        })?;
    }
    pipeline.set_state(if endless { gst::State::Playing } else { gst::State::Paused })?;
    if !endless {
        println!("ready");
    }
    std::io::stdin().read_line(&mut String::new())?;
    go.store(true, Ordering::Relaxed);
    pipeline.set_state(gst::State::Playing)?;
    if flat_out {
        // For as long as at the usual rate.
        let time = gst::ClockTime::from_seconds(task.frames.into()) / u64::from(task.pace());
        run_until(&pipeline, Some(time))?;
        end.store(0, Ordering::Relaxed);
    } else {
        run_until(&pipeline, None)?;
    }
    let end = Usage::at(END);
    let start = start.get().ok_or("too few frames")?;
    let frames = match flat_out {
        true => last.1.load(Ordering::Relaxed).saturating_sub(warm_up),
        false => u64::from(task.frames) * cameras,
    };
    let (cpu, switches) = end.per_frame(*start, frames);
    let took = last.0.load(Ordering::Relaxed) - start.time;
    let rate = frames.saturating_sub(1) as f64 * 1e9 / took as f64 / cameras as f64;
    let stats: Vec<gst::Structure> = (0..cameras)
        .filter_map(|n| pipeline.by_name(&format!("sink{n}")).filter(|s| s.has_property("stats")))
        .filter_map(|s| s.property_value("stats").get().ok())
        .collect();
    let count = |name| stats.iter().filter_map(|s| s.get::<u64>(name).ok()).reduce(|a, b| a + b);
    if task.place == Place::Pixels {
        assert_eq!(count("copied").unwrap_or(0), 0, "the publisher copies");
    }
    print_json(&json!({
        "cpu": cpu, "switches": switches, "rate": rate, "dropped": count("dropped"),
        "steps": steps.map(|s| s.take()),
    }))?;
    linger(&pipeline)
}

fn subscribe(task: &Task, steps: Option<Listener>) -> Result<(), Failure> {
    let pipeline = task.pipeline()?;
    let all_stamps = task.stamps()?;
    let cameras = all_stamps.len() as u64;
    let (endless, count) = (task.is_endless(), Arc::new(AtomicU64::new(0)));
    // Frames of all cameras are counted together.
    let warm_up = u64::from(WARM_UP) * cameras;
    let last = u64::from(WARM_UP + task.frames) * cameras;
    let (silent, going) = (Arc::new(AtomicU64::new(cameras)), Arc::new(AtomicBool::new(!endless)));
    if let Some(listener) = &steps {
        listener.at_source(&pipeline.by_name("src0").ok_or("no source")?);
    }
    // Cameras whose measurement has not ended.
    let open = Arc::new(AtomicU64::new(cameras));
    let mut seen = Vec::new();
    for (n, stamps) in all_stamps.iter().copied().enumerate() {
        let bus = pipeline.bus().ok_or("a pipeline has a bus")?;
        let into = Arc::new(Mutex::new(Observations::default()));
        seen.push(into.clone());
        let (count, silent, going) = (count.clone(), silent.clone(), going.clone());
        let (first, listener) = (AtomicBool::new(true), steps.clone());
        let (over, open) = (AtomicBool::new(false), open.clone());
        let out = format!("out{n}");
        let pad = pipeline.by_name(&out).and_then(|e| e.static_pad("sink")).ok_or("no pad")?;
        each_buffer(&pipeline, &out, move |info| {
            if let Some(buffer) = info.buffer() {
                stamps.wait(buffer);
            }
            let now = now();
            let is_first = endless && first.swap(false, Ordering::Relaxed);
            if is_first && silent.fetch_sub(1, Ordering::Relaxed) == 1 {
                println!("playing");
            }
            if !going.load(Ordering::Relaxed) {
                return;
            }
            let number = count.fetch_add(1, Ordering::Relaxed);
            if endless && (number < warm_up || number >= last) {
                return;
            }
            let mut is_last = false;
            if let (Some(buffer), Ok(mut seen)) = (info.buffer(), into.lock()) {
                let stamp = stamps.read(buffer, &pad);
                let time = stamp.as_ref().map_or(-1, |s| s.time);
                if time == 0 && seen.start.is_some() && !over.swap(true, Ordering::Relaxed) {
                    is_last = open.fetch_sub(1, Ordering::Relaxed) == 1;
                }
                if seen.add(now, stamp, stamps.limit())
                    && let Some(listener) = &listener
                {
                    listener.done(now, time);
                }
            }
            if endless && number + 1 == last || is_last {
                let _ = bus.post(gst::message::Eos::new());
            }
        })?;
    }
    pipeline.set_state(gst::State::Playing)?;
    if endless {
        std::thread::spawn(move || {
            let _ = std::io::stdin().read_line(&mut String::new());
            going.store(true, Ordering::Relaxed);
        });
    } else {
        println!("playing");
    }
    // All processes stay until all have counted, so that any earlier end is an error.
    run_until(&pipeline, None)?;
    let end = Usage::at(END);
    let line = {
        let seen: Vec<_> = seen.iter().map(|s| s.lock().expect("no probe panics")).collect();
        if seen.iter().any(|s| s.wrong) {
            return Err("frames came in the wrong memory".into());
        }
        let sum = |of: fn(&Observations) -> u64| seen.iter().map(|s| of(s)).sum::<u64>();
        let frames = sum(|s| s.frames);
        let starts = seen.iter().filter_map(|s| s.start);
        let start = starts.min_by_key(|start| start.time).ok_or("no frame came")?;
        let (cpu, switches) = end.per_frame(start, frames);
        let known = |n: u64| seen.iter().any(|s| s.number.is_some()).then_some(n);
        let repeated = sum(|s| s.repeated);
        let lost = match task.place == Place::Pixels && task.fps > 0 {
            // This includes frames before the first and after the last.
            true => (u64::from(task.frames) * cameras).checked_sub(frames - repeated),
            false => known(sum(|s| s.gaps)),
        };
        let rate = seen.iter().filter_map(|s| s.rate()).sum::<f64>() / cameras as f64;
        let latencies: Vec<i64> = seen.iter().flat_map(|s| s.latencies.iter().copied()).collect();
        json!({
            "cpu": cpu, "switches": switches, "frames": frames, "late": sum(|s| s.late),
            "lost": lost, "repeated": known(repeated), "torn": known(sum(|s| s.torn)),
            "rate": rate, "latencies": latencies, "steps": steps.map(|s| s.take()),
        })
    };
    print_json(&line)?;
    // The line is not part of the system, whose memory is measured next.
    drop(line);
    linger(&pipeline)
}

/// Keeps everything until all processes have counted their frames and were measured.
fn linger(pipeline: &gst::Pipeline) -> Result<(), Failure> {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    pipeline.set_state(gst::State::Null)?;
    Ok(())
}

/// Reads the next line of a process as JSON.
pub fn read_json(from: &mut impl BufRead) -> Result<Value, Failure> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Err("a process ended before it had anything to say".into());
    }
    Ok(serde_json::from_str(&line)?)
}
