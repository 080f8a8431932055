//! What the processes do: a publisher or a subscriber of one system, told by [`Task`].

use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use gst::prelude::*;
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};

use crate::stamps::{Stamp, Stamps};
use crate::{Failure, WARM_UP};

/// Names that are looked for in a trace; nothing else touches them.
pub const BEGIN: &str = "/cuframes-bench/begin";
pub const END: &str = "/cuframes-bench/end";

pub struct Task {
    pub publishes: bool,
    /// Goes on until it is killed, and says when frames begin; otherwise it measures `frames` of them.
    pub lives: bool,
    pub pipeline: String,
    pub stamps: String,
    pub frames: u32,
    pub fps: u32,
}

impl Task {
    pub fn to_json(&self) -> String {
        json!({
            "publishes": self.publishes, "lives": self.lives, "pipeline": self.pipeline,
            "stamps": self.stamps, "frames": self.frames, "fps": self.fps,
        })
        .to_string()
    }

    fn of(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        Some(Self {
            publishes: value["publishes"].as_bool()?,
            lives: value["lives"].as_bool()?,
            pipeline: value["pipeline"].as_str()?.into(),
            stamps: value["stamps"].as_str()?.into(),
            frames: value["frames"].as_u64()? as u32,
            fps: value["fps"].as_u64()? as u32,
        })
    }
}

pub fn run(task: &str) -> Result<(), Failure> {
    let task = Task::of(task).ok_or("a role has a task")?;
    // No source of any system can hang the rest.
    let seconds = u64::from((task.frames + WARM_UP) / task.fps) + 30;
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(seconds));
        eprintln!("{} comes to no end", std::process::id());
        std::process::exit(1);
    });
    let limit = 1_000_000_000 / i64::from(task.fps) / 2;
    let stamps = Stamps::open(&task.stamps, limit)?;
    match (task.publishes, task.lives) {
        (true, false) => publish(&task, stamps),
        (true, true) => live_publisher(&task, stamps),
        (false, false) => subscribe(&task, stamps),
        (false, true) => live_subscriber(&task, stamps),
    }
}

pub fn now() -> i64 {
    gstcuframes::core::wake::now_ns()
}

/// What this process has used so far: CPU time in µs, and how often it was put to sleep or interrupted.
#[derive(Clone, Copy)]
struct Usage {
    cpu: f64,
    switches: i64,
}

impl Usage {
    /// Also tells a trace that what counts begins or ends here.
    fn at(mark: &str) -> Self {
        let _ = nix::unistd::access(mark, nix::unistd::AccessFlags::F_OK);
        let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID);
        let cpu = time.map_or(f64::NAN, |t| t.tv_sec() as f64 * 1e6 + t.tv_nsec() as f64 / 1e3);
        let switches = getrusage(UsageWho::RUSAGE_SELF)
            .map_or(0, |u| u.voluntary_context_switches() + u.involuntary_context_switches());
        Self { cpu, switches }
    }

    /// Since `start`, for each frame.
    fn per_frame(self, start: Self, frames: u64) -> (f64, f64) {
        let frames = frames as f64;
        ((self.cpu - start.cpu) / frames, (self.switches - start.switches) as f64 / frames)
    }
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

