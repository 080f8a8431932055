// SPDX-License-Identifier: LGPL-2.1-or-later
//! The honest subscribers, and the numbers in what they receive.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use cuframes::{Counters, Frame, Mode, Next, Start, Wait};
use testing::{FrameLog, TestDir, TestSubscriber, report, wait_for_parent};

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

/// The longest time between two items.
struct LongestGap {
    last: Option<Instant>,
    longest: Duration,
}

impl LongestGap {
    fn new() -> Self {
        Self { last: None, longest: Duration::ZERO }
    }

    fn pass(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.longest = self.longest.max(now - last);
        }
    }
}

/// Takes everything to the end of the stream, and reports how much was received and lost, and the longest gap in µs.
pub(crate) fn run(dir: &Path, what: &str, mode: &str) {
    let test = TestDir::at_no_timeout(dir);
    let mode = if mode == "strict" { Mode::Strict } else { Mode::Newest };
    let viewer = test.subscriber(|c| {
        c.mode = mode;
        c.name = HONEST.into();
        c.max_frames = if what == "frames" { 2 } else { 0 };
    });
    let (taken, longest) = if what == "frames" { frames(viewer) } else { packets(&viewer) };
    report(format!("{} {} {}", taken.received, taken.skipped, longest.as_micros()));
    wait_for_parent();
}

fn frames(mut viewer: TestSubscriber) -> (Counters, Duration) {
    report("ready");
    let (gap, newest) = (Cell::new(LongestGap::new()), Cell::new(0));
    let log = FrameLog::record(&mut viewer, |frame| {
        // Frames are read again before they are released.
        if frame.seq > newest.replace(frame.seq.max(newest.get())) {
            let mut so_far = gap.replace(LongestGap::new());
            so_far.pass();
            gap.set(so_far);
        }
        read(frame)
    });
    // They joined before the first frame.
    let skipped = log.skipped + log.first - 1;
    (Counters { received: log.received, skipped }, gap.into_inner().longest)
}

fn packets(viewer: &TestSubscriber) -> (Counters, Duration) {
    let mut reader = viewer.subscriber.packets(0, Start::NextKeyframe);
    report("ready");
    let (mut next, mut gap) = (0, LongestGap::new());
    loop {
        match reader.next(&Wait::default()).unwrap() {
            Next::Item(packet) => {
                assert_eq!(packet.data, stamp_packet(packet.seq), "a torn packet");
                assert_eq!(packet.seq, next + packet.lost);
                next = packet.seq + 1;
                gap.pass();
            }
            Next::Eos => return (reader.counters(), gap.longest),
            other => panic!("{other:?}"),
        }
    }
}
