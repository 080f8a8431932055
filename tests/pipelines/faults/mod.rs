// SPDX-License-Identifier: LGPL-2.1-or-later
//! Processes under faults: publishers and subscribers are killed, stopped, continued, restarted, replaced and
//! sent random messages, by a schedule that a seed determines.
//!
//! Subscribers read every frame and every byte of every packet. Missed frames and packets have to be
//! counted, and a process that survived has to own the same resources as before.
//!
//! `CUFRAMES_SEED` repeats a schedule, `CUFRAMES_SECONDS` sets its duration, `CUFRAMES_CAMERAS` the number of
//! publishers. `make soak` prints the figures.

use std::time::{Duration, Instant};

use cuframes::sync::clock::now_ns;
use testing::TestDir;

mod actors;
mod publisher;
mod stage;
mod subscriber;

use stage::Stage;

/// Kinds of the subscribers of each camera. The first one lives from the beginning to the end.
const SUBSCRIBERS: [&str; 4] = ["strict", "newest", "packets", "strict"];

/// Where the test `child` is.
const MODULE: &str = module_path!();

/// Plays the role of a child.
#[test]
fn child() {
    let Some((role, dir)) = testing::role() else { return };
    match role.split(' ').collect::<Vec<_>>()[..] {
        ["publish", key, life, wide] => {
            publisher::publish(&dir, key, life.parse().unwrap(), wide == "wide");
        }
        ["subscribe", key, kind] => subscriber::subscribe(&dir, key, kind),
        _ => panic!("{role}?"),
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn processes_survive_faults() {
    let seed = setting("CUFRAMES_SEED").unwrap_or_else(|| now_ns() as u64 % 1_000_000);
    let time = Duration::from_secs(setting("CUFRAMES_SECONDS").unwrap_or(60));
    let cameras = setting("CUFRAMES_CAMERAS").unwrap_or(1);
    println!("CUFRAMES_SEED={seed}");
    let test = TestDir::no_timeout("faults");
    let mut stage = Stage::new(&test.dir, seed);
    for n in 0..cameras {
        stage.add_camera(format!("cam{n}"));
    }
    stage.recover();
    let began = Instant::now();
    while began.elapsed() < time {
        stage.round();
    }
    stage.end();
    // A publisher that is killed while it warms up leaves a key that is not used again.
    let files = test.files().into_iter().filter(|name| !name.starts_with("warm-"));
    assert_eq!(files.collect::<Vec<_>>(), [""; 0]);
    stage.figures.print(seed, began.elapsed());
}
