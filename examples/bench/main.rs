//! Hand-over between processes, measured the same way for every system: `bench [--frames N] [--fps N]
//! [--size WxH] [--subscribers N[,N…]] [--rounds N] [--lives N] [--no-trace] [--out FOLDER] [SYSTEM…]`.
//!
//! A publisher notes the time of each frame at the sink's pad, subscribers read it at the element behind
//! the source: from the frame's own pixels, or with frames in device memory from a page that they
//! share (see [`stamps::Stamps`]). All are processes of their own; the systems are measured one after
//! another in turns, so that what else the machine does hits all alike. What a machine lacks is skipped.
//!
//! Behind the turns, which are not disturbed by it: `--lives` subscribers that join a running publisher,
//! which is then killed and replaced; and one turn of each system under strace, where that exists.
//!
//! Results go to the terminal, and to FOLDER as results.json and pictures.

#[path = "../support/stamp.rs"]
mod drawn;
mod figures;
mod plots;
mod process;
mod report;
mod role;
mod stamps;
mod systems;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figures::{Calls, Life, Round};
use process::Process;
use report::Report;
use role::{Task, heard};
use systems::{SYSTEMS, Source, System, UPLOAD};

type Failure = Box<dyn std::error::Error>;

/// Frames before those that are measured: connections, mappings, first allocations.
pub const WARM_UP: u32 = 30;

pub struct Options {
    pub frames: u32,
    pub fps: u32,
    pub size: String,
    pub subscribers: Vec<u32>,
    pub rounds: u32,
    pub lives: u32,
    pub trace: bool,
    pub out: PathBuf,
    pub systems: Vec<&'static System>,
}

