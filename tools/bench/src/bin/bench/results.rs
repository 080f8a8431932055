// SPDX-License-Identifier: LGPL-2.1-or-later
//! Results, and how repetitions become one figure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::options::Case;

/// One turn of one system. Times are in µs, and include everything that the processes do.
#[derive(Default)]
pub struct Round {
    /// Sorted.
    pub latencies: Vec<f64>,
    /// Frames that all subscribers received.
    pub frames: u64,
    pub late: u64,
    /// `None` if frames have no number.
    pub lost: Option<u64>,
    pub repeated: Option<u64>,
    pub torn: Option<u64>,
    /// CPU time and context switches per frame; `None` for a system without a publisher.
    pub publisher: Option<(f64, f64)>,
    /// CPU time and context switches per frame and subscriber.
    pub subscriber: Option<(f64, f64)>,
    /// Frames per second of each publisher, and of each subscriber.
    pub published: Option<f64>,
    pub received: Option<f64>,
    /// Frames that the publishers dropped.
    pub dropped: u64,
    /// Processes that failed after their figures were taken.
    pub bad_ends: u64,
    /// Memory of all processes in MiB, and of it the publishers' shared memory.
    pub memory: Option<f64>,
    pub shared: Option<f64>,
    /// GPU memory that the turn used, in MiB.
    pub vram: Option<f64>,
    /// Utilization of the GPU's decoders, in %.
    pub decoder: Option<f64>,
    /// Times of steps by name, sorted.
    pub steps: BTreeMap<&'static str, Vec<f64>>,
}

/// Returns a quantile of sorted values.
pub fn quantile(all: &[f64], q: f64) -> Option<f64> {
    let last = all.len().checked_sub(1)?;
    all.get((last as f64 * q).round() as usize).copied()
}

impl Round {
    pub fn quantile(&self, q: f64) -> Option<f64> {
        quantile(&self.latencies, q)
    }

    /// Returns the CPUs that all processes keep busy.
    pub fn busy(&self, case: Case) -> Option<f64> {
        let one = |usage: Option<(f64, f64)>, rate: Option<f64>| Some(usage?.0 * rate?);
        let publisher = one(self.publisher, self.published);
        let subscribers =
            one(self.subscriber, self.received).map(|of_one| of_one * f64::from(case.subscribers));
        let all = publisher.into_iter().chain(subscribers).reduce(|a, b| a + b)?;
        Some(all * f64::from(case.cameras) / 1e6)
    }
}

/// Times of a new subscriber, and of one whose publisher was killed, in ms.
pub struct Life {
    pub first: f64,
    /// From the new publisher's first frame to the subscriber's first of it.
    pub recovery: Option<f64>,
    /// How often the source had to be restarted for that.
    pub restarts: u64,
}

/// CPU time in µs and context switches per second while nothing is published.
pub struct Idle {
    pub publisher: (f64, f64),
    pub subscriber: (f64, f64),
}

/// Calls per frame, by name.
pub type Calls = BTreeMap<String, f64>;

/// All results of a case.
#[derive(Default)]
pub struct Result {
    pub rounds: Vec<Round>,
    pub lives: Vec<Life>,
    pub idle: Option<Idle>,
    /// Times of steps in µs, by name, sorted.
    pub steps: BTreeMap<&'static str, Vec<f64>>,
    /// Why no more turns were run.
    pub failed: Option<String>,
    /// Calls of the publisher and of a subscriber.
    pub calls: Option<(Calls, Calls)>,
}

/// Median, minimum and maximum.
#[derive(Clone, Copy)]
pub struct Spread(pub f64, pub f64, pub f64);

impl Spread {
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut all: Vec<f64> = values.collect();
        all.sort_by(f64::total_cmp);
        let (least, most) = (*all.first()?, *all.last()?);
        let half = all.len() / 2;
        let median =
            if all.len().is_multiple_of(2) { (all[half - 1] + all[half]) / 2.0 } else { all[half] };
        Some(Self(median, least, most))
    }

    pub fn text(this: Option<Self>, digits: usize) -> String {
        this.map_or("–".into(), |Self(median, least, most)| {
            format!("{median:.digits$} ({least:.digits$}–{most:.digits$})")
        })
    }

    pub fn json(this: Option<Self>) -> Value {
        this.map_or(Value::Null, |Self(median, least, most)| {
            let round = |v: f64| (v * 100.0).round() / 100.0;
            json!({ "median": round(median), "least": round(least), "most": round(most) })
        })
    }
}

