// SPDX-License-Identifier: LGPL-2.1-or-later
//! Processes that run until they are killed, to measure how a subscriber starts, and how it recovers when its
//! publisher is restarted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gst::prelude::*;
use serde_json::json;

use crate::Failure;
use crate::worker::{Task, each_buffer, now, print_json, run_until};

pub fn publisher(task: &Task) -> Result<(), Failure> {
    let stamps = task.stamps()?[0];
    let pipeline = task.pipeline()?;
    let count = AtomicU64::new(0);
    each_buffer(&pipeline, "sink0", move |info| {
        let (number, now) = (count.fetch_add(1, Ordering::Relaxed), now());
        if let Some(buffer) = info.buffer_mut() {
            stamps.write(buffer, now, number);
        }
        if number == 0 {
            let _ = print_json(&json!({ "time": now }));
        }
    })?;
    pipeline.set_state(gst::State::Playing)?;
    run_until(&pipeline, None)
}

/// Reports when the first frame of each publisher arrived. Restarts a source that fails at once, as an
/// application would.
pub fn subscriber(task: &Task) -> Result<(), Failure> {
    let stamps = task.stamps()?[0];
    let (publisher, began) = (Arc::new(Mutex::new(None)), now());
    let restarts = Arc::new(AtomicU64::new(0));
    loop {
        let pipeline = task.pipeline()?;
        let pad = pipeline.by_name("out0").and_then(|e| e.static_pad("sink")).ok_or("no pad")?;
        let (known, counted) = (publisher.clone(), restarts.clone());
        each_buffer(&pipeline, "out0", move |info| {
            let now = now();
            let stamp = info.buffer().and_then(|b| stamps.read(b, &pad));
            if let (Some(stamp), Ok(mut known)) = (stamp, known.lock())
                && *known != Some(stamp.publisher)
            {
                *known = Some(stamp.publisher);
                let restarts = counted.load(Ordering::Relaxed);
                let _ = print_json(&json!({ "time": now, "began": began, "restarts": restarts }));
            }
        })?;
        if pipeline.set_state(gst::State::Playing).is_ok() {
            let _ = run_until(&pipeline, None);
        }
        pipeline.set_state(gst::State::Null)?;
        restarts.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(10));
    }
}
