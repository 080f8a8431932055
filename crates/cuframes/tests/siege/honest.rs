// SPDX-License-Identifier: LGPL-2.1-or-later
//! The honest subscribers, and the numbers in the frames and packets that they receive.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::time::Duration;

use cuframes::{Frame, Mode, Next, Start, Wait};
use testing::{FrameLog, TestDir, TestSubscriber, report, wait_for_parent};

use crate::INTERVAL;
use crate::moment::{Elapsed, Moment};

/// What each of them takes, and its mode.
pub(crate) const ALL: &[[&str; 2]] = &[
    ["frames", "strict"],
    ["frames", "strict"],
    ["frames", "strict"],
    ["frames", "newest"],
    ["frames", "newest"],
    ["frames", "newest"],
    ["packets", "strict"],
    ["packets", "newest"],
];

/// The name of all of them.
pub(crate) const HONEST: &str = "honest";

/// Bytes of a frame of 640×480 in I420.
pub(crate) const FRAME_SIZE: usize = 640 * 480 * 3 / 2;
/// Bytes of a frame that begin with its number.
const BLOCK: usize = 4096;

/// Writes the number to the start of each block, and fills the rest of the block with a byte that follows from it.
pub(crate) fn stamp(frame: &mut [u8], n: u64) {
    frame.fill(filler(n));
    frame.chunks_mut(BLOCK).for_each(|block| block[..8].copy_from_slice(&n.to_ne_bytes()));
}

fn filler(n: u64) -> u8 {
    (n % 251) as u8
}

/// Returns the number that was written; `None` if the frame is torn.
fn read(frame: &Frame) -> Option<u64> {
    let bytes = frame.bytes().unwrap();
    let number = |block: &[u8]| u64::from_ne_bytes(block[..8].try_into().unwrap());
    let n = number(bytes);
    let expected = [filler(n); BLOCK];
    let intact = |block: &[u8]| number(block) == n && block[8..] == expected[8..block.len()];
    bytes.chunks(BLOCK).all(intact).then_some(n)
}

/// Returns a packet whose length and content follow from its number.
pub(crate) fn stamp_packet(n: u64) -> Vec<u8> {
    n.to_ne_bytes().repeat(100 + n as usize % 200)
}

/// What a subscriber reports.
struct Log {
    received: u64,
    lost: u64,
    /// Lost items that the subscriber could not take for lack of a CPU.
    excused: u64,
    /// The longest time between two items.
    longest_gap: Duration,
    last: Option<Moment>,
}

impl Log {
    fn new() -> Self {
        Self { received: 0, lost: 0, excused: 0, longest_gap: Duration::ZERO, last: None }
    }

    /// Notes an item, before which others were lost.
    fn note(&mut self, lost: u64) {
        let elapsed = match &mut self.last {
            Some(last) => last.lap(),
            None => {
                self.last = Some(Moment::now());
                Elapsed::default()
            }
        };
        // Rounded to the nearest number of items.
        let missed = ((elapsed.waited + INTERVAL / 2).as_nanos() / INTERVAL.as_nanos()) as u64;
        self.received += 1;
        self.lost += lost;
        self.excused += lost.min(missed);
        self.longest_gap = self.longest_gap.max(elapsed.own);
    }
}

/// Takes everything to the end of the stream, and reports how much was received and lost, how much of that for lack of a
/// CPU, and the longest gap in µs.
pub(crate) fn run(dir: &Path, what: &str, mode: &str) {
    let test = TestDir::at_no_timeout(dir);
    let mode = if mode == "strict" { Mode::Strict } else { Mode::Newest };
    let viewer = test.subscriber(|c| {
        c.mode = mode;
        c.name = HONEST.into();
        c.max_frames = if what == "frames" { 2 } else { 0 };
    });
    let log = if what == "frames" { frames(viewer) } else { packets(&viewer) };
    let Log { received, lost, excused, longest_gap, .. } = log;
    report(format!("{received} {lost} {excused} {}", longest_gap.as_micros()));
    wait_for_parent();
}

fn frames(mut viewer: TestSubscriber) -> Log {
    report("ready");
    let (log, newest) = (RefCell::new(Log::new()), Cell::new(0));
    FrameLog::record(&mut viewer, |frame| {
        // Each frame is read again before it is released.
        if frame.seq > newest.get() {
            // The subscriber joined before the first frame.
            log.borrow_mut().note(frame.seq - newest.replace(frame.seq) - 1);
        }
        read(frame)
    });
    log.into_inner()
}

fn packets(viewer: &TestSubscriber) -> Log {
    let mut reader = viewer.subscriber.packets(0, Start::NextKeyframe);
    report("ready");
    let (mut next, mut log) = (0, Log::new());
    loop {
        match reader.next(&Wait::default()).unwrap() {
            Next::Item(packet) => {
                assert_eq!(packet.data, stamp_packet(packet.seq), "a torn packet");
                assert_eq!(packet.seq, next + packet.lost);
                next = packet.seq + 1;
                log.note(packet.lost);
            }
            Next::Eos => return log,
            other => panic!("{other:?}"),
        }
    }
}
