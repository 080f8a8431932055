// SPDX-License-Identifier: LGPL-2.1-or-later
//! `cuframes inspect KEY`: everything that the publisher of a key reports.

use std::io;

use cuframes::info::{PublisherStatus, SubscriberStatus, TrackStatus};

use crate::table::{Align, Table};
use crate::{Options, format, print, print_error};

/// Prints the status of a publisher. Returns whether it responded.
pub(crate) fn run(options: &Options, key: &str) -> io::Result<bool> {
    match cuframes::status(key, options.runtime_dir.as_deref()) {
        Ok(status) => print(&describe(&status)).map(|()| true),
        Err(e) => {
            print_error(e);
            Ok(false)
        }
    }
}

fn describe(status: &PublisherStatus) -> String {
    let facts = facts(status);
    if status.subscribers.is_empty() {
        return facts;
    }
    format!("{facts}\n{}", subscribers(&status.subscribers))
}

/// Returns lines of a label and a value.
fn facts(s: &PublisherStatus) -> String {
    // The heading only gives the number of columns and is removed below.
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
    let mut fact = |label: &str, value: String| table.row([label.to_owned(), value]);
    fact("key", s.key.clone());
    fact("publisher", format!("{} (pid {}, uid {})", s.name, format::pid(s.pid), s.uid));
    if !s.caps.is_empty() {
        fact("caps", s.caps.clone());
        fact("published", s.published.to_string());
        fact("dropped", s.dropped.to_string());
        let age_ns = s.last_frame_ns.and_then(|t| u64::try_from(s.time_ns - t).ok());
        fact(
            "newest frame",
            age_ns.map_or("none".into(), |ns| format!("{} ago", format::latency(Some(ns)))),
        );
        fact("behind timestamps", format::latency(Some(s.latency_ns)));
        let (slots, chunks) = (s.slots, s.chunks);
        let bytes = format::bytes(s.bytes);
        fact("memory", format!("{}, {slots} slots in {chunks} chunks, {bytes}", s.memory));
    }
    for t in &s.tracks {
        let caps = if t.caps.is_empty() { "-".into() } else { t.caps.clone() };
        fact(&format!("track {}", t.track), caps);
        fact("", track_counts(t));
    }
    fact(
        "subscribers",
        format!(
            "{} of {}, each may hold {} frames",
            s.subscribers.len(),
            s.max_subscribers,
            s.max_frames_per_subscriber
        ),
    );
    let text = table.to_string();
    text.split_once('\n').map_or("", |(_heading, rows)| rows).to_owned()
}

fn track_counts(t: &TrackStatus) -> String {
    let oversized =
        if t.oversized > 0 { format!(", {} too big", t.oversized) } else { String::new() };
    let ring = format::bytes(t.bytes);
    format!("{} published, {} in the ring of {ring}{oversized}", t.published, t.buffered)
}

fn subscribers(subscribers: &[SubscriberStatus]) -> Table {
    let mut table = Table::new(&[
        ("SUBSCRIBER", Align::Left),
        ("PID", Align::Right),
        ("UID", Align::Right),
        ("TAKES", Align::Left),
        ("HELD", Align::Right),
        ("LAG", Align::Right),
        ("RECEIVED", Align::Right),
        ("SKIPPED", Align::Right),
        ("COPIED", Align::Right),
        ("LATENCY", Align::Right),
    ]);
    for s in subscribers {
        table.row([
            s.name.clone(),
            format::pid(s.pid),
            s.uid.to_string(),
            format::takes(s).into(),
            format!("{} of {}", s.held, s.max_frames),
            s.lag.to_string(),
            s.received.to_string(),
            s.skipped.to_string(),
            s.copied.to_string(),
            format::latency(s.latency_ns),
        ]);
    }
    table
}
