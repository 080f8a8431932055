// SPDX-License-Identifier: LGPL-2.1-or-later
//! Linear models of cost, fitted to the measurements.

use serde_json::{Value, json};

use crate::options::{Case, Picture};
use crate::results::{Fit, Point, Round};
use crate::systems::System;

pub struct Model {
    name: &'static str,
    unit: &'static str,
    y: fn(Case, &Round) -> Option<f64>,
    /// The variables. The first is constant.
    of: fn(Case) -> Vec<f64>,
    parts: &'static [Part],
}

/// The name of a term, and whether a system has it.
type Part = (&'static str, fn(&System) -> bool);

/// Variables of cost per frame, and of one publisher.
fn of_one(case: Case) -> Vec<f64> {
    vec![1.0, case.subscribers.into(), f64::from(case.cameras) - 1.0]
}

/// Variables of cost of all cameras.
fn of_all(case: Case) -> Vec<f64> {
    let (cameras, subscribers) = (f64::from(case.cameras), f64::from(case.subscribers));
    vec![1.0, cameras, subscribers, cameras * subscribers]
}

const ONE: &[Part] = &[("", |_| true), ("subscribers", |_| true), ("further cameras", |_| true)];
/// Cameras have a term if they are published. Subscribers have one if each is a process for all cameras.
const ALL: &[Part] = &[
    ("", |_| true),
    ("cameras", |system| !system.sink.is_empty()),
    ("subscribers", |system| system.together),
    ("cameras · subscribers", |_| true),
];

pub static MODELS: [Model; 4] = [
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

impl Model {
    pub fn fit(
        &'static self,
        system: &'static System,
        picture: Picture,
        rounds: &[(Case, &Round)],
    ) -> Option<Cost> {
        let known =
            |(case, round): &(Case, &Round)| Some(((self.of)(*case), (self.y)(*case, round)?));
        let points: Vec<Point> = rounds.iter().filter_map(known).collect();
        // A variable that did not vary has no term.
        let first = &points.first()?.0;
        let varies = |i: &usize| points.iter().any(|(x, _)| x[*i] != first[*i]);
        let is_part = |i: &usize| self.parts[*i].1(system) && varies(i);
        let mut used: Vec<usize> =
            [0].into_iter().chain((1..first.len()).filter(is_part)).collect();
        // With one number of subscribers, their cost cannot be separated from that of the cameras.
        while used.len() > 1 {
            let of_used = |x: &Vec<f64>| used.iter().map(|i| x[*i]).collect();
            let points: Vec<Point> = points.iter().map(|(x, y)| (of_used(x), *y)).collect();
            if let Some(fit) = Fit::of(&points) {
                return Some(Cost { system: system.name, picture, model: self, used, fit });
            }
            used.pop();
        }
        None
    }
}

pub struct Cost {
    system: &'static str,
    picture: Picture,
    model: &'static Model,
    /// Indexes of the fitted terms.
    used: Vec<usize>,
    fit: Fit,
}

impl Cost {
    fn parts(&self) -> impl Iterator<Item = (&'static str, f64)> {
        self.used.iter().map(|i| self.model.parts[*i].0).zip(self.fit.factors.iter().copied())
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
            "{:18} {}, {}: {} {} (r² {:.2}, {:.0} % off at most)",
            self.system,
            self.picture.text(),
            self.model.name,
            sum.join(" + "),
            self.model.unit,
            self.fit.r2,
            self.fit.worst * 100.0
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
            "of": self.model.name, "unit": self.model.unit, "sum": parts, "r2": self.fit.r2, "worst": self.fit.worst,
        })
    }
}
