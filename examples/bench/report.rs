//! The results, for people and for programs.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Value, json};

use crate::figures::{Calls, Line, Result, Spread};
use crate::{Failure, Options, plots};

pub struct Report {
    pub options: Options,
    /// By system and number of subscribers.
    pub results: BTreeMap<(&'static str, u32), Result>,
    /// Why there is nothing of a system.
    pub excuses: BTreeMap<&'static str, String>,
}

/// A column: its head and what stands in it.
type Column = (&'static str, fn(&Result) -> String);

const TIMES: [Column; 4] = [
    ("p50 µs", |r| Spread::text(r.spread(|r| r.quantile(0.5)), 0)),
    ("p95 µs", |r| Spread::text(r.spread(|r| r.quantile(0.95)), 0)),
    ("p99 µs", |r| Spread::text(r.spread(|r| r.quantile(0.99)), 0)),
    ("most µs", |r| Spread::text(r.spread(|r| r.quantile(1.0)), 0)),
];

const COSTS: [Column; 6] = [
    ("publisher µs/frame", |r| Spread::text(r.spread(|r| Some(r.publisher?.0)), 0)),
    ("subscriber µs/frame", |r| Spread::text(r.spread(|r| Some(r.subscriber?.0)), 0)),
    ("pub. switches/frame", |r| Spread::text(r.spread(|r| Some(r.publisher?.1)), 1)),
    ("sub. switches/frame", |r| Spread::text(r.spread(|r| Some(r.subscriber?.1)), 1)),
    ("memory of all MiB", |r| Spread::text(r.spread(|r| r.memory), 1)),
    ("lost/repeated/torn", |r| {
        let wrong = r.wrong().map(|n| n.map(|n| n.to_string()).join("/"));
        let late = if r.late() > 0 { format!(", {} late", r.late()) } else { String::new() };
        wrong.unwrap_or("–".into()) + &late
    }),
];

const LIVES: [Column; 4] = [
    ("first frame ms", |r| Spread::text(r.first(), 0)),
    ("recovery ms", |r| Spread::text(r.recovery(), 0)),
    ("pub. calls/frame", |r| calls(r.calls.as_ref().map(|c| &c.0))),
    ("sub. calls/frame", |r| calls(r.calls.as_ref().map(|c| &c.1))),
];

fn calls(all: Option<&Calls>) -> String {
    all.filter(|c| !c.is_empty())
        .map_or("–".into(), |c| format!("{:.1}", c.values().sum::<f64>()))
}

impl Report {
    pub fn title(&self) -> String {
        format!("{}, {} frames a second", self.options.size, self.options.fps)
    }

    pub fn print(&self) {
        println!(
            "{}, {} frames, {} rounds; median of the rounds (least–most)",
            self.title(),
            self.options.frames,
            self.options.rounds
        );
        self.table(&TIMES, |r| r.rounds.iter().any(|r| !r.latencies.is_empty()));
        self.table(&COSTS, |r| !r.rounds.is_empty());
        self.table(&LIVES, |r| !r.lives.is_empty() || r.calls.is_some());
        for (name, line) in self.publisher_costs() {
            println!(
                "{name:18} publisher: {:.0} + {:.1} · subscribers µs of CPU a frame (r² {:.2})",
                line.a, line.b, line.r2
            );
        }
        for (name, excuse) in &self.excuses {
            println!("{name:18} {excuse}");
        }
    }

    fn table(&self, columns: &[Column], has: impl Fn(&Result) -> bool) {
        let heads: String = columns.iter().map(|c| format!(" {:>22}", c.0)).collect();
        println!("\n{:18} {:>4}{heads}", "system", "subs");
        for ((name, count), result) in self.results.iter().filter(|(_, r)| has(r)) {
            let cells: String = columns.iter().map(|c| format!(" {:>22}", c.1(result))).collect();
            println!("{name:18} {count:>4}{cells}");
        }
    }

    /// What the publisher's cost is made of, fitted to all rounds.
    fn publisher_costs(&self) -> Vec<(&'static str, Line)> {
        let systems = self.options.systems.iter();
        let fitted = systems.filter_map(|system| {
            let of_it = self.results.iter().filter(|((name, _), _)| *name == system.name);
            let points: Vec<(f64, f64)> = of_it
                .flat_map(|((_, count), r)| r.rounds.iter().map(move |r| (count, r)))
                .filter_map(|(count, r)| Some((f64::from(*count), r.publisher?.0)))
                .collect();
            Some((system.name, Line::fit(&points)?))
        });
        fitted.collect()
    }

    pub fn write(&self) -> std::result::Result<(), Failure> {
        std::fs::create_dir_all(&self.options.out)?;
        let path = self.options.out.join("results.json");
        std::fs::write(&path, serde_json::to_string_pretty(&self.json())? + "\n")?;
        plots::draw(self, &self.options.out)?;
        println!("\n{} and pictures beside it", path.display());
        Ok(())
    }

    fn json(&self) -> Value {
        let options = &self.options;
        let results: Vec<Value> = self
            .results
            .iter()
            .map(|((name, count), result)| {
                let mut all = result.json();
                all["system"] = json!(name);
                all["subscribers"] = json!(count);
                all
            })
            .collect();
        let model: Vec<Value> = self
            .publisher_costs()
            .iter()
            .map(|(name, l)| json!({ "system": name, "a": l.a, "b": l.b, "r2": l.r2 }))
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
                "frames": options.frames, "fps": options.fps, "size": options.size,
                "subscribers": options.subscribers, "rounds": options.rounds, "lives": options.lives,
            },
            "results": results,
            "publisher_cost_us_per_frame": model,
            "skipped": self.excuses,
        })
    }
}

/// Nothing that names it.
fn machine() -> Value {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
    let virtual_machine = cpu.lines().any(|l| l.starts_with("flags") && l.contains(" hypervisor"));
    let gpu = Command::new("nvidia-smi")
        .args(["--query-gpu=name,driver_version", "--format=csv,noheader"])
        .output();
    let gpu = gpu.ok().filter(|o| o.status.success());
    json!({
        "kernel": kernel.trim(),
        "cpu": model.map(|m| m.1),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "virtual": virtual_machine,
        "gpu": gpu.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()),
    })
}

/// Of the source, where it is at hand; otherwise as `$CUFRAMES_COMMIT` says.
fn commit() -> Option<String> {
    let git = Command::new("git").args(["describe", "--always", "--dirty"]).output().ok();
    let said = git
        .filter(|o| o.status.success())
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    std::env::var("CUFRAMES_COMMIT").ok().or(said)
}
