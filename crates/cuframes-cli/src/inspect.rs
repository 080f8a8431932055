//! `cuframes inspect KEY`

use std::io;

use cuframes::{Mode, PublisherStatus};

use crate::table::{Align, Table};
use crate::{Options, complain, look, print};

pub fn run(options: &Options, key: &str) -> io::Result<bool> {
    let status = match cuframes::status(key, options.runtime_dir.as_deref()) {
        Ok(status) => status,
        Err(e) => {
            complain(e);
            return Ok(false);
        }
    };
    print(&describe(&status))?;
    Ok(true)
}

fn describe(s: &PublisherStatus) -> String {
    let mut facts = Table::new(&[("KEY", Align::Left), ("", Align::Left)]);
    let mut fact = |name: &str, value: String| facts.row([name.to_owned(), value]);
    fact("key", s.key.clone());
    fact("publisher", format!("{} (pid {}, uid {})", s.name, look::pid(s.pid), s.uid));
    if !s.caps.is_empty() {
        fact("caps", s.caps.clone());
        fact("published", s.published.to_string());
        fact("dropped", s.dropped.to_string());
        let age = s.last_frame_ns.and_then(|t| u64::try_from(s.time_ns - t).ok());
        fact(
            "newest frame",
            age.map_or("none".into(), |ns| format!("{} ago", look::latency(Some(ns)))),
        );
        fact("behind timestamps", look::latency(Some(s.latency_ns)));
        let (slots, chunks) = (s.slots, s.chunks);
        let bytes = look::bytes(s.bytes);
        fact("memory", format!("{}, {slots} slots in {chunks} chunks, {bytes}", s.memory));
    }
    for t in &s.tracks {
        let name = format!("track {}", t.track);
        fact(&name, if t.caps.is_empty() { "-".into() } else { t.caps.clone() });
        let counts = format!(
            "{} published, {} in the ring of {}",
            t.published,
            t.in_ring,
            look::bytes(t.bytes)
        );
        let too_big =
            if t.too_big > 0 { format!(", {} too big", t.too_big) } else { String::new() };
        fact("", counts + &too_big);
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
    let facts = facts.to_string();
    // The heading is there for the columns' sake.
    let facts = facts.split_once('\n').map_or("", |(_, rest)| rest).to_owned();
    if s.subscribers.is_empty() {
        return facts;
    }
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
    for s in &s.subscribers {
        let takes = match s.mode {
            _ if s.max_frames == 0 => "packets",
            Mode::Newest => "newest",
            Mode::Strict => "strict",
        };
        table.row([
            s.name.clone(),
            look::pid(s.pid),
            s.uid.to_string(),
            takes.into(),
            format!("{} of {}", s.held, s.max_frames),
            s.lag.to_string(),
            s.received.to_string(),
            s.skipped.to_string(),
            s.copied.to_string(),
            look::latency(s.latency_ns),
        ]);
    }
    format!("{facts}\n{table}")
}
