//! `cuframes top`

use std::io::{self, IsTerminal};
use std::os::fd::AsRawFd;
use std::time::Duration;

use cuframes::{Mode, PublisherStatus};
use nix::libc;

use crate::look::{self, Look};
use crate::table::{Align, Table};
use crate::{Options, print};

pub fn run(options: &Options, interval: Duration, count: Option<u64>) -> io::Result<bool> {
    let terminal = io::stdout().is_terminal();
    let mut before = look::all(options);
    let mut shown = 0;
    while count.is_none_or(|count| shown < count) {
        // The first picture comes early: it needs two looks.
        std::thread::sleep(if shown == 0 {
            interval.min(Duration::from_secs(1))
        } else {
            interval
        });
        let now = look::all(options);
        let picture =
            if now.is_empty() { look::no_keys(options) } else { table(&now, &before).to_string() };
        print(&if terminal { over(&picture) } else { picture + "\n" })?;
        before = now;
        shown += 1;
    }
    Ok(true)
}

/// The picture over the one before, each line as long as the terminal is wide at most.
fn over(picture: &str) -> String {
    let (rows, columns) = terminal_size().unwrap_or((usize::MAX, usize::MAX));
    let mut text = String::from("\x1b[H");
    for line in picture.lines().take(rows.saturating_sub(1)) {
        text.extend(line.chars().take(columns));
        text += "\x1b[K\n";
    }
    text + "\x1b[J"
}

fn terminal_size() -> Option<(usize, usize)> {
    // SAFETY: all zeros is a valid winsize.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a winsize, where this is a terminal.
    let asked = unsafe { libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    (asked == 0 && size.ws_row > 0 && size.ws_col > 0)
        .then_some((size.ws_row.into(), size.ws_col.into()))
}

fn table(now: &[Look], earlier: &[Look]) -> Table {
    let mut table = Table::new(&[
        ("KEY, SUBSCRIBER", Align::Left),
        ("PID", Align::Right),
        ("TAKES", Align::Left),
        ("FPS", Align::Right),
        ("LATENCY", Align::Right),
        ("LAG", Align::Right),
        ("HELD", Align::Right),
        ("DROPS", Align::Right),
        ("MEMORY", Align::Right),
    ]);
    for look in now {
        match &look.status {
            Ok(status) => rows(&mut table, status, look::before(earlier, look)),
            Err(e) => table.row([look.key.key.clone(), String::new(), e.to_string()]),
        }
    }
    table
}

fn rows(table: &mut Table, s: &PublisherStatus, before: Option<&PublisherStatus>) {
    let none = String::new;
    let fps = before.and_then(|b| s.fps_since(b)).filter(|_| !s.caps.is_empty());
    let held: u32 = s.subscribers.iter().map(|s| s.held).sum();
    table.row([
        s.key.clone(),
        look::pid(s.pid),
        look::frames(&s.caps),
        look::rate(fps),
        look::latency((!s.caps.is_empty()).then_some(s.latency_ns)),
        none(),
        format!("{held}/{}", s.slots),
        s.dropped.to_string(),
        format!("{} {}", s.memory, look::bytes(s.bytes)),
    ]);
    for t in &s.tracks {
        table.row([
            format!("  packets_{}", t.track),
            none(),
            look::packets(&t.caps).to_owned(),
            look::rate(before.and_then(|b| s.packet_rate_since(b, t.track))),
            none(),
            none(),
            none(),
            t.too_big.to_string(),
            look::bytes(t.bytes),
        ]);
    }
    for p in &s.subscribers {
        let frames = p.max_frames > 0;
        let takes = match p.mode {
            _ if !frames => "packets",
            Mode::Newest => "newest",
            Mode::Strict => "strict",
        };
        let only = |text: String| if frames { text } else { none() };
        table.row([
            format!("  {}", p.name),
            look::pid(p.pid),
            takes.into(),
            only(look::rate(before.and_then(|b| s.taken_since(b, p.id)))),
            only(look::latency(p.latency_ns)),
            only(p.lag.to_string()),
            only(format!("{}/{}", p.held, p.max_frames)),
            only(p.skipped.to_string()),
            // The publisher has that many slots for it.
            only(look::bytes(s.bytes / u64::from(s.slots.max(1)) * u64::from(p.max_frames))),
        ]);
    }
}
