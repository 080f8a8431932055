// SPDX-License-Identifier: LGPL-2.1-or-later
//! Measures the hand-over of frames between processes in the same way for every system: `bench [--frames N]
//! [--fps N[,N…]] [--size WxH[,WxH…]] [--cameras N[,N…]] [--subscribers N[,N…]] [--rounds N] [--lives N]
//! [--idle SECONDS] [--settle SECONDS] [--behind ELEMENTS] [--no-steps] [--no-trace] [--file F [--codec
//! h265]] [--out FOLDER] [SYSTEM…]`.
//!
//! A publisher stores the time of each frame at the sink's pad. Subscribers read it at the element behind the
//! source, from the pixels or from a shared page (see [`timestamps::Stamps`]). Publishers and subscribers are
//! processes. Each camera has a publisher, except with [`systems::System::together`]. Systems are measured in
//! turns, so that other load of the machine affects all alike. Systems that the machine lacks are skipped.
//! `--fps 0` publishes as fast as possible.
//!
//! Further turns follow, with one camera: the steps of a frame ([`steps`]). With the first size and rate,
//! also: `--lives` subscribers that join a running publisher, which is then killed and replaced; the use of
//! CPU while a publisher is silent; and one turn of each system under strace, if that is installed.
//!
//! Results are printed, and written into FOLDER as results.json and plots.

mod environment;
mod model;
mod observations;
mod options;
mod process;
mod report;
mod restarts;
mod results;
mod source;
mod steps;
mod systems;
mod timestamps;
mod worker;

use std::collections::BTreeMap;

use environment::{Environment, Probe};
use options::{Case, Options};
use report::Report;

type Failure = Box<dyn std::error::Error>;

/// Frames before the measurement, for connections, mappings and first allocations.
pub const WARM_UP: u32 = 30;

fn main() -> Result<(), Failure> {
    if let Ok(task) = std::env::var("CUFRAMES_BENCH_ROLE") {
        return worker::run(&task);
    }
    gst::init()?;
    gstcuframes::plugin_register_static()?;
    let report = measure(Options::parse(std::env::args().skip(1))?)?;
    report.print();
    report.write()
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Turn {
    Round,
    Steps,
    Life,
    Idle,
    Calls,
}

impl Turn {
    /// Returns whether the turn measures something of the case that no other turn has measured.
    fn is_for(self, case: Case, system: &systems::System, options: &Options) -> bool {
        let [first, last] = [options.subscribers.first(), options.subscribers.last()];
        let first_picture = options.cases()[0].0.picture == case.picture;
        let one = first_picture && case.cameras == options.cameras[0];
        let with_first = one && (case.subscribers == 0 || Some(&case.subscribers) == first);
        let made = system.publishes() && !system.has_camera();
        match self {
            Turn::Round => true,
            Turn::Steps => {
                system.is_ours() && case.cameras == 1 && Some(&case.subscribers) == first
            }
            Turn::Life => with_first && case.subscribers > 0,
            Turn::Idle => with_first && case.subscribers > 0 && made,
            Turn::Calls => {
                case.picture.fps > 0
                    && case.cameras == 1
                    && (with_first || one && Some(&case.subscribers) == last)
            }
        }
    }
}

fn measure(options: Options) -> Result<Report, Failure> {
    let mut report = Report { options, results: BTreeMap::new(), excuses: BTreeMap::new() };
    let options = &report.options;
    for system in &options.systems {
        if let Some(missing) = system.missing(&options.codec) {
            report.excuses.insert(system.name, format!("not on this machine: {missing}"));
        }
    }
    if options.trace && !process::can_trace() {
        let why = "not on this machine: no strace that may trace";
        report.excuses.insert("system calls", why.into());
    }
    if process::vram().is_none() {
        report.excuses.insert("memory of the GPU", "not on this machine: no nvidia-smi".into());
    }
    let traces = options.trace && !report.excuses.contains_key("system calls");
    let turns = (0..options.rounds).map(|_| Turn::Round);
    let lives = (0..options.lives).map(|_| Turn::Life);
    let steps = options.steps.then_some(Turn::Steps);
    let idle = (options.idle > 0).then_some(Turn::Idle);
    let turns = turns.chain(steps).chain(lives).chain(idle);
    for turn in turns.chain(traces.then_some(Turn::Calls)) {
        for (case, system) in options.cases() {
            let failed = report.results.get(&case).is_some_and(|r| r.failed.is_some());
            let skipped = failed || report.excuses.contains_key(case.system);
            if skipped || !turn.is_for(case, system, options) {
                continue;
            }
            let Case { picture, system: name, cameras, subscribers } = case;
            eprintln!(
                "{turn:?}: {name}, {cameras} camera(s) of {}, {subscribers} subscriber(s)",
                picture.text()
            );
            let environment = Environment::new(options, case, system)?;
            let result = report.results.entry(case).or_default();
            let done = match turn {
                Turn::Round => environment.round(Probe::None).map(|r| result.rounds.push(r)),
                Turn::Steps => environment.round(Probe::Steps).map(|r| result.steps = r.steps),
                Turn::Life => environment.life().map(|l| result.lives.push(l)),
                Turn::Idle => environment.idle().map(|i| result.idle = Some(i)),
                Turn::Calls => environment.calls().map(|c| result.calls = Some(c)),
            };
            if let Err(e) = done {
                eprintln!("  failed: {e}");
                result.failed = Some(format!("failed in a {turn:?}: {e}"));
            }
            // Results so far are kept if a later turn fails.
            report.save()?;
        }
    }
    Ok(report)
}
