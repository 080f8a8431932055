// SPDX-License-Identifier: LGPL-2.1-or-later
//! Which packets a track keeps, and which it drops.

use std::time::{Duration, Instant};

use cuframes::{Counters, Next, PushError, Start};

use super::{LONG, Source, bounds, info, room};
use testing::until;

#[test]
fn slow_reader_continues_at_keyframe() {
    let source = Source::new("packets-slow", bounds(9 * room(100), LONG));
    let push = |n: u64| {
        for seq in n..n + 20 {
            let data = [seq as u8; 100];
            assert_eq!(source.track.push(info(seq.is_multiple_of(4)), &data), Ok(seq));
        }
    };
    let mut reader = source.reader(Start::default());
    source.track.push(info(true), &[0; 100]).unwrap();
    assert_eq!(reader.packet().seq, 0);
    push(1);
    // 9 packets fit: those from 12 to 20.
    let packet = reader.packet();
    assert_eq!((packet.seq, packet.lost, packet.info.keyframe), (20, 19, true));
    push(21);
    let packet = reader.packet();
    assert_eq!((packet.seq, packet.lost, packet.info.keyframe), (40, 19, true));
    source.track.push(info(false), &[41; 100]).unwrap();
    let packet = reader.packet();
    assert_eq!((packet.seq, packet.lost, &packet.data[..]), (41, 0, &[41; 100][..]));
    assert_eq!(reader.packets.counters(), Counters { received: 4, skipped: 38 });

    // Without a keyframe in the ring, the reader waits for one.
    for seq in 42..60 {
        source.track.push(info(false), &[seq; 100]).unwrap();
    }
    assert!(matches!(reader.poll(), Next::TimedOut));
    for seq in 60..65 {
        source.track.push(info(seq == 62), &[seq; 100]).unwrap();
    }
    let packet = reader.packet();
    assert_eq!((packet.seq, packet.lost, packet.info.keyframe), (62, 20, true));
}

#[test]
fn oversized_packet_is_refused_with_its_dependents() {
    let source = Source::new("packets-big", bounds(room(1000), LONG));
    let mut reader = source.reader(Start::default());
    let push = |keyframe, len| source.track.push(info(keyframe), &vec![len as u8; len]);
    assert_eq!(push(true, 100), Ok(0));
    assert_eq!(reader.packet().data.len(), 100);
    assert_eq!(push(false, 1001), Err(PushError::TooBig));
    assert_eq!(push(false, 100), Err(PushError::BrokenGop));
    assert_eq!(push(true, 5000), Err(PushError::TooBig));
    assert_eq!(push(false, 100), Err(PushError::BrokenGop));
    assert_eq!(push(true, 200), Ok(5));
    assert_eq!(push(false, 101), Ok(6));
    let stats = source.publisher.stats().tracks[0];
    assert_eq!((stats.published, stats.buffered), (3, 3));
    assert_eq!((stats.oversized, stats.broken_gop, stats.truncated_gops), (2, 2, 0));
    for (seq, lost, len) in [(5, 4, 200), (6, 0, 101)] {
        let packet = reader.packet();
        assert_eq!((packet.seq, packet.lost, packet.data.len()), (seq, lost, len));
    }
    // A packet of exactly the ring's size fits.
    assert_eq!(push(true, 1000), Ok(7));
    assert_eq!(reader.packet().data.len(), 1000);
    assert_eq!(source.buffered(), 1);
    assert_eq!(reader.packets.counters(), Counters { received: 4, skipped: 4 });
}

/// The ring is limited in bytes only.
#[test]
fn gop_may_have_many_packets() {
    const PACKETS: u64 = 50_000;
    let source = Source::new("packets-many", bounds(16 << 20, LONG));
    source.push("K-K");
    for seq in 3..PACKETS {
        assert_eq!(source.track.push(info(false), &seq.to_ne_bytes()), Ok(seq));
    }
    let mut reader = source.reader(Start::default());
    assert_eq!(reader.packet().seq, 2);
    for seq in 3..PACKETS {
        let packet = reader.packet();
        assert_eq!((packet.seq, &packet.data[..]), (seq, &seq.to_ne_bytes()[..]));
    }
    assert_eq!(source.publisher.stats().tracks[0].truncated_gops, 0);
}

#[test]
fn gop_that_does_not_fit_is_counted_once() {
    let source = Source::new("packets-cut", bounds(10 * room(1), LONG));
    source.push("K");
    let mut early = source.reader(Start::default());
    assert_eq!(early.packet().seq, 0);
    for seq in 1..30 {
        source.push("-");
        assert_eq!(early.packet().seq, seq);
    }
    assert_eq!(source.publisher.stats().tracks[0].truncated_gops, 1);
    // A new reader finds no keyframe to begin at. One that has begun continues.
    let mut late = [Start::LatestKeyframe, Start::OldestKeyframe].map(|start| source.reader(start));
    for reader in &mut late {
        assert!(matches!(reader.poll(), Next::TimedOut));
    }
    source.push("-K--");
    assert_eq!(early.packet().seq, 30);
    for reader in late.iter_mut().chain([&mut early]) {
        let packet = reader.packet();
        assert_eq!((packet.seq, packet.lost), (31, 0));
    }
    assert_eq!(source.publisher.stats().tracks[0].truncated_gops, 1);
}

#[test]
fn caps_of_overwritten_packets_are_dropped() {
    let source = Source::new("packets-forgotten", bounds(8 * room(1), LONG));
    let mut reader = source.reader(Start::default());
    for n in 0..300 {
        source.track.set_caps(&format!("caps {n}")).unwrap();
        source.push("K");
        let packet = reader.packet();
        assert_eq!(*packet.caps, format!("caps {n}"));
    }
    let mut oldest = source.reader(Start::OldestKeyframe);
    for n in 292..300 {
        assert_eq!(*oldest.packet().caps, format!("caps {n}"));
    }
}

#[test]
fn packets_are_kept_for_their_time() {
    let time = Duration::from_millis(50);
    let source = Source::new("packets-time", bounds(1 << 20, time));
    source.push("K---K---K---");
    let pushed = Instant::now();
    until(|| pushed.elapsed() > time);
    // The newest GOP stays at any age.
    source.push("-");
    assert_eq!(source.buffered(), 5);
    let pushed = Instant::now();
    until(|| pushed.elapsed() > time);
    let keyframe = Instant::now();
    source.push("K");
    assert_eq!(source.buffered(), 6);
    assert_eq!(source.reader(Start::OldestKeyframe).packet().seq, 8);
    // The GOP before stays until the newest covers the time, which it may already do on a busy machine.
    source.push("-");
    let buffered = source.buffered();
    assert!(buffered == 7 || keyframe.elapsed() >= time && buffered == 2, "{buffered}");
    let pushed = Instant::now();
    until(|| pushed.elapsed() > time);
    source.push("-");
    assert_eq!(source.buffered(), 3);
    assert_eq!(source.reader(Start::OldestKeyframe).packet().seq, 13);

    let long = source.publisher.add_track(1, "b", bounds(1 << 20, LONG)).unwrap();
    let pushed = Instant::now();
    while pushed.elapsed() <= time {
        long.push(info(true), b"K").unwrap();
        std::thread::yield_now();
    }
    let stats = source.publisher.stats().tracks[1];
    assert_eq!(stats.buffered, stats.published.min((1 << 20) / room(1)));
}
