//! What cost is made of: a model for each kind of it, fitted to what was measured.

use serde_json::{Value, json};

use crate::figures::{Fit, Round};
use crate::options::{Case, Picture};

pub struct Model {
    name: &'static str,
    unit: &'static str,
    pub y: fn(Case, &Round) -> Option<f64>,
    /// What it may grow with: the first is always there.
    pub of: fn(Case) -> Vec<f64>,
    parts: [&'static str; 3],
}

/// Of a frame, and of one publisher.
fn of_one(case: Case) -> Vec<f64> {
    vec![1.0, case.subscribers.into(), f64::from(case.cameras) - 1.0]
}

/// Of all cameras.
fn of_all(case: Case) -> Vec<f64> {
    let (cameras, subscribers) = (f64::from(case.cameras), f64::from(case.subscribers));
    vec![1.0, cameras, cameras * subscribers]
}

const ONE: [&str; 3] = ["", "subscribers", "further cameras"];
const ALL: [&str; 3] = ["", "cameras", "cameras · subscribers"];

pub const MODELS: [Model; 4] = [
    Model {
        name: "publisher",
        unit: "µs of CPU a frame",
        y: |_, r| Some(r.publisher?.0),
        of: of_one,
        parts: ONE,
    },
    Model { name: "all", unit: "CPUs", y: |c, r| r.busy(c), of: of_all, parts: ALL },
    Model { name: "memory", unit: "MiB", y: |_, r| r.memory, of: of_all, parts: ALL },
    Model { name: "GPU memory", unit: "MiB", y: |_, r| r.vram, of: of_all, parts: ALL },
];

pub struct Cost {
    pub system: &'static str,
    pub picture: Picture,
    pub model: &'static Model,
    /// Which parts were fitted.
    pub used: Vec<usize>,
    pub fit: Fit,
}

impl Cost {
    fn parts(&self) -> impl Iterator<Item = (&'static str, f64)> {
        self.used.iter().map(|i| self.model.parts[*i]).zip(self.fit.factors.iter().copied())
    }

    pub fn text(&self) -> String {
        let sum: Vec<String> = self
            .parts()
            .map(|(name, factor)| match name {
                "" => format!("{factor:.3}"),
                name => format!("{factor:.3} · {name}"),
            })
            .collect();
        format!(
            "{:18} {}, {}: {} {} (r² {:.2})",
            self.system,
            self.picture.text(),
            self.model.name,
            sum.join(" + "),
            self.model.unit,
            self.fit.r2
        )
    }

    pub fn json(&self) -> Value {
        let parts: serde_json::Map<_, _> = self
            .parts()
            .map(|(name, factor)| {
                (if name.is_empty() { "a" } else { name }.to_owned(), json!(factor))
            })
            .collect();
        json!({
            "system": self.system, "size": self.picture.size(), "fps": self.picture.fps,
            "of": self.model.name, "unit": self.model.unit, "sum": parts, "r2": self.fit.r2,
        })
    }
}
