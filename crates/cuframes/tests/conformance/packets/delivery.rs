// SPDX-License-Identifier: LGPL-2.1-or-later
//! Packets, their caps and the end of a track arrive as they were published.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cuframes::protocol::wire::MAX_CAPS;
use cuframes::{
    Counters, Error, Next, PacketInfo, ReferenceTimestamp, RefusalReason, Start, TrackConfig, Wait,
};

use super::{LONG, Reader, Source, bounds, info};
use crate::fixture::asleep;
use crate::formats::rejected_caps;
use testing::item;

/// Returns the bytes of packet `seq`: up to a few kB, some much longer, some empty.
fn content(seq: u64) -> Vec<u8> {
    let mut state = (seq + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    random();
    let most = if seq % 50 == 7 { 60_000 } else { 3_000 };
    let len = if seq % 97 == 5 { 0 } else { random() as usize % most };
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(random().to_ne_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[test]
fn packets_arrive_byte_for_byte() {
    const PACKETS: u64 = 10_000;
    // Some 200 packets fit, so that the ring wraps often.
    let source = Source::new("packets-bytes", bounds(512 << 10, LONG));
    // The first packets may be there before the reader starts.
    let mut all = source.reader(Start::OldestKeyframe);
    // It reads as fast as it can, and the publisher does not wait.
    let mut some = source.reader(Start::default());
    let progress = Arc::new(AtomicU64::new(0));
    let done = progress.clone();
    let all = std::thread::spawn(move || {
        for seq in 0..PACKETS {
            let packet = all.packet();
            assert_eq!((packet.seq, packet.lost), (seq, 0));
            assert_eq!(packet.info.keyframe, seq.is_multiple_of(25));
            assert_eq!(packet.info.pts, Some(seq as i64));
            assert!(packet.data == content(seq), "packet {seq} is not as it was pushed");
            done.store(seq + 1, Ordering::Release);
        }
        assert!(matches!(all.next(), Next::Eos));
    });
    let some = std::thread::spawn(move || {
        let (mut next, mut received, mut lost) = (0, 0, 0);
        loop {
            let packet = match some.next() {
                Next::Item(packet) => packet,
                Next::Eos => break,
                other => panic!("{other:?}"),
            };
            assert!(packet.data == content(packet.seq), "packet {} is torn", packet.seq);
            if received > 0 {
                assert_eq!(packet.lost, packet.seq - next);
            }
            assert!(packet.lost == 0 && received > 0 || packet.info.keyframe);
            next = packet.seq + 1;
            received += 1;
            lost += packet.lost;
            // The slowest part.
            std::thread::yield_now();
        }
        assert_eq!(some.packets.counters(), Counters { received, skipped: lost + PACKETS - next });
    });
    for seq in 0..PACKETS {
        // The publisher stays ahead by no more than fits into the ring.
        while progress.load(Ordering::Acquire) + 50 < seq && !all.is_finished() {
            std::thread::yield_now();
        }
        let info = PacketInfo { pts: Some(seq as i64), ..info(seq.is_multiple_of(25)) };
        assert_eq!(source.track.push(info, &content(seq)), Ok(seq));
    }
    source.track.end();
    all.join().unwrap();
    some.join().unwrap();
}

#[test]
fn reference_timestamps_cross() {
    let source = Source::new("packets-references", bounds(1 << 20, LONG));
    let mut reader = source.reader(Start::default());
    let reference = |clock: &str, timestamp, duration| ReferenceTimestamp {
        clock: clock.into(),
        timestamp,
        duration,
    };
    let ntp = reference("timestamp/x-ntp", 3_941_000_000_123_456_789, None);
    let unix = reference("timestamp/x-unix", 1_732_000_000_987_654_321, Some(40_000_000));
    let all = [vec![], vec![ntp.clone()], vec![ntp, unix, reference("", 0, Some(0))]];
    for (references, len) in all.iter().flat_map(|r| [0, 1, 8, 13].map(|len| (r, len))) {
        let data = vec![7; len];
        let info = PacketInfo { references: references.clone(), ..info(true) };
        source.track.push(info, &data).unwrap();
        let packet = reader.packet();
        assert_eq!((&packet.info.references, &packet.data), (references, &data));
    }
}

#[test]
fn caps_change_at_their_packet() {
    let source = Source::new("packets-caps", bounds(1 << 20, LONG));
    let mut at_once = source.reader(Start::default());
    let mut later = source.reader(Start::OldestKeyframe);
    // Each caps are those of 6 packets. Some are replaced before the first packet.
    let mut expected = VecDeque::new();
    for caps in ["a", "b", "-c", "d"] {
        match caps {
            "a" => {}
            "-c" => {
                source.track.set_caps("never used").unwrap();
                source.track.set_caps(caps).unwrap();
            }
            _ => source.track.set_caps(caps).unwrap(),
        }
        source.push("K-----");
        for _ in 0..6 {
            expected.push_back(caps);
            let packet = at_once.packet();
            assert_eq!(&*packet.caps, caps);
        }
    }
    let mut latest = source.reader(Start::OldestKeyframe);
    let mut generations = Vec::new();
    for caps in expected {
        let packets = [later.packet(), latest.packet()];
        for packet in &packets {
            assert_eq!((&*packet.caps, packet.lost), (caps, 0), "packet {}", packet.seq);
        }
        generations.push((caps, packets[0].generation));
    }
    assert!(generations.windows(2).all(|w| (w[0].0 == w[1].0) == (w[0].1 == w[1].1)));
}

#[test]
fn rejected_caps_change_nothing() {
    let source = Source::new("packets-caps-limit", bounds(1 << 20, LONG));
    let mut reader = source.reader(Start::default());
    let longest = "c".repeat(MAX_CAPS);
    for caps in ["a", &longest] {
        if caps != "a" {
            source.track.set_caps(caps).unwrap();
        }
        for rejected in rejected_caps() {
            let error = source.track.set_caps(&rejected).unwrap_err();
            assert!(matches!(error, Error::InvalidConfig { what: "The caps", .. }), "{error}");
            let again = source.publisher.add_track(0, &rejected, TrackConfig::default());
            assert!(matches!(again, Err(Error::InvalidConfig { what: "The caps", .. })));
        }
        source.push("K");
        assert_eq!(&*reader.packet().caps, caps);
    }
    // A track is not added either.
    for rejected in rejected_caps() {
        assert!(source.publisher.add_track(1, &rejected, TrackConfig::default()).is_err());
    }
    assert_eq!(source.publisher.stats().tracks.len(), 1);
    let mut late = source.reader(Start::OldestKeyframe);
    for caps in ["a", &longest] {
        assert_eq!(&*late.packet().caps, caps);
    }
}

#[test]
fn reader_waits_for_track() {
    let source = Source::new("packets-later", bounds(1 << 20, LONG));
    let mut reader = Reader::of(&source.test, 7, Start::default());
    assert!(matches!(reader.poll(), Next::TimedOut));
    let waits = asleep(move || (reader.packet(), reader));
    source.push("K");
    let track = source.publisher.add_track(7, "late", bounds(1 << 20, LONG)).unwrap();
    track.push(info(true), b"seven").unwrap();
    let (packet, mut reader) = waits.join().unwrap();
    assert_eq!((&*packet.caps, &packet.data[..]), ("late", &b"seven"[..]));
    // Tracks do not mix.
    source.push("-");
    assert!(matches!(reader.poll(), Next::TimedOut));
}

#[test]
fn track_continues_after_its_end() {
    let source = Source::new("packets-end", bounds(1 << 20, LONG));
    let mut reader = source.reader(Start::default());
    source.push("K-");
    source.track.end();
    assert_eq!(reader.packet().seq, 0);
    assert_eq!(reader.packet().seq, 1);
    assert!(matches!(reader.next(), Next::Eos));
    let waits = asleep(move || {
        let wait = Wait { past_eos: true, ..Wait::default() };
        let packet = item(reader.packets.next(&wait).unwrap());
        (packet, reader)
    });
    source.push("-");
    let (packet, mut reader) = waits.join().unwrap();
    assert_eq!((packet.seq, packet.lost), (2, 0));
    let waits = asleep(move || matches!(reader.next(), Next::Eos));
    source.track.end();
    assert!(waits.join().unwrap());
}

#[test]
fn end_is_not_reported_behind_a_later_packet() {
    let source = Source::new("packets-old-end", bounds(1 << 20, LONG));
    let mut reader = source.reader(Start::default());
    // Number of packets, stored before the end behind the last of them is marked.
    let ended = Arc::new(AtomicU64::new(0));
    let (track, count) = (source.track.clone(), ended.clone());
    let pushes = std::thread::spawn(move || {
        for n in 1..=100_000 {
            track.push(info(true), &[]).unwrap();
            count.store(n, Ordering::SeqCst);
            track.end();
        }
    });
    let mut last = None;
    while !pushes.is_finished() {
        match reader.poll() {
            Next::Item(packet) => last = Some(packet.seq),
            Next::Eos => {
                let ended = ended.load(Ordering::SeqCst);
                assert!(last < Some(ended), "an old end behind packet {last:?}");
            }
            Next::TimedOut => {}
            other => panic!("{other:?}"),
        }
    }
    pushes.join().unwrap();
}

#[test]
fn next_packet_takes_end_back() {
    let source = Source::new("packets-end-back", bounds(1 << 20, LONG));
    let mut reader = source.reader(Start::default());
    for seq in 0..3 {
        source.push("K");
        assert_eq!(reader.packet().seq, seq);
        assert!(matches!(reader.poll(), Next::TimedOut), "packet {seq} is not the last");
        source.track.end();
        assert!(matches!(reader.poll(), Next::Eos));
    }
}

#[test]
fn last_packet_arrives_before_publisher_closes() {
    for n in 0..100 {
        let source = Source::new(&format!("packets-last-{n}"), bounds(1 << 20, LONG));
        let mut reader = source.reader(Start::default());
        let waits = asleep(move || {
            assert_eq!(reader.packet().seq, 0);
            let end = reader.next();
            assert!(matches!(end, Next::Lost { reason: RefusalReason::Closing, .. }), "{end:?}");
        });
        source.push("K");
        drop(source);
        waits.join().unwrap();
    }
}
