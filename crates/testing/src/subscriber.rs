// SPDX-License-Identifier: LGPL-2.1-or-later
//! Frames that show tearing, and a subscriber that checks them.

use std::time::Duration;

use cuframes::{Counters, Frame, FrameInfo, Interrupt, Loan, Next, Publisher, Subscriber, Wait};

use crate::SIZE;

/// A subscriber and the interrupt that its waits need.
pub struct TestSubscriber {
    /// The subscriber.
    pub subscriber: Subscriber,
    /// Ends its waits.
    pub interrupt: Interrupt,
}

impl TestSubscriber {
    /// Waits for the next frame, or the end of the stream.
    pub fn next_frame(&mut self) -> Next<Frame> {
        self.subscriber.next_frame(&Wait::default()).unwrap()
    }

    /// Returns the next frame if there is one, without waiting.
    pub fn poll(&mut self) -> Next<Frame> {
        let wait = Wait { timeout: Some(Duration::ZERO), past_eos: true, ..Wait::default() };
        self.subscriber.next_frame(&wait).unwrap()
    }

    /// Waits for a frame.
    #[track_caller]
    pub fn frame(&mut self) -> Frame {
        item(self.next_frame())
    }
}

/// Returns the item, which has to be there.
#[track_caller]
pub fn item<T: std::fmt::Debug>(next: Next<T>) -> T {
    match next {
        Next::Item(item) => item,
        other => panic!("an item was expected, not {other:?}"),
    }
}

/// Writes the number to every word.
pub fn fill(bytes: &mut [u8], n: u64) {
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&n.to_ne_bytes());
    }
}

/// Returns the number that is in every word; `None` if the words differ.
pub fn number(bytes: &[u8]) -> Option<u64> {
    let mut words = bytes.chunks_exact(8).map(|w| u64::from_ne_bytes(w.try_into().unwrap()));
    let n = words.next()?;
    words.all(|w| w == n).then_some(n)
}

/// Publishes frame `n`, for which there has to be a slot.
#[track_caller]
pub fn publish(publisher: &Publisher, n: u64, write: impl FnOnce(&mut Loan, u64)) {
    let loan = publisher.loan(SIZE).unwrap();
    let mut loan = loan.expect("there is a slot while every subscriber keeps within its credit");
    write(&mut loan, n);
    assert_eq!(publisher.publish(loan, &info(n, SIZE)), n);
}

/// Returns the record of frame `n`, which has the number as well.
pub fn info(n: u64, size: usize) -> FrameInfo {
    FrameInfo { pts: Some(n as i64), size, ..Default::default() }
}

/// What a subscriber received of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLog {
    /// Number of the first frame.
    pub first: u64,
    /// Number of the last frame.
    pub last: u64,
    /// Frames that were received.
    pub received: u64,
    /// Frames that were skipped after the first.
    pub skipped: u64,
}

impl FrameLog {
    /// Takes frames to the end of the stream and checks each of them.
    ///
    /// Each frame is whole on arrival, and still whole after it was held for a while. Frames are in
    /// order, and each gap equals the number of skipped frames that the next frame reports.
    pub fn record(subscriber: &mut TestSubscriber, read: impl Fn(&Frame) -> Option<u64>) -> Self {
        let check = |frame: &Frame| {
            assert_eq!(read(frame), Some(frame.seq), "a torn frame");
            assert_eq!(frame.info.pts, Some(frame.seq as i64), "another frame's record");
        };
        let mut log = Self { first: 0, last: 0, received: 0, skipped: 0 };
        let mut held: Option<Frame> = None;
        loop {
            match subscriber.next_frame() {
                Next::Item(frame) => {
                    check(&frame);
                    log.add(&frame);
                    if let Some(before) = held.replace(frame) {
                        check(&before);
                    }
                }
                Next::Eos => break,
                other => panic!("the stream should have ended: {other:?}"),
            }
        }
        held.iter().for_each(check);
        assert_eq!(log.received + log.skipped, log.last - log.first + 1);
        assert_eq!(
            subscriber.subscriber.counters(),
            Counters { received: log.received, skipped: log.skipped }
        );
        log
    }

    fn add(&mut self, frame: &Frame) {
        if self.received == 0 {
            self.first = frame.seq;
            assert_eq!(frame.skipped, 0);
        } else {
            assert!(frame.seq > self.last);
            assert_eq!(frame.skipped, frame.seq - self.last - 1);
        }
        self.last = frame.seq;
        self.received += 1;
        self.skipped += frame.skipped;
    }
}
