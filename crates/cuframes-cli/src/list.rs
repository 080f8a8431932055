//! `cuframes list`

use std::io;
use std::time::Duration;

use cuframes::PublisherStatus;

use crate::table::{Align, Table};
use crate::{Options, complain, look, print};

/// Frames a second are measured over this long.
const MEASURE: Duration = Duration::from_secs(1);

pub fn run(options: &Options) -> io::Result<bool> {
    let earlier = look::all(options);
    if earlier.is_empty() {
        eprint!("{}", look::no_keys(options));
        return Ok(true);
    }
    std::thread::sleep(MEASURE);
    let mut table = Table::new(&[
        ("KEY", Align::Left),
        ("FRAMES", Align::Left),
        ("FPS", Align::Right),
        ("MEMORY", Align::Left),
        ("PACKETS", Align::Left),
        ("SUBSCRIBERS", Align::Left),
        ("PUBLISHER", Align::Left),
    ]);
    let mut all_well = true;
    for now in look::all(options) {
        match &now.status {
            Ok(status) => table.row(row(status, look::before(&earlier, &now))),
            Err(e) => {
                all_well = false;
                complain(e);
            }
        }
    }
    print(&table.to_string())?;
    Ok(all_well)
}

fn row(status: &PublisherStatus, before: Option<&PublisherStatus>) -> [String; 7] {
    let packets: Vec<_> = status.tracks.iter().map(|t| look::packets(&t.caps)).collect();
    let frames = !status.caps.is_empty();
    let fps = before.and_then(|b| status.fps_since(b)).filter(|_| frames);
    [
        status.key.clone(),
        look::frames(&status.caps),
        look::rate(fps),
        if frames { status.memory.to_string() } else { "-".into() },
        if packets.is_empty() { "-".into() } else { packets.join(" ") },
        format!("{} of {}", status.subscribers.len(), status.max_subscribers),
        format!("{} (pid {})", status.name, look::pid(status.pid)),
    ]
}