impl Result {
    pub fn spread(&self, of: impl Fn(&Round) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(of))
    }

    fn sum(&self, of: impl Fn(&Round) -> Option<u64>) -> Option<u64> {
        self.rounds.iter().map(of).sum()
    }

    /// Returns lost, repeated and torn frames of all rounds.
    pub fn wrong(&self) -> Option<[u64; 3]> {
        Some([self.sum(|r| r.lost)?, self.sum(|r| r.repeated)?, self.sum(|r| r.torn)?])
    }

    pub fn late(&self) -> u64 {
        self.rounds.iter().map(|r| r.late).sum()
    }

    pub fn bad_ends(&self) -> u64 {
        self.rounds.iter().map(|r| r.bad_ends).sum()
    }

    pub fn first(&self) -> Option<Spread> {
        Spread::of(self.lives.iter().map(|l| l.first))
    }

    pub fn recovery(&self) -> Option<Spread> {
        Spread::of(self.lives.iter().filter_map(|l| l.recovery))
    }

    pub fn json(&self) -> Value {
        let of = |of: &dyn Fn(&Round) -> Option<f64>| Spread::json(self.spread(of));
        let latency = |q: f64| of(&|r| r.quantile(q));
        // Enough to draw the distribution again.
        let steps = (0..=100).map(|q| {
            Spread::of(self.rounds.iter().filter_map(|r| r.quantile(f64::from(q) / 100.0)))
        });
        let steps: Vec<Value> = steps.map(|s| s.map_or(Value::Null, |s| json!(s.0))).collect();
        json!({
            "rounds": self.rounds.len(),
            "failed": self.failed,
            "frames": self.sum(|r| Some(r.frames)),
            "bad_ends": self.bad_ends(),
            "late": self.late(),
            "lost": self.sum(|r| r.lost),
            "repeated": self.sum(|r| r.repeated),
            "torn": self.sum(|r| r.torn),
            "latency_us": {
                "p50": latency(0.5), "p95": latency(0.95), "p99": latency(0.99), "max": latency(1.0),
                "percentiles": steps,
            },
            "published_per_s": of(&|r| r.published),
            "received_per_s": of(&|r| r.received),
            "dropped": self.sum(|r| Some(r.dropped)),
            "publisher_cpu_us_per_frame": of(&|r| r.publisher.map(|p| p.0)),
            "subscriber_cpu_us_per_frame": of(&|r| r.subscriber.map(|s| s.0)),
            "publisher_switches_per_frame": of(&|r| r.publisher.map(|p| p.1)),
            "subscriber_switches_per_frame": of(&|r| r.subscriber.map(|s| s.1)),
            "memory_mib": of(&|r| r.memory),
            "publisher_shared_mib": of(&|r| r.shared),
            "vram_mib": of(&|r| r.vram),
            "gpu_decoder_percent": of(&|r| r.decoder),
            "steps_us": self.steps.iter().map(|(name, all)| {
                let of = |q| quantile(all, q);
                (name.to_string(), json!({ "p50": of(0.5), "p95": of(0.95), "p99": of(0.99) }))
            }).collect::<serde_json::Map<_, _>>(),
            "idle_per_s": self.idle.as_ref().map(|i| json!({
                "publisher_cpu_us": i.publisher.0, "publisher_switches": i.publisher.1,
                "subscriber_cpu_us": i.subscriber.0, "subscriber_switches": i.subscriber.1,
            })),
            "first_frame_ms": Spread::json(self.first()),
            "recovery_ms": Spread::json(self.recovery()),
            "restarts": self.lives.iter().map(|l| l.restarts).collect::<Vec<_>>(),
            "publisher_calls_per_frame": self.calls.as_ref().map(|c| json!(c.0)),
            "subscriber_calls_per_frame": self.calls.as_ref().map(|c| json!(c.1)),
        })
    }
}

/// Values of the variables, and the measured y.
pub type Point = (Vec<f64>, f64);

/// Least squares of y = c₀·x₀ + c₁·x₁ + …, and the part of the variance of y that it explains.
pub struct Fit {
    pub factors: Vec<f64>,
    pub r2: f64,
    /// The largest relative error of a point.
    pub worst: f64,
}

impl Fit {
    /// Fits the points; `None` if they do not determine the factors.
    pub fn of(points: &[Point]) -> Option<Self> {
        let n = points.first()?.0.len();
        // The normal equations, each followed by its right side.
        let equation = |i: usize| -> Vec<f64> {
            let left = (0..n).map(|j| points.iter().map(|(x, _)| x[i] * x[j]).sum());
            left.chain([points.iter().map(|(x, y)| x[i] * y).sum()]).collect()
        };
        let mut rows: Vec<Vec<f64>> = (0..n).map(equation).collect();
        for i in 0..n {
            let best = (i..n).max_by(|a, b| rows[*a][i].abs().total_cmp(&rows[*b][i].abs()))?;
            rows.swap(i, best);
            let scale = rows[i][i];
            if scale.abs() < 1e-9 {
                return None;
            }
            rows[i].iter_mut().for_each(|v| *v /= scale);
            let pivot = rows[i].clone();
            for j in (0..n).filter(|j| *j != i) {
                let by = rows[j][i];
                rows[j].iter_mut().zip(&pivot).for_each(|(v, p)| *v -= by * p);
            }
        }
        let factors: Vec<f64> = rows.iter().map(|row| row[n]).collect();
        let mean = points.iter().map(|p| p.1).sum::<f64>() / points.len() as f64;
        let of = |x: &[f64]| x.iter().zip(&factors).map(|(x, c)| x * c).sum::<f64>();
        let missed: f64 = points.iter().map(|(x, y)| (y - of(x)).powi(2)).sum();
        let scatter: f64 = points.iter().map(|(_, y)| (y - mean).powi(2)).sum();
        let r2 = if scatter == 0.0 { 1.0 } else { 1.0 - missed / scatter };
        let off = |(x, y): &Point| ((y - of(x)) / y).abs();
        let worst = points.iter().map(off).fold(0.0, f64::max);
        Some(Self { factors, r2, worst })
    }
}
