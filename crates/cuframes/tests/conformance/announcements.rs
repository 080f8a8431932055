// SPDX-License-Identifier: LGPL-2.1-or-later
//! Newcomers receive all that was announced before, although it does not fit into their socket.

use std::sync::Arc;

use cuframes::memory::host::HostBackend;
use cuframes::{PacketInfo, Publisher, Start, TrackConfig, Wait};
use testing::{SIZE, TestDir, fill, item, publish};

const NEWCOMERS: u64 = 3;

fn publish_next(publisher: &Publisher, n: u64) {
    publish(publisher, n, |loan, n| fill(loan.bytes_mut(), n));
}

/// Newcomers join a publisher of tracks with caps of `caps_len` bytes, and receive a frame and a packet of the last one.
fn newcomers_join(name: &str, tracks: u32, caps_len: usize) {
    let test = TestDir::new(name);
    let publisher = test.publisher(Arc::new(HostBackend), |_| {});
    let caps = "c".repeat(caps_len);
    let config = TrackConfig { bytes: 65536, ..TrackConfig::default() };
    let add = |track| publisher.add_track(track, &caps, config).unwrap();
    let all: Vec<_> = (0..tracks).map(add).collect();
    let keyframe = PacketInfo { keyframe: true, ..Default::default() };
    all.last().unwrap().push(keyframe, b"packet").unwrap();
    for n in 1..=NEWCOMERS {
        let mut newcomer = test.subscriber(|_| {});
        let mut reader = newcomer.subscriber.packets(tracks - 1, Start::LatestKeyframe);
        publish_next(&publisher, n);
        assert_eq!(newcomer.frame().seq, n);
        let packet = item(reader.next(&Wait::default()).unwrap());
        assert_eq!((&*packet.data, &*packet.caps), (&b"packet"[..], &*caps));
    }
}

#[test]
fn newcomer_receives_long_caps() {
    newcomers_join("announced-long", 8, 30_000);
}

#[test]
fn newcomer_receives_many_tracks() {
    newcomers_join("announced-many", 250, 200);
}

#[test]
fn formats_without_frames_keep_no_newcomer_out() {
    let test = TestDir::new("announced-formats");
    let publisher = test.publisher(Arc::new(HostBackend), |_| {});
    let caps = |n| format!("video/x-raw, n={n}");
    (0..2000).for_each(|n| publisher.set_format(&caps(n), SIZE).unwrap());
    for n in 1..=NEWCOMERS {
        let mut newcomer = test.subscriber(|_| {});
        publish_next(&publisher, n);
        let frame = newcomer.frame();
        assert_eq!((frame.seq, &*frame.caps), (n, &*caps(1999)));
    }
}
