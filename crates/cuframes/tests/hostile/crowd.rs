// SPDX-License-Identifier: LGPL-2.1-or-later
//! Many hostile subscribers: the publisher always has a slot, and an honest subscriber receives every frame.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cuframes::{Mode, Policy};
use testing::raw::{RawSubscriber, at, hello_as};
use testing::{TestDir, until};

use crate::subscriber::Stage;

const FRAMES: usize = 200;

/// Ends the attack, also when a check fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `attack` again and again in a thread, while frames are published and checked.
fn check_during(stage: &mut Stage<'_>, mut attack: impl FnMut() + Send) {
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (stop, rounds) = (&stop, &rounds);
        let _end = End(stop);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                attack();
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..FRAMES {
            let before = rounds.load(Ordering::Relaxed);
            stage.check();
            until(|| rounds.load(Ordering::Relaxed) > before);
        }
    });
}

/// A subscriber joins with the largest credit and leaves at once, over and over.
#[test]
fn join_storm_costs_no_frame() {
    let test = TestDir::new("hostile-storm");
    let mut stage = Stage::new(&test, |_| {});
    let dir = test.dir.clone();
    check_during(&mut stage, move || {
        drop(RawSubscriber::join(&dir, &hello_as(Mode::Newest, 8, "guest")));
        std::thread::sleep(Duration::from_micros(100));
    });
}

/// Pages that claim all slots, release them and claim them again, far over their credit. Evicted subscribers join again.
fn flapping_pages_cost_no_frame(name: &str, policy: Policy) {
    let test = TestDir::new(name);
    let mut stage = Stage::new(&test, |c| c.policy = policy);
    let dir = test.dir.clone();
    let (mut crowd, mut round) = (Vec::new(), 0);
    check_during(&mut stage, move || {
        if crowd.len() == 12 {
            crowd.remove(0);
        }
        crowd.extend(RawSubscriber::join(&dir, &hello_as(Mode::Newest, 1, "flapping")));
        for RawSubscriber { page, .. } in &crowd {
            round += 1;
            let claim = if round % 2 == 0 { 0 } else { round };
            (at::CLAIMS / 8..page.words()).for_each(|word| page.set(word * 8, &[claim]));
        }
    });
}

#[test]
fn flapping_pages_cost_no_frame_with_policy_drop() {
    flapping_pages_cost_no_frame("hostile-flap-drop", Policy::Drop);
}

#[test]
fn flapping_pages_cost_no_frame_with_policy_wait() {
    flapping_pages_cost_no_frame("hostile-flap-wait", Policy::Wait(Duration::from_secs(60)));
}
