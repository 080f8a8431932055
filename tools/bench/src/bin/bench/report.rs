// SPDX-License-Identifier: LGPL-2.1-or-later
//! The results, for people and for programs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::model::{Cost, MODELS};
use crate::options::{Case, Options, Picture};
use crate::results::{Calls, Result, Spread, quantile};
use crate::systems::SYSTEMS;
use crate::{Failure, steps};
use cuframes_bench::machine::{commit, machine};

pub struct Report {
    pub options: Options,
    pub results: BTreeMap<Case, Result>,
    /// Reasons for which systems were skipped.
    pub excuses: BTreeMap<&'static str, String>,
}

/// A column: its heading, and the function that formats a cell.
type Column = (&'static str, fn(Case, &Result) -> String);

const TIMES: [Column; 6] = [
    ("p50 µs", |_, r| Spread::text(r.spread(|r| r.quantile(0.5)), 0)),
    ("p95 µs", |_, r| Spread::text(r.spread(|r| r.quantile(0.95)), 0)),
    ("p99 µs", |_, r| Spread::text(r.spread(|r| r.quantile(0.99)), 0)),
    ("most µs", |_, r| Spread::text(r.spread(|r| r.quantile(1.0)), 0)),
    ("published a second", |_, r| Spread::text(r.spread(|r| r.published), 1)),
    ("received a second", |_, r| Spread::text(r.spread(|r| r.received), 1)),
];

const COSTS: [Column; 9] = [
    ("publisher µs/frame", |_, r| Spread::text(r.spread(|r| Some(r.publisher?.0)), 0)),
    ("subscriber µs/frame", |_, r| Spread::text(r.spread(|r| Some(r.subscriber?.0)), 0)),
    ("pub. switches/frame", |_, r| Spread::text(r.spread(|r| Some(r.publisher?.1)), 1)),
    ("sub. switches/frame", |_, r| Spread::text(r.spread(|r| Some(r.subscriber?.1)), 1)),
    ("busy CPUs", |case, r| Spread::text(r.spread(|r| r.busy(case)), 2)),
    ("memory of all MiB", |_, r| Spread::text(r.spread(|r| r.memory), 1)),
    ("GPU memory MiB", |_, r| Spread::text(r.spread(|r| r.vram), 0)),
    ("GPU decoders %", |_, r| Spread::text(r.spread(|r| r.decoder), 0)),
    ("lost/repeated/torn", |_, r| {
        let wrong = r.wrong().map(|n| n.map(|n| n.to_string()).join("/"));
        let others = [(r.late(), "late"), (r.bad_ends(), "bad ends")];
        let others = others.iter().filter(|o| o.0 > 0).map(|(n, what)| format!(", {n} {what}"));
        wrong.unwrap_or("–".into()) + &others.collect::<String>()
    }),
];

const LIVES: [Column; 6] = [
    ("first frame ms", |_, r| Spread::text(r.first(), 0)),
    ("recovery ms", |_, r| Spread::text(r.recovery(), 0)),
    ("idle pub. µs/s", |_, r| idle(r.idle.as_ref().map(|i| i.publisher))),
    ("idle sub. µs/s", |_, r| idle(r.idle.as_ref().map(|i| i.subscriber))),
    ("pub. calls/frame", |_, r| calls(r.calls.as_ref().map(|c| &c.0))),
    ("sub. calls/frame", |_, r| calls(r.calls.as_ref().map(|c| &c.1))),
];

fn idle(used: Option<(f64, f64)>) -> String {
    used.map_or("–".into(), |(cpu, switches)| format!("{cpu:.0}, {switches:.1} switches"))
}

fn calls(all: Option<&Calls>) -> String {
    all.filter(|c| !c.is_empty())
        .map_or("–".into(), |c| format!("{:.1}", c.values().sum::<f64>()))
}

/// Returns the calls without those of `others`, a publisher that hands over nothing.
fn own_calls(calls: &Calls, others: Option<&Calls>) -> String {
    let own = calls.iter().filter_map(|(name, count)| {
        let of_others = others.and_then(|o| o.get(name)).copied().unwrap_or(0.0);
        Some((name, count - of_others)).filter(|(_, count)| *count >= 0.05)
    });
    let own: Vec<String> = own.map(|(name, count)| format!("{name} {count:.2}")).collect();
    if own.is_empty() { "none".into() } else { own.join(", ") }
}

impl Report {
    /// Returns the sizes and rates that were measured, in order.
    pub fn pictures(&self) -> Vec<Picture> {
        let mut pictures: Vec<_> =
            self.options.cases().iter().map(|(case, _)| case.picture).collect();
        pictures.dedup();
        pictures
    }

    pub fn print(&self) {
        let Options { frames, rounds, .. } = self.options;
        for picture in self.pictures() {
            println!("\n{}, {frames} frames, {rounds} rounds; median (least–most)", picture.text());
            let of_it = |case: Case| case.picture == picture;
            self.table(&TIMES, |c, r| of_it(c) && !r.rounds.is_empty());
            self.table(&COSTS, |c, r| of_it(c) && !r.rounds.is_empty());
        }
        self.table(&LIVES, |_, r| !r.lives.is_empty() || r.calls.is_some() || r.idle.is_some());
        self.print_steps();
        self.print_calls();
        for cost in self.costs() {
            println!("{}", cost.text());
        }
        for (case, result) in &self.results {
            if let Some(why) = &result.failed {
                println!("{:18} {} × {}: {why}", case.system, case.cameras, case.subscribers);
            }
        }
        for (name, excuse) in &self.excuses {
            println!("{name:18} {excuse}");
        }
    }

    fn table(&self, columns: &[Column], has: impl Fn(Case, &Result) -> bool) {
        let heads: String = columns.iter().map(|c| format!(" {:>22}", c.0)).collect();
        println!("\n{:18} {:>4} {:>4}{heads}", "system", "cams", "subs");
        for (case, result) in self.results.iter().filter(|(case, r)| has(**case, r)) {
            let Case { system, cameras, subscribers, .. } = case;
            let cells = columns.iter().map(|c| format!(" {:>22}", c.1(*case, result)));
            println!("{system:18} {cameras:>4} {subscribers:>4}{}", cells.collect::<String>());
        }
    }

    fn print_steps(&self) {
        let with = || self.results.iter().filter(|(_, r)| !r.steps.is_empty());
        if with().next().is_none() {
            return;
        }
        let heads: String = steps::NAMES.iter().map(|n| format!(" {n:>16}")).collect();
        println!("\nsteps, p50/p95/p99 µs\n{:18} {:>4}{heads}", "system", "subs");
        for (case, result) in with() {
            let cells = steps::NAMES.iter().map(|name| {
                let all = result.steps.get(name).map_or(&[][..], Vec::as_slice);
                let of = |q| quantile(all, q).map_or("–".into(), |v| format!("{v:.0}"));
                format!(" {:>16}", [of(0.5), of(0.95), of(0.99)].join("/"))
            });
            println!("{:18} {:>4}{}", case.system, case.subscribers, cells.collect::<String>());
        }
    }

    /// Formats calls by name. Those of `alone`, which are of the clock and the upload, are subtracted from
    /// the publisher's.
    fn print_calls(&self) {
        for (case, result) in &self.results {
            let Some((publisher, subscriber)) = &result.calls else { continue };
            let kind = |name| SYSTEMS.iter().find(|s| s.name == name).map(|s| s.source);
            let mut alone = self.results.iter().filter(|(other, _)| {
                other.system.starts_with("alone") && kind(other.system) == kind(case.system)
            });
            let alone = alone.find_map(|(_, r)| Some(&r.calls.as_ref()?.0));
            let alone = alone.filter(|_| !case.system.starts_with("alone"));
            let beside = if alone.is_some() { " beside those of alone" } else { "" };
            println!(
                "{:18} {:>4} calls a frame, publisher{beside}: {}; subscriber: {}",
                case.system,
                case.subscribers,
                own_calls(publisher, alone),
                own_calls(subscriber, None)
            );
        }
    }

    /// Returns the models of cost, fitted to all rounds of a system, size and rate.
    fn costs(&self) -> Vec<Cost> {
        let mut costs = Vec::new();
        for picture in self.pictures() {
            for system in &self.options.systems {
                let of_it = |case: &Case| (case.system, case.picture) == (system.name, picture);
                let of_it = self.results.iter().filter(|(case, _)| of_it(case));
                let rounds: Vec<_> =
                    of_it.flat_map(|(case, r)| r.rounds.iter().map(|r| (*case, r))).collect();
                costs.extend(MODELS.iter().filter_map(|m| m.fit(system, picture, &rounds)));
            }
        }
        costs
    }

    pub fn save(&self) -> std::result::Result<PathBuf, Failure> {
        std::fs::create_dir_all(&self.options.out)?;
        let path = self.options.out.join("results.json");
        std::fs::write(&path, serde_json::to_string_pretty(&self.json())? + "\n")?;
        Ok(path)
    }

    pub fn write(&self) -> std::result::Result<(), Failure> {
        let path = self.save()?;
        println!("\n{}", path.display());
        Ok(())
    }

    fn json(&self) -> Value {
        let options = &self.options;
        let results: Vec<Value> = self
            .results
            .iter()
            .map(|(case, result)| {
                let mut all = result.json();
                all["system"] = json!(case.system);
                all["cameras"] = json!(case.cameras);
                all["subscribers"] = json!(case.subscribers);
                all["size"] = json!(case.picture.size());
                all["fps"] = json!(case.picture.fps);
                all["busy_cpus"] = Spread::json(result.spread(|r| r.busy(*case)));
                all
            })
            .collect();
        json!({
            "machine": machine(),
            "versions": {
                "cuframes": env!("CARGO_PKG_VERSION"),
                "gstreamer": gst::version_string().as_str(),
                "commit": commit(),
                "optimised": !cfg!(debug_assertions),
            },
            "options": {
                "frames": options.frames, "rounds": options.rounds, "lives": options.lives,
                "settle": options.settle, "file": options.file.is_some(),
                "behind": options.behind,
            },
            "results": results,
            "model": self.costs().iter().map(Cost::json).collect::<Vec<_>>(),
            "skipped": self.excuses,
        })
    }
}
