// SPDX-License-Identifier: LGPL-2.1-or-later
//! The time of each step of a frame. The library emits trace events when a reader wakes up, has claimed a
//! frame, and so on. This module takes their times, in turns of their own. In other turns nothing subscribes
//! to the events.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use gst::prelude::*;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata};

use crate::worker::now;

/// Times by name, in ns.
pub type Steps = BTreeMap<&'static str, Vec<i64>>;

/// Names, in the order of a frame.
pub const NAMES: [&str; 8] =
    ["enqueue", "publish", "ring", "wake", "claim", "ready", "wrap", "push"];

/// The present frame, and the steps of earlier ones.
#[derive(Default)]
struct State {
    /// When the frame arrived at the sink's `render`, and when it was published.
    captured: i64,
    published: i64,
    /// When the thread woke up last; `None` if it did not sleep.
    woken: Option<i64>,
    claimed: i64,
    ready: i64,
    wrapped: i64,
    steps: Steps,
}

impl State {
    fn step(&mut self, name: &'static str, from: i64, to: i64) {
        self.steps.entry(name).or_default().push(to - from);
    }
}

/// Takes the times of one stream. A process has no more than one.
#[derive(Clone, Default)]
pub struct Listener(Arc<Mutex<State>>);

impl Listener {
    /// Subscribes to the events. Has to precede the plugin, because the first subscriber is the only one.
    pub fn start() -> Self {
        let listener = Self::default();
        let _ = tracing::subscriber::set_global_default(listener.clone());
        listener
    }

    /// Takes the time at the source's pad.
    pub fn at_source(&self, element: &gst::Element) {
        let listener = self.clone();
        let pad = element.static_pad("src").expect("a source has one");
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
            listener.0.lock().unwrap().wrapped = now();
            gst::PadProbeReturn::Ok
        });
    }

    /// Adds the steps of a frame that was handed over at `stamp` and has passed the source.
    pub fn done(&self, now: i64, stamp: i64) {
        let mut state = self.0.lock().unwrap();
        let State { captured, published, woken, claimed, ready, wrapped, .. } = *state;
        if stamp > 0 {
            state.step("enqueue", stamp, captured);
        }
        state.step("publish", captured, published);
        if let Some(woken) = woken.filter(|woken| *woken > published) {
            state.step("wake", published, woken);
            state.step("claim", woken, claimed);
        }
        state.step("ready", claimed, ready);
        state.step("wrap", ready, wrapped);
        state.step("push", wrapped, now);
        state.woken = None;
    }

    pub fn take(&self) -> Steps {
        std::mem::take(&mut self.0.lock().unwrap().steps)
    }
}

/// The times in an event. Without an allocation, which would delay the next step.
#[derive(Default)]
struct Times {
    captured: i64,
    published: i64,
}

impl Visit for Times {
    fn record_i64(&mut self, field: &Field, value: i64) {
        match field.name() {
            "captured" => self.captured = value,
            "published" => self.published = value,
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "cuframes::steps"
    }

    fn event(&self, event: &Event<'_>) {
        let now = now();
        let mut times = Times::default();
        event.record(&mut times);
        let mut state = self.0.lock().unwrap();
        match event.metadata().name() {
            "published" => state.step("ring", times.published, now),
            "woken" => state.woken = Some(now),
            "claimed" => state.claimed = now,
            "ready" => {
                (state.captured, state.published) = (times.captured, times.published);
                state.ready = now;
            }
            _ => {}
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
