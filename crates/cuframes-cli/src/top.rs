// SPDX-License-Identifier: LGPL-2.1-or-later
//! `cuframes top`: a table of keys, tracks and subscribers that is refreshed at an interval.

use std::io::{self, IsTerminal};
use std::os::fd::AsRawFd;
use std::time::Duration;

use cuframes::info::{PublisherStatus, SubscriberStatus, TrackStatus};
use nix::libc;

use crate::poll::{self, Snapshot};
use crate::table::{Align, Table};
use crate::{Options, format, print};

/// The first refresh follows after at most this time, however long the interval is.
const MAX_FIRST_INTERVAL: Duration = Duration::from_secs(1);

const COLUMNS: [(&str, Align); 9] = [
    ("KEY, SUBSCRIBER", Align::Left),
    ("PID", Align::Right),
    ("TAKES", Align::Left),
    ("FPS", Align::Right),
    ("LATENCY", Align::Right),
    ("LAG", Align::Right),
    ("HELD", Align::Right),
    ("DROPS", Align::Right),
    ("MEMORY", Align::Right),
];
type Row = [String; COLUMNS.len()];

/// Prints the table every `interval`, `count` times or until interrupted.
pub(crate) fn run(options: &Options, interval: Duration, count: Option<u64>) -> io::Result<bool> {
    let terminal = io::stdout().is_terminal();
    // Rates are differences between two polls.
    let mut earlier = poll::poll_all(options);
    let mut refreshes = 0;
    while count.is_none_or(|count| refreshes < count) {
        let first = refreshes == 0;
        std::thread::sleep(if first { interval.min(MAX_FIRST_INTERVAL) } else { interval });
        let now = poll::poll_all(options);
        let text = if now.is_empty() {
            poll::no_keys_message(options)
        } else {
            table(&now, &earlier).to_string()
        };
        print(&if terminal { redraw(&text) } else { text + "\n" })?;
        earlier = now;
        refreshes += 1;
    }
    Ok(true)
}

/// Returns the text with escape sequences that draw it over the previous one. Rows and columns outside
/// the terminal are cut off.
fn redraw(text: &str) -> String {
    let (rows, columns) = terminal_size().unwrap_or((usize::MAX, usize::MAX));
    let mut screen = String::from("\x1b[H");
    for line in text.lines().take(rows.saturating_sub(1)) {
        screen.extend(line.chars().take(columns));
        screen += "\x1b[K\n";
    }
    screen + "\x1b[J"
}

/// Returns the rows and columns of the terminal at standard output.
fn terminal_size() -> Option<(usize, usize)> {
    // SAFETY: winsize consists of integers, so all zeros is a valid value.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes one winsize to the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    (result == 0 && size.ws_row > 0 && size.ws_col > 0)
        .then_some((size.ws_row.into(), size.ws_col.into()))
}

fn table(now: &[Snapshot], earlier: &[Snapshot]) -> Table {
    let mut table = Table::new(&COLUMNS);
    for snapshot in now {
        let status = match &snapshot.status {
            Ok(status) => status,
            Err(e) => {
                table.row([snapshot.key.key.clone(), String::new(), e.to_string()]);
                continue;
            }
        };
        let previous = poll::previous_status(earlier, snapshot);
        table.row(publisher_row(status, previous));
        for track in &status.tracks {
            table.row(track_row(status, track, previous));
        }
        for subscriber in &status.subscribers {
            table.row(subscriber_row(status, subscriber, previous));
        }
    }
    table
}

fn publisher_row(s: &PublisherStatus, previous: Option<&PublisherStatus>) -> Row {
    let has_frames = !s.caps.is_empty();
    let fps = previous.and_then(|p| s.fps_since(p)).filter(|_| has_frames);
    let held: u32 = s.subscribers.iter().map(|s| s.held).sum();
    [
        s.key.clone(),
        format::pid(s.pid),
        format::frame_caps(&s.caps),
        format::rate(fps),
        format::latency(has_frames.then_some(s.latency_ns)),
        String::new(),
        format!("{held}/{}", s.slots),
        s.dropped.to_string(),
        format!("{} {}", s.memory, format::bytes(s.bytes)),
    ]
}

fn track_row(s: &PublisherStatus, t: &TrackStatus, previous: Option<&PublisherStatus>) -> Row {
    [
        format!("  packets_{}", t.track),
        String::new(),
        format::codec(&t.caps).to_owned(),
        format::rate(previous.and_then(|p| s.packet_rate_since(p, t.track))),
        String::new(),
        String::new(),
        String::new(),
        t.oversized.to_string(),
        format::bytes(t.bytes),
    ]
}

fn subscriber_row(
    s: &PublisherStatus,
    subscriber: &SubscriberStatus,
    previous: Option<&PublisherStatus>,
) -> Row {
    let (name, pid) = (format!("  {}", subscriber.name), format::pid(subscriber.pid));
    let takes = format::takes(subscriber).to_owned();
    if subscriber.max_frames == 0 {
        // The publisher has no counters for a subscriber of packets.
        let mut row = Row::default();
        [row[0], row[1], row[2]] = [name, pid, takes];
        return row;
    }
    let slot_bytes = s.bytes / u64::from(s.slots.max(1));
    [
        name,
        pid,
        takes,
        format::rate(previous.and_then(|p| s.taken_since(p, subscriber.id))),
        format::latency(subscriber.latency_ns),
        subscriber.lag.to_string(),
        format!("{}/{}", subscriber.held, subscriber.max_frames),
        subscriber.skipped.to_string(),
        // The publisher reserves that many slots for this subscriber.
        format::bytes(slot_bytes * u64::from(subscriber.max_frames)),
    ]
}
