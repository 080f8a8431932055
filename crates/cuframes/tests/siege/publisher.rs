// SPDX-License-Identifier: LGPL-2.1-or-later
//! The publisher under siege.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use cuframes::memory::host::HostBackend;
use cuframes::{PacketInfo, Policy, Publisher, PublisherConfig, PublisherEvent, TrackConfig};
use testing::{TestDir, info, report, wait_for_parent};

use crate::honest::{FRAME_SIZE, HONEST, stamp, stamp_packet};
use crate::moment::Moment;
use crate::{INTERVAL, PATIENCE};

/// Packets from one keyframe to the next.
const GOP: u64 = 25;

/// Publishes so many frames and packets, one each [`INTERVAL`], and reports how many frames were published, how many were dropped,
/// the longest gap, and the longest time that a frame and a packet took, in µs.
pub(crate) fn run(dir: &Path, policy: &str, items: u64) {
    let test = TestDir::at_no_timeout(dir).config();
    let policy = match policy {
        "wait" => Policy::Wait(PATIENCE),
        _ => Policy::Drop,
    };
    let (sender, evicted) = channel();
    let config = PublisherConfig { policy, max_subscribers: 64, ..test };
    let publisher = Publisher::open(config, Arc::new(HostBackend), move |event| {
        if let PublisherEvent::SubscriberRemoved(subscriber, Some(reason)) = event
            && subscriber.name == HONEST
        {
            sender.send(reason).unwrap();
        }
    });
    let publisher = publisher.unwrap();
    publisher.set_format("video/x-raw,format=I420,width=640,height=480", FRAME_SIZE).unwrap();
    let track = TrackConfig { bytes: 4 << 20, ..TrackConfig::default() };
    let track = publisher.add_track(0, "video/x-h264", track).unwrap();
    report("ready");
    wait_for_parent();

    let (mut published, mut dropped) = (0, 0);
    let (mut longest_gap, mut longest_call) = (Duration::ZERO, Duration::ZERO);
    let mut last = Moment::now();
    for n in 0..items {
        let mut call = Moment::now();
        let began = call.time;
        match publisher.loan(FRAME_SIZE).unwrap() {
            Some(mut loan) => {
                stamp(&mut loan.bytes_mut()[..FRAME_SIZE], published + 1);
                published = publisher.publish(loan, &info(published + 1, FRAME_SIZE));
                longest_gap = longest_gap.max(last.lap().own);
            }
            None => {
                publisher.count_dropped();
                dropped += 1;
            }
        }
        let packet = PacketInfo { keyframe: n.is_multiple_of(GOP), ..Default::default() };
        assert_eq!(track.push(packet, &stamp_packet(n)), Ok(n));
        longest_call = longest_call.max(call.lap().own);
        // Never less than an interval, so that subscribers do not pay for a delay of the publisher.
        std::thread::sleep(INTERVAL.saturating_sub(began.elapsed()));
    }
    publisher.end_of_frames();
    track.end();
    let [gap_us, call_us] = [longest_gap, longest_call].map(|time| time.as_micros());
    report(format!("{published} {dropped} {gap_us} {call_us}"));
    wait_for_parent();
    drop(publisher);
    let evicted: Vec<_> = evicted.try_iter().collect();
    assert!(evicted.is_empty(), "{evicted:?}");
    report("closed");
    wait_for_parent();
}
