//! What a run came to, and how repeats become one figure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// One turn of one system; times in µs, with all that the processes do: a publisher's camera too.
#[derive(Default)]
pub struct Round {
    /// Sorted.
    pub latencies: Vec<f64>,
    /// Frames that all subscribers got.
    pub frames: u64,
    pub late: u64,
    /// `None` where frames carry no number.
    pub lost: Option<u64>,
    pub repeated: Option<u64>,
    pub torn: Option<u64>,
    /// Of a frame: CPU time, context switches. Of a system without a publisher there are none.
    pub publisher: Option<(f64, f64)>,
    /// Of a frame and a subscriber.
    pub subscriber: Option<(f64, f64)>,
    /// Of all processes together in MiB, and what the publisher's shared memory is.
    pub memory: Option<f64>,
    pub shared: Option<f64>,
}

impl Round {
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let last = self.latencies.len().checked_sub(1)?;
        self.latencies.get((last as f64 * q).round() as usize).copied()
    }
}

/// A new subscriber, and one whose publisher was killed; in ms.
pub struct Life {
    pub first: f64,
    /// From the new publisher's first frame to the subscriber's first of it.
    pub recovery: Option<f64>,
    /// How often the source had to be started again for that.
    pub restarts: u64,
}

/// Calls of each name for a frame.
pub type Calls = BTreeMap<String, f64>;

/// All of a system with that many subscribers.
#[derive(Default)]
pub struct Result {
    pub rounds: Vec<Round>,
    pub lives: Vec<Life>,
    /// Of the publisher and of a subscriber.
    pub calls: Option<(Calls, Calls)>,
}

/// Median, least and most.
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

    fn json(this: Option<Self>) -> Value {
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

    /// Lost, repeated and torn, of all rounds.
    pub fn wrong(&self) -> Option<[u64; 3]> {
        Some([self.sum(|r| r.lost)?, self.sum(|r| r.repeated)?, self.sum(|r| r.torn)?])
    }

    pub fn late(&self) -> u64 {
        self.rounds.iter().map(|r| r.late).sum()
    }

    pub fn first(&self) -> Option<Spread> {
        Spread::of(self.lives.iter().map(|l| l.first))
    }

    pub fn recovery(&self) -> Option<Spread> {
        Spread::of(self.lives.iter().filter_map(|l| l.recovery))
    }

    pub fn json(&self) -> Value {
        let of = |of: &dyn Fn(&Round) -> Option<f64>| Spread::json(self.spread(of));
        let quantile = |q: f64| of(&|r| r.quantile(q));
        // Enough to draw the distribution again.
        let steps = (0..=100).map(|q| {
            Spread::of(self.rounds.iter().filter_map(|r| r.quantile(f64::from(q) / 100.0)))
        });
        let steps: Vec<Value> = steps.map(|s| s.map_or(Value::Null, |s| json!(s.0))).collect();
        json!({
            "rounds": self.rounds.len(),
            "frames": self.sum(|r| Some(r.frames)),
            "late": self.late(),
            "lost": self.sum(|r| r.lost),
            "repeated": self.sum(|r| r.repeated),
            "torn": self.sum(|r| r.torn),
            "latency_us": {
                "p50": quantile(0.5), "p95": quantile(0.95), "p99": quantile(0.99), "max": quantile(1.0),
                "percentiles": steps,
            },
            "publisher_cpu_us_per_frame": of(&|r| r.publisher.map(|p| p.0)),
            "subscriber_cpu_us_per_frame": of(&|r| r.subscriber.map(|s| s.0)),
            "publisher_switches_per_frame": of(&|r| r.publisher.map(|p| p.1)),
            "subscriber_switches_per_frame": of(&|r| r.subscriber.map(|s| s.1)),
            "memory_mib": of(&|r| r.memory),
            "publisher_shared_mib": of(&|r| r.shared),
            "first_frame_ms": Spread::json(self.first()),
            "recovery_ms": Spread::json(self.recovery()),
            "restarts": self.lives.iter().map(|l| l.restarts).collect::<Vec<_>>(),
            "publisher_calls_per_frame": self.calls.as_ref().map(|c| json!(c.0)),
            "subscriber_calls_per_frame": self.calls.as_ref().map(|c| json!(c.1)),
        })
    }
}

/// Least squares of y = a + b·x, and which part of the scatter that explains.
pub struct Line {
    pub a: f64,
    pub b: f64,
    pub r2: f64,
}

impl Line {
    /// `None` if all points have one x.
    pub fn fit(points: &[(f64, f64)]) -> Option<Self> {
        let n = points.len() as f64;
        let mean_x = points.iter().map(|p| p.0).sum::<f64>() / n;
        let mean_y = points.iter().map(|p| p.1).sum::<f64>() / n;
        let sum = |of: fn(f64, f64) -> f64| {
            points.iter().map(|p| of(p.0 - mean_x, p.1 - mean_y)).sum::<f64>()
        };
        let (xx, xy, yy) = (sum(|x, _| x * x), sum(|x, y| x * y), sum(|_, y| y * y));
        if points.is_empty() || xx == 0.0 {
            return None;
        }
        let b = xy / xx;
        Some(Self { a: mean_y - b * mean_x, b, r2: if yy == 0.0 { 1.0 } else { b * xy / yy } })
    }
}
