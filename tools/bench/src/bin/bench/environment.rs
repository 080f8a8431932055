// SPDX-License-Identifier: LGPL-2.1-or-later
//! The environment of one turn: its folder, cameras and processes, from their start to their reports.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Failure;
use crate::options::{Case, Options};
use crate::process::{self, Process};
use crate::results::{Calls, Idle, Life, Round};
use crate::steps;
use crate::systems::{Source, System, UPLOAD};
use crate::timestamps::Place;
use crate::worker::{Camera, Task, read_json};

pub struct Environment<'a> {
    options: &'a Options,
    case: Case,
    system: &'a System,
    dir: PathBuf,
    /// The cameras, if the system has any.
    cameras: Vec<testing::Camera>,
}

impl Drop for Environment<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// What a turn measures besides latency.
#[derive(Clone, Copy, PartialEq)]
pub enum Probe<'a> {
    None,
    Steps,
    /// System calls. strace writes into this folder.
    Calls(&'a Path),
}

impl<'a> Environment<'a> {
    pub fn new(options: &'a Options, case: Case, system: &'a System) -> Result<Self, Failure> {
        let dir = std::env::temp_dir().join(format!("cuframes-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let mut environment = Self { options, case, system, dir, cameras: Vec::new() };
        let words = match &options.file {
            Some(file) => vec!["--file".into(), file.display().to_string()],
            None => {
                let (size, fps) = (case.picture.size(), case.picture.fps.to_string());
                let codec = options.codec.clone();
                vec!["--size".into(), size, "--fps".into(), fps, "--codec".into(), codec]
            }
        };
        if system.has_camera() {
            environment.cameras = testing::Camera::start_many(case.cameras as usize, &words);
        }
        Ok(environment)
    }

    /// Returns the task of a process for these cameras.
    fn task(
        &self,
        cameras: Range<u32>,
        publishes: bool,
        lives: bool,
        steps: bool,
    ) -> Result<Task, Failure> {
        let fps = self.case.picture.fps;
        let place = match self.system.source {
            Source::Made => Place::Pixels,
            Source::Uploaded => Place::Device,
            Source::Camera => Place::Drawn,
        };
        let all = cameras.enumerate().map(|(n, camera)| self.branch(n, camera, publishes));
        Ok(Task {
            publishes,
            lives,
            steps,
            silent: false,
            cameras: all.collect::<Result<_, _>>()?,
            place,
            frames: self.options.frames,
            fps,
            patience: 30 + self.options.settle + self.case.cameras * (1 + self.case.subscribers),
        })
    }

    /// Returns the part of a task for a camera, which is the process's `n`th.
    fn branch(&self, n: usize, camera: u32, publishes: bool) -> Result<Camera, Failure> {
        let System { source, sink, subscriber, .. } = self.system;
        let (caps, fps) = (self.case.picture.caps(), self.case.picture.fps);
        let dir = self.dir.join(camera.to_string());
        std::fs::create_dir_all(&dir)?;
        let codec = &self.options.codec;
        let url = self.cameras.get(camera as usize).map_or("", |camera| &camera.url);
        let named = |text: &str| {
            let names = ["name=sink", "name=src", "name=out"];
            names.iter().fold(text.to_owned(), |t, name| t.replace(name, &format!("{name}{n}")))
        };
        let place = |text: &str| {
            let text = text.replace("SITE", &dir.to_string_lossy()).replace("CAPS", &caps);
            let packed = if codec == "h264" { "avc" } else { "hvc1" };
            text.replace("URL", url).replace("CODEC", codec).replace("PACKED", packed)
        };
        let made = match fps {
            0 => format!("benchsrc ! {caps} ! "),
            // Cameras of one process are not synchronized either.
            _ => {
                let phase = n as u64 * 1_000_000_000 / u64::from(fps * self.case.cameras);
                format!(
                    "videotestsrc is-live=true timestamp-offset={phase} pattern=black ! {caps} ! "
                )
            }
        };
        // Without a queue: the thread that creates a frame hands it over, as a decoder's does.
        let before = match source {
            Source::Made => made,
            Source::Uploaded => made + UPLOAD,
            Source::Camera => String::new(),
        };
        let pipeline = match publishes {
            true => before + &place(sink),
            false if self.options.behind.is_empty() => {
                place(subscriber) + " ! fakesink name=out sync=false"
            }
            false => {
                let behind = &self.options.behind;
                place(subscriber) + " ! identity name=out ! " + behind + " ! fakesink sync=false"
            }
        };
        let has_page = match source {
            Source::Made => false,
            Source::Uploaded => true,
            Source::Camera => self.system.publishes(),
        };
        let page = if has_page { place("SITE/stamps") } else { String::new() };
        Ok(Camera { pipeline: named(&pipeline), page })
    }

    pub fn round(&self, probe: Probe) -> Result<Round, Failure> {
        let Case { cameras, subscribers: count, picture, .. } = self.case;
        let steps = probe == Probe::Steps;
        let file = |name| match probe {
            Probe::Calls(folder) => Some(folder.join(name)),
            _ => None,
        };
        let vram = process::vram();
        // Publishers have a sink to connect to. Subscribers wait, or have received a frame of a camera.
        let (mut publishers, mut subscribers) = (Vec::new(), Vec::new());
        // Cameras of each process: all of them, or one.
        let of_one = if self.system.together { cameras } else { 1 };
        let groups = || (0..cameras).step_by(of_one as usize).map(|n| n..n + of_one);
        for group in groups().filter(|_| self.system.publishes()) {
            let last = group.end == cameras;
            let task = self.task(group, true, false, steps)?;
            publishers.push(Process::role(&task, file("publisher").as_deref())?);
            settle(&mut publishers, last, "ready")?;
        }
        for (group, n) in groups().flat_map(|group| (1..=count).map(move |n| (group.clone(), n))) {
            let file = file("subscriber").filter(|_| subscribers.is_empty());
            let last = group.end == cameras && n == count;
            let task = self.task(group, false, false, steps)?;
            subscribers.push(Process::role(&task, file.as_deref())?);
            settle(&mut subscribers, last, "playing")?;
        }
        std::thread::sleep(Duration::from_secs(self.options.settle.into()));
        subscribers.iter_mut().try_for_each(Process::go)?;
        for one in &mut publishers {
            one.go()?;
            // Cameras are not synchronized.
            std::thread::sleep(Duration::from_secs(1) / cameras / picture.pace());
        }
        let mut round = Round::default();
        let mut of_subscribers = Sum::default();
        let mut wrong = [Some(0); 3];
        for one in &mut subscribers {
            let said = read_json(&mut one.out)?;
            of_subscribers.add(&said)?;
            round.frames += said["frames"].as_u64().ok_or("no frames")?;
            round.late += said["late"].as_u64().ok_or("no count")?;
            for (sum, name) in wrong.iter_mut().zip(["lost", "repeated", "torn"]) {
                *sum = sum.zip(said[name].as_u64()).map(|(a, b)| a + b);
            }
            let latencies = said["latencies"].as_array().ok_or("no latencies")?;
            round.latencies.extend(latencies.iter().filter_map(|l| Some(l.as_f64()? / 1e3)));
            round.add_steps(&said);
        }
        let mut of_publishers = Sum::default();
        for one in &mut publishers {
            let said = read_json(&mut one.out)?;
            of_publishers.add(&said)?;
            round.dropped += said["dropped"].as_u64().unwrap_or(0);
            round.add_steps(&said);
        }
        // After the last frame that counts, so that none is disturbed. Cameras continue.
        if probe == Probe::None {
            round.memory = publishers.iter().chain(&subscribers).map(Process::memory).sum();
            round.shared = publishers.iter().map(Process::shared_files).sum();
            round.decoder = process::decoder();
            round.vram = process::vram().zip(vram).map(|(during, before)| during - before);
        }
        for one in subscribers.iter_mut().chain(&mut publishers) {
            round.bad_ends += u64::from(!one.end()?);
        }
        round.latencies.sort_by(f64::total_cmp);
        round.steps.values_mut().for_each(|all| all.sort_by(f64::total_cmp));
        (round.publisher, round.published) = (of_publishers.mean(), of_publishers.rate());
        if count > 0 {
            [round.lost, round.repeated, round.torn] = wrong;
            (round.subscriber, round.received) = (of_subscribers.mean(), of_subscribers.rate());
        }
        Ok(round)
    }

    pub fn life(&self) -> Result<Life, Failure> {
        let publisher = || -> Result<_, Failure> {
            let mut publisher = Process::role(&self.task(0..1, true, true, false)?, None)?;
            let began = read_json(&mut publisher.out)?["time"].as_i64().ok_or("no time")?;
            Ok((publisher, began))
        };
        let mut old = if self.system.publishes() { Some(publisher()?) } else { None };
        let mut subscriber = Process::role(&self.task(0..1, false, true, false)?, None)?;
        let ms = |from: i64, to: i64| (to - from) as f64 / 1e6;
        let said = read_json(&mut subscriber.out)?;
        let time = |name: &str| said[name].as_i64().ok_or("no time");
        let mut life =
            Life { first: ms(time("began")?, time("time")?), recovery: None, restarts: 0 };
        // With a shared camera, recovery takes as long as starting to decode, whatever the system.
        if let Some((old, _)) = old.as_mut().filter(|_| !self.system.has_camera()) {
            std::thread::sleep(Duration::from_millis(200));
            old.kill();
            // Some sinks do not start while their socket exists. A supervisor would remove it.
            for name in ["unixfd", "shm", "cudaipc"] {
                let _ = std::fs::remove_file(self.dir.join("0").join(name));
            }
            let (_new, began) = publisher()?;
            let said = read_json(&mut subscriber.out)?;
            life.recovery = Some(ms(began, said["time"].as_i64().ok_or("no time")?));
            life.restarts = said["restarts"].as_u64().unwrap_or(0);
        }
        Ok(life)
    }

    /// Measures what a silent publisher and a waiting subscriber use per second.
    pub fn idle(&self) -> Result<Idle, Failure> {
        let silent = |task| Task { silent: true, ..task };
        let mut publisher = Process::role(&silent(self.task(0..1, true, false, false)?), None)?;
        wait_for_word(&mut publisher, "ready")?;
        let mut subscriber = Process::role(&silent(self.task(0..1, false, false, false)?), None)?;
        wait_for_word(&mut subscriber, "playing")?;
        // Waits until both have settled.
        std::thread::sleep(Duration::from_millis(500));
        let seconds = self.options.idle;
        let before = [publisher.used(), subscriber.used()];
        std::thread::sleep(Duration::from_secs(seconds.into()));
        let of = |one: &Process, before: (f64, f64)| {
            let after = one.used();
            let seconds = f64::from(seconds);
            ((after.0 - before.0) / seconds, (after.1 - before.1) / seconds)
        };
        Ok(Idle { publisher: of(&publisher, before[0]), subscriber: of(&subscriber, before[1]) })
    }

    /// Counts system calls per frame, of the publisher and of one subscriber.
    pub fn calls(&self) -> Result<(Calls, Calls), Failure> {
        self.round(Probe::Calls(&self.dir))?;
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

/// The sum of several processes' reports.
#[derive(Default)]
struct Sum {
    cpu: f64,
    switches: f64,
    rate: f64,
    count: f64,
}

impl Sum {
    fn add(&mut self, said: &serde_json::Value) -> Result<(), Failure> {
        self.cpu += said["cpu"].as_f64().ok_or("no CPU time")?;
        self.switches += said["switches"].as_f64().ok_or("no switches")?;
        self.rate += said["rate"].as_f64().unwrap_or(0.0);
        self.count += 1.0;
        Ok(())
    }

    fn mean(&self) -> Option<(f64, f64)> {
        (self.count > 0.0).then(|| (self.cpu / self.count, self.switches / self.count))
    }

    fn rate(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.rate / self.count)
    }
}

impl Round {
    fn add_steps(&mut self, said: &serde_json::Value) {
        let all: BTreeMap<_, _> = steps::NAMES
            .into_iter()
            .filter_map(|name| Some((name, said["steps"][name].as_array()?)))
            .collect();
        for (name, ns) in all {
            let us = ns.iter().filter_map(|ns| Some(ns.as_f64()? / 1e3));
            self.steps.entry(name).or_default().extend(us);
        }
    }
}

/// Limits how many processes start at a time, because creating many GPU contexts at once takes seconds.
fn settle(all: &mut [Process], last: bool, word: &str) -> Result<(), Failure> {
    const AT_A_TIME: usize = 8;
    if !last && !all.len().is_multiple_of(AT_A_TIME) {
        return Ok(());
    }
    let settled = (all.len() - 1) / AT_A_TIME * AT_A_TIME;
    all[settled..].iter_mut().try_for_each(|one| wait_for_word(one, word))
}

fn wait_for_word(from: &mut Process, word: &str) -> Result<(), Failure> {
    let mut line = String::new();
    std::io::BufRead::read_line(&mut from.out, &mut line)?;
    match line.trim() == word {
        true => Ok(()),
        false => Err(format!("a process did not say that it is {word}").into()),
    }
}