impl Options {
    fn parse() -> Result<Self, Failure> {
        let mut options = Self {
            frames: 300,
            fps: 30,
            size: "1920x1080".into(),
            subscribers: vec![1],
            rounds: 3,
            lives: 3,
            trace: true,
            out: "out/bench".into(),
            systems: Vec::new(),
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--frames" => options.frames = value()?.parse()?,
                "--fps" => options.fps = value()?.parse()?,
                "--size" => options.size = value()?,
                "--subscribers" => {
                    options.subscribers =
                        value()?.split(',').map(str::parse).collect::<Result<_, _>>()?;
                }
                "--rounds" => options.rounds = value()?.parse()?,
                "--lives" => options.lives = value()?.parse()?,
                "--no-trace" => options.trace = false,
                "--out" => options.out = value()?.into(),
                name => options.systems.push(
                    System::find(name).ok_or(format!("there is no option or system '{name}'"))?,
                ),
            }
        }
        if options.systems.is_empty() {
            options.systems = SYSTEMS.iter().collect();
        }
        if options.fps == 0 || options.frames == 0 || options.rounds == 0 {
            return Err("frames, their rate and rounds are at least 1".into());
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
    if let Ok(task) = std::env::var("CUFRAMES_BENCH_ROLE") {
        return role::run(&task);
    }
    let report = measure(Options::parse()?)?;
    report.print();
    report.write()
}

fn measure(options: Options) -> Result<Report, Failure> {
    let mut report = Report { options, results: BTreeMap::new(), excuses: BTreeMap::new() };
    let options = &report.options;
    for system in &options.systems {
        if let Some(missing) = system.missing() {
            report.excuses.insert(system.name, format!("not on this machine: {missing}"));
        }
    }
    if options.trace && !process::can_trace() {
        report
            .excuses
            .insert("system calls", "not on this machine: no strace that may trace".into());
    }
    let traces = options.trace && !report.excuses.contains_key("system calls");
    let turns = (0..options.rounds).map(|_| Turn::Round);
    let lives = (0..options.lives).map(|_| Turn::Life);
    for turn in turns.chain(lives).chain(traces.then_some(Turn::Trace)) {
        for &count in &options.subscribers {
            // These do not depend on how many others there are.
            if turn != Turn::Round && count != options.subscribers[0] {
                continue;
            }
            for system in &options.systems {
                if report.excuses.contains_key(system.name) {
                    continue;
                }
                // Nobody hands anything over to nobody; what the publisher uses is as ever.
                let count = if system.subscriber.is_empty() { 0 } else { count };
                if count == 0 && turn == Turn::Life {
                    continue;
                }
                eprintln!("{turn:?}: {} with {count} subscribers", system.name);
                let site = Site::new(options, system)?;
                let result = report.results.entry((system.name, count)).or_default();
                let done = match turn {
                    Turn::Round => site.round(count, None).map(|r| result.rounds.push(r)),
                    Turn::Life => site.life().map(|l| result.lives.push(l)),
                    Turn::Trace => site.trace().map(|c| result.calls = Some(c)),
                };
                if let Err(e) = done {
                    report.excuses.insert(system.name, format!("failed in a {turn:?}: {e}"));
                }
            }
        }
    }
    Ok(report)
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Turn {
    Round,
    Life,
    Trace,
}

/// Where one turn of a system runs.
struct Site<'a> {
    options: &'a Options,
    system: &'a System,
    dir: PathBuf,
    caps: String,
    camera: Option<(Process, String)>,
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl<'a> Site<'a> {
    fn new(options: &'a Options, system: &'a System) -> Result<Self, Failure> {
        let dir = std::env::temp_dir().join(format!("cuframes-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let mut site = Self { options, system, dir, caps: options.caps()?, camera: None };
        if system.source == Source::Camera {
            let fps = options.fps.to_string();
            let words = ["--port", "0", "--size", &options.size, "--fps", &fps].map(str::to_owned);
            let mut camera = Process::camera(&words)?;
            let mut line = String::new();
            std::io::BufRead::read_line(&mut camera.out, &mut line)?;
            let url = line.trim().strip_prefix("ready ").ok_or("the camera does not start")?;
            let url = url.to_owned();
            site.camera = Some((camera, url));
        }
        Ok(site)
    }

    fn place(&self, text: &str) -> String {
        let url = self.camera.as_ref().map_or("", |(_, url)| url);
        let text = text.replace("SITE", &self.dir.to_string_lossy()).replace("CAPS", &self.caps);
        text.replace("URL", url)
    }

    fn task(&self, publishes: bool, lives: bool) -> Task {
        let System { source, sink, subscriber, .. } = self.system;
        let (caps, options) = (&self.caps, self.options);
        let end = if lives { -1 } else { i64::from(options.frames + WARM_UP) };
        let made = format!("videotestsrc is-live=true num-buffers={end} pattern=black ! {caps} ! ");
        // Queue-free: the thread that makes a frame hands it over, as a decoder's does.
        let before = match source {
            Source::Made => made,
            Source::Uploaded => made + UPLOAD,
            Source::Camera => String::new(),
        };
        let pipeline = match publishes {
            true => before + &self.place(sink),
            false => format!("{} ! fakesink name=out sync=false", self.place(subscriber)),
        };
        let stamps = match source {
            Source::Made => "pixels".into(),
            Source::Uploaded => self.place("SITE/stamps"),
            Source::Camera => "drawn".into(),
        };
        Task { publishes, lives, pipeline, stamps, frames: options.frames, fps: options.fps }
    }

    /// `trace` is a folder for what strace writes.
    fn round(&self, count: u32, trace: Option<&Path>) -> Result<Round, Failure> {
        let mut publisher = None;
        if self.system.publishes() {
            let file = trace.map(|t| t.join("publisher"));
            let mut one = Process::role(&self.task(true, false), file.as_deref())?;
            // It says when its sink is there to be connected to.
            hear_word(&mut one, "ready")?;
            publisher = Some(one);
        }
        let mut subscribers = Vec::new();
        for n in 0..count {
            let file = trace.filter(|_| n == 0).map(|t| t.join("subscriber"));
            subscribers.push(Process::role(&self.task(false, false), file.as_deref())?);
        }
        for one in &mut subscribers {
            hear_word(one, "playing")?;
        }
        publisher.as_mut().map_or(Ok(()), Process::go)?;
        let mut round = Round::default();
        if trace.is_none() {
            let half = (WARM_UP + self.options.frames / 2) * 1000 / self.options.fps;
            std::thread::sleep(Duration::from_millis(half.into()));
            round.memory = publisher.iter().chain(&subscribers).map(Process::memory).sum();
            round.shared = publisher.as_ref().and_then(Process::shared_files);
        }
        let (mut cpu, mut switches) = (0.0, 0.0);
        let mut wrong = [Some(0); 3];
        for one in &mut subscribers {
            let said = heard(&mut one.out)?;
            cpu += said["cpu"].as_f64().ok_or("no CPU time")?;
            switches += said["switches"].as_f64().ok_or("no switches")?;
            round.frames += said["frames"].as_u64().ok_or("no frames")?;
            round.late += said["late"].as_u64().ok_or("no count")?;
            for (sum, name) in wrong.iter_mut().zip(["lost", "repeated", "torn"]) {
                *sum = sum.zip(said[name].as_u64()).map(|(a, b)| a + b);
            }
            let latencies = said["latencies"].as_array().ok_or("no latencies")?;
            round.latencies.extend(latencies.iter().filter_map(|l| Some(l.as_f64()? / 1e3)));
        }
        if let Some(publisher) = &mut publisher {
            let said = heard(&mut publisher.out)?;
            round.publisher = said["cpu"].as_f64().zip(said["switches"].as_f64());
        }
        for one in subscribers.iter_mut().chain(&mut publisher) {
            one.wait()?;
        }
        round.latencies.sort_by(f64::total_cmp);
        if count > 0 {
            [round.lost, round.repeated, round.torn] = wrong;
            round.subscriber = Some((cpu / f64::from(count), switches / f64::from(count)));
        }
        Ok(round)
    }

    fn life(&self) -> Result<Life, Failure> {
        let publisher = || -> Result<_, Failure> {
            let mut publisher = Process::role(&self.task(true, true), None)?;
            let began = heard(&mut publisher.out)?["time"].as_i64().ok_or("no time")?;
            Ok((publisher, began))
        };
        let mut old = if self.system.publishes() { Some(publisher()?) } else { None };
        let mut subscriber = Process::role(&self.task(false, true), None)?;
        let ms = |from: i64, to: i64| (to - from) as f64 / 1e6;
        let said = heard(&mut subscriber.out)?;
        let time = |name: &str| said[name].as_i64().ok_or("no time");
        let mut life =
            Life { first: ms(time("began")?, time("time")?), recovery: None, restarts: 0 };
        // A camera that is shared is away as long as it takes to decode again, whatever the system.
        if let Some((old, _)) = old.as_mut().filter(|_| self.system.source != Source::Camera) {
            std::thread::sleep(Duration::from_millis(200));
            old.kill();
            // A name that is taken keeps some sinks from starting; who restarts them removes it.
            for name in ["unixfd", "shm", "cudaipc"] {
                let _ = std::fs::remove_file(self.dir.join(name));
            }
            let (_new, began) = publisher()?;
            let said = heard(&mut subscriber.out)?;
            life.recovery = Some(ms(began, said["time"].as_i64().ok_or("no time")?));
            life.restarts = said["restarts"].as_u64().unwrap_or(0);
        }
        Ok(life)
    }

    /// System calls for a frame, with one subscriber.
    fn trace(&self) -> Result<(Calls, Calls), Failure> {
        let subscribers = u32::from(!self.system.subscriber.is_empty());
        self.round(subscribers, Some(&self.dir))?;
        let of = |name: &str| -> Result<Calls, Failure> {
            let path = self.dir.join(name);
            if !path.exists() {
                return Ok(Calls::new());
            }
            let frames = f64::from(self.options.frames);
            Ok(process::calls(&path)?.into_iter().map(|(n, c)| (n, c as f64 / frames)).collect())
        };
        Ok((of("publisher")?, of("subscriber")?))
    }
}

fn hear_word(from: &mut Process, word: &str) -> Result<(), Failure> {
    let mut line = String::new();
    std::io::BufRead::read_line(&mut from.out, &mut line)?;
    match line.trim() == word {
        true => Ok(()),
        false => Err(format!("a process did not say that it is {word}").into()),
    }
}