/// For each buffer at the sink pad of the element of that name.
fn each_buffer(
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

fn say(value: &Value) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

fn publish(task: &Task, stamps: Stamps) -> Result<(), Failure> {
    let pipeline = parse(&task.pipeline)?;
    let bus = pipeline.bus().ok_or("a pipeline has a bus")?;
    let (start, go) = (Arc::new(OnceLock::new()), Arc::new(AtomicBool::new(false)));
    let (begin, going) = (start.clone(), go.clone());
    let (count, end) = (AtomicU64::new(0), u64::from(WARM_UP + task.frames));
    let endless = stamps.are_drawn();
    each_buffer(&pipeline, "sink", move |info| {
        if !going.load(Ordering::Relaxed) {
            return;
        }
        let number = count.fetch_add(1, Ordering::Relaxed);
        let warm = number >= u64::from(WARM_UP);
        if warm {
            begin.get_or_init(|| Usage::at(BEGIN));
        }
        if let Some(buffer) = info.buffer_mut() {
            stamps.write(buffer, if warm { now() } else { 0 }, number);
        }
        if endless && number == end {
            let _ = bus.post(gst::message::Eos::new());
        }
    })?;
    pipeline.set_state(if endless { gst::State::Playing } else { gst::State::Paused })?;
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    go.store(true, Ordering::Relaxed);
    pipeline.set_state(gst::State::Playing)?;
    run_to_the_end(&pipeline)?;
    let end = Usage::at(END);
    let start = start.get().ok_or("too few frames")?;
    let (cpu, switches) = end.per_frame(*start, task.frames.into());
    let stats = pipeline.by_name("sink").filter(|s| s.has_property("stats"));
    let stats =
        stats.and_then(|s| s.property_value("stats").get::<Option<gst::Structure>>().ok()?);
    let copied = stats.and_then(|s| s.get::<u64>("copied").ok());
    if stamps.are_pixels() {
        assert_eq!(copied.unwrap_or(0), 0, "the publisher copies");
    }
    say(&json!({ "cpu": cpu, "switches": switches, "copied": copied }))?;
    // Those who joined later still count frames.
    if endless {
        std::io::stdin().read_line(&mut String::new())?;
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
    /// Frames of which it can't be said how long they took: see [`Stamps`].
    late: u64,
    /// Frames since the start, and of these what was wrong.
    frames: u64,
    torn: u64,
    repeated: u64,
    /// Numbers that were left out.
    gaps: u64,
    /// The stamp of the last frame, and whether its latency counts.
    last: (i64, bool),
    number: Option<u64>,
    /// Before the first frame that counts.
    start: Option<Usage>,
    /// In another memory than that of the system.
    wrong: bool,
}

impl Seen {
    fn add(&mut self, now: i64, stamp: Option<Stamp>, limit: i64) {
        let Some(stamp) = stamp else {
            self.wrong = true;
            return;
        };
        if stamp.time == 0 {
            return;
        }
        self.start.get_or_insert_with(|| Usage::at(BEGIN));
        self.frames += 1;
        self.torn += u64::from(stamp.torn);
        if let Some(number) = stamp.number {
            match self.number.map(|last| number.wrapping_sub(last)) {
                Some(0) => self.repeated += 1,
                Some(step) if step < 1 << 31 => self.gaps += step - 1,
                _ => {}
            }
            self.number = Some(number);
        }
        // No time crosses with what a camera drew.
        if stamp.time < 0 {
            return;
        }
        // Two frames in the time of one: the first was older than its stamp.
        if limit < i64::MAX && self.last == (stamp.time, true) {
            self.latencies.pop();
            self.late += 1;
        }
        let counts = now - stamp.time < limit;
        if counts {
            self.latencies.push(now - stamp.time);
        } else {
            self.late += 1;
        }
        self.last = (stamp.time, counts);
    }
}

fn subscribe(task: &Task, stamps: Stamps) -> Result<(), Failure> {
    let pipeline = parse(&task.pipeline)?;
    let bus = pipeline.bus().ok_or("a pipeline has a bus")?;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (into, count) = (seen.clone(), AtomicU64::new(0));
    let (drawn, last) = (stamps.are_drawn(), u64::from(WARM_UP + task.frames));
    let pad = pipeline.by_name("out").and_then(|e| e.static_pad("sink")).ok_or("no pad")?;
    each_buffer(&pipeline, "out", move |info| {
        let now = now();
        let number = count.fetch_add(1, Ordering::Relaxed);
        if drawn && (number < u64::from(WARM_UP) || number >= last) {
            return;
        }
        if let (Some(buffer), Ok(mut seen)) = (info.buffer(), into.lock()) {
            seen.add(now, stamps.read(buffer, &pad), stamps.limit());
        }
        if drawn && number + 1 == last {
            let _ = bus.post(gst::message::Eos::new());
        }
    })?;
    pipeline.set_state(gst::State::Playing)?;
    println!("playing");
    // Some sources know no end of the stream, but all an end of the publisher.
    let _ = run_to_the_end(&pipeline);
    let end = Usage::at(END);
    let line = {
        let seen = seen.lock().map_err(|_| "a probe panicked")?;
        if seen.wrong {
            return Err("frames came in the wrong memory".into());
        }
        let (cpu, switches) = end.per_frame(seen.start.ok_or("no frame came")?, seen.frames);
        let lost = match stamps.are_pixels() {
            // Also what was missed before the first and after the last.
            true => u64::from(task.frames).checked_sub(seen.frames - seen.repeated),
            false => seen.number.map(|_| seen.gaps),
        };
        let known = |n: u64| seen.number.map(|_| n);
        json!({
            "cpu": cpu, "switches": switches, "frames": seen.frames, "late": seen.late,
            "lost": lost, "repeated": known(seen.repeated), "torn": known(seen.torn),
            "latencies": seen.latencies,
        })
    };
    say(&line)?;
    pipeline.set_state(gst::State::Null)?;
    Ok(())
}

fn live_publisher(task: &Task, stamps: Stamps) -> Result<(), Failure> {
    let pipeline = parse(&task.pipeline)?;
    let count = AtomicU64::new(0);
    each_buffer(&pipeline, "sink", move |info| {
        let (number, now) = (count.fetch_add(1, Ordering::Relaxed), now());
        if let Some(buffer) = info.buffer_mut() {
            stamps.write(buffer, now, number);
        }
        if number == 0 {
            let _ = say(&json!({ "time": now }));
        }
    })?;
    pipeline.set_state(gst::State::Playing)?;
    run_to_the_end(&pipeline)
}

/// Says when the first frame of each publisher came. A source that gives up is started again at once, as
/// an application would.
fn live_subscriber(task: &Task, stamps: Stamps) -> Result<(), Failure> {
    let (publisher, began) = (Arc::new(Mutex::new(None)), now());
    let restarts = Arc::new(AtomicU64::new(0));
    loop {
        let pipeline = parse(&task.pipeline)?;
        let pad = pipeline.by_name("out").and_then(|e| e.static_pad("sink")).ok_or("no pad")?;
        let (known, counted) = (publisher.clone(), restarts.clone());
        each_buffer(&pipeline, "out", move |info| {
            let now = now();
            let stamp = info.buffer().and_then(|b| stamps.read(b, &pad));
            if let (Some(stamp), Ok(mut known)) = (stamp, known.lock())
                && *known != Some(stamp.publisher)
            {
                *known = Some(stamp.publisher);
                let restarts = counted.load(Ordering::Relaxed);
                let _ = say(&json!({ "time": now, "began": began, "restarts": restarts }));
            }
        })?;
        if pipeline.set_state(gst::State::Playing).is_ok() {
            let _ = run_to_the_end(&pipeline);
        }
        pipeline.set_state(gst::State::Null)?;
        restarts.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The next line that a process says, as JSON.
pub fn heard(from: &mut impl BufRead) -> Result<Value, Failure> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Err("a process ended before it had anything to say".into());
    }
    Ok(serde_json::from_str(&line)?)
}
