// SPDX-License-Identifier: LGPL-2.1-or-later
//! `cuframes list`: one line for each live key.

use std::io;
use std::time::Duration;

use cuframes::info::PublisherStatus;

use crate::table::{Align, Table};
use crate::{Options, format, poll, print, print_error};

/// The time over which frame rates are measured.
const MEASURE: Duration = Duration::from_secs(1);

const COLUMNS: [(&str, Align); 7] = [
    ("KEY", Align::Left),
    ("FRAMES", Align::Left),
    ("FPS", Align::Right),
    ("MEMORY", Align::Left),
    ("PACKETS", Align::Left),
    ("SUBSCRIBERS", Align::Left),
    ("PUBLISHER", Align::Left),
];

/// Prints the table of live keys. Returns whether all publishers responded.
pub(crate) fn run(options: &Options) -> io::Result<bool> {
    let earlier = poll::poll_all(options);
    if earlier.is_empty() {
        eprint!("{}", poll::no_keys_message(options));
        return Ok(true);
    }
    std::thread::sleep(MEASURE);
    let mut table = Table::new(&COLUMNS);
    let mut all_respond = true;
    for snapshot in poll::poll_all(options) {
        match &snapshot.status {
            Ok(status) => table.row(row(status, poll::previous_status(&earlier, &snapshot))),
            Err(e) => {
                all_respond = false;
                print_error(e);
            }
        }
    }
    print(&table.to_string())?;
    Ok(all_respond)
}

fn row(status: &PublisherStatus, previous: Option<&PublisherStatus>) -> [String; COLUMNS.len()] {
    let codecs: Vec<_> = status.tracks.iter().map(|t| format::codec(&t.caps)).collect();
    let has_frames = !status.caps.is_empty();
    let fps = previous.and_then(|p| status.fps_since(p)).filter(|_| has_frames);
    [
        status.key.clone(),
        format::frame_caps(&status.caps),
        format::rate(fps),
        if has_frames { status.memory.to_string() } else { "-".into() },
        if codecs.is_empty() { "-".into() } else { codecs.join(" ") },
        format!("{} of {}", status.subscribers.len(), status.max_subscribers),
        format!("{} (pid {})", status.name, format::pid(status.pid)),
    ]
}
