// SPDX-License-Identifier: LGPL-2.1-or-later
//! Where a reader of packets begins.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cuframes::memory::host::HostBackend;
use cuframes::{Counters, Next, PacketInfo, Publisher, Start};

use super::{LONG, Reader, Source, bounds, info, room};

#[test]
fn first_packet_is_keyframe() {
    let source = Source::new("packets-first", bounds(1 << 20, LONG));
    // Without a keyframe no reader can begin. They see the end, so that they know the track.
    source.push("--");
    source.track.end();
    let mut early = [Start::LatestKeyframe, Start::NextKeyframe, Start::OldestKeyframe]
        .map(|start| source.reader(start));
    for reader in &mut early {
        assert!(matches!(reader.next(), Next::Eos));
    }
    source.push("--K--");
    for reader in &mut early {
        let packet = reader.packet();
        assert_eq!((packet.seq, packet.info.keyframe, packet.lost), (4, true, 0));
    }
    source.push("K-K-");
    source.track.end();
    let mut next = source.reader(Start::NextKeyframe);
    assert!(matches!(next.next(), Next::Eos));
    for (start, seq) in [(Start::LatestKeyframe, 9), (Start::OldestKeyframe, 4)] {
        let mut reader = source.reader(start);
        for seq in seq..11 {
            let packet = reader.packet();
            assert_eq!((packet.seq, packet.lost), (seq, 0));
        }
        assert!(matches!(reader.next(), Next::Eos));
        assert_eq!(reader.packets.counters(), Counters { received: 11 - seq, skipped: 0 });
    }
    let seq = source.push("--K");
    let packet = next.packet();
    assert_eq!((packet.seq, packet.info.keyframe, packet.lost), (seq, true, 0));
}

#[test]
fn backlog_is_what_was_there_when_reader_joined() {
    let source = Source::new("packets-next", bounds(1 << 20, LONG));
    // Without any packet, a reader begins at the first keyframe.
    let mut first = source.reader(Start::LatestKeyframe);
    source.push("K--K--");
    let starts = [
        (Start::LatestKeyframe, 3),
        (Start::NextKeyframe, 7),
        (Start::OldestKeyframe, 0),
        (Start::Preroll { time: Duration::ZERO, gops: 1 }, 0),
    ];
    let mut readers = starts.map(|(start, seq)| (source.reader(start), seq));
    // They read for the first time when all these packets are there.
    source.push("-K-K-");
    for (reader, seq) in &mut readers {
        assert_eq!((reader.packet().seq, reader.packet().seq), (*seq, *seq + 1));
    }
    assert_eq!(first.packet().seq, 0);
}

#[test]
fn reader_begins_in_the_past() {
    let source = Source::new("packets-preroll", bounds(1 << 20, LONG));
    let second = 1_000_000_000;
    let push = |seq: i64| {
        let pts = Some(seq * second);
        let info = PacketInfo { pts, dts: pts, ..info(seq % 5 == 0) };
        source.track.push(info, &[seq as u8]).unwrap();
    };
    // A packet every second, a keyframe every 5 s: at 0, 5, 10 and 15 s. The last packet is at 17 s.
    (0..18).for_each(push);
    let begins = |time: u64, gops: u32| {
        let time = Duration::from_secs(time);
        let mut reader = source.reader(Start::Preroll { time, gops });
        let packet = reader.packet();
        assert_eq!(reader.packet().seq, packet.seq + 1, "all that follows is there");
        packet.seq
    };
    for (time, gops, seq) in [(0, 0, 15), (2, 0, 15), (3, 0, 10), (7, 0, 10), (8, 0, 5)] {
        assert_eq!(begins(time, gops), seq, "{time} s, {gops} GOPs");
    }
    // The larger of the two counts, as far as there are packets.
    for (time, gops, seq) in [(0, 1, 10), (0, 2, 5), (3, 2, 5), (12, 1, 5), (13, 0, 0), (99, 99, 0)]
    {
        assert_eq!(begins(time, gops), seq, "{time} s, {gops} GOPs");
    }
    // The time ends at the last packet that was there when the reader was created.
    let mut reader = source.reader(Start::Preroll { time: Duration::from_secs(4), gops: 0 });
    (18..20).for_each(push);
    assert_eq!(reader.packet().seq, 10);
}

/// Audio and metadata, where each packet can be decoded alone.
#[test]
fn track_of_keyframes_begins_at_any_packet() {
    let source = Source::new("packets-keyframes", bounds(1 << 20, LONG));
    for seq in 0..1000 {
        let info = PacketInfo { pts: Some(seq * 20_000_000), ..info(true) };
        source.track.push(info, b"sound").unwrap();
    }
    assert_eq!(source.reader(Start::default()).packet().seq, 999);
    let preroll = |time| Start::Preroll { time, gops: 0 };
    assert_eq!(source.reader(preroll(Duration::from_secs(2))).packet().seq, 899);
    assert_eq!(source.reader(Start::Preroll { time: Duration::ZERO, gops: 7 }).packet().seq, 992);
}

/// Video leads. Audio begins with the packet that belongs to the first frame, as soon as that is known.
#[test]
fn tracks_begin_together() {
    let source = Source::new("packets-together", bounds(1 << 20, LONG));
    let sound = source.publisher.add_track(1, "sound", bounds(1 << 20, LONG)).unwrap();
    let push_sound = |ms: i64| {
        let info = PacketInfo { pts: Some(ms * 1_000_000), ..info(true) };
        sound.push(info, &ms.to_ne_bytes()).unwrap()
    };
    for n in 0..100 {
        push_sound(n * 20);
    }
    let begin = Arc::new(OnceLock::new());
    let mut follows = Reader::of(&source.test, 1, Start::NotBefore(begin.clone()));
    assert!(matches!(follows.poll(), Next::TimedOut));
    begin.set(1_234_000_000).unwrap();
    assert_eq!(follows.packet().info.pts, Some(1_240_000_000));
    assert_eq!(follows.packet().info.pts, Some(1_260_000_000));

    // The end is not reported before the beginning is known.
    let begin = Arc::new(OnceLock::new());
    let mut follows = Reader::of(&source.test, 1, Start::NotBefore(begin.clone()));
    sound.end();
    assert!(matches!(follows.poll(), Next::TimedOut));
    begin.set(1_980_000_000).unwrap();
    assert_eq!(follows.packet().info.pts, Some(1_980_000_000));
    assert!(matches!(follows.next(), Next::Eos));

    // The reader waits for packets of the future.
    push_sound(2_000);
    let later = Arc::new(OnceLock::from(5_000_000_000));
    let mut follows = Reader::of(&source.test, 1, Start::NotBefore(later));
    assert!(matches!(follows.poll(), Next::TimedOut));
    push_sound(4_990);
    assert!(matches!(follows.poll(), Next::TimedOut));
    push_sound(5_010);
    assert_eq!(follows.packet().info.pts, Some(5_010_000_000));
}

#[test]
fn reader_resumes_where_another_stopped() {
    let source = Source::new("packets-after", bounds(20 * room(1), LONG));
    let mut reader = source.reader(Start::default());
    assert_eq!(reader.packets.resume_point(), None);
    source.push("K--");
    assert_eq!((reader.packet().seq, reader.packet().seq), (0, 1));
    let place = reader.packets.resume_point().unwrap();
    drop(reader);
    source.push("K-");
    let mut reader = source.reader(Start::After(place));
    for seq in 2..5 {
        let packet = reader.packet();
        assert_eq!((packet.seq, packet.lost), (seq, 0));
    }
    // Packets that were overwritten meanwhile are lost, and counted.
    let place = reader.packets.resume_point().unwrap();
    drop(reader);
    source.push(&"K---------".repeat(5));
    let mut reader = source.reader(Start::After(place));
    let packet = reader.packet();
    assert_eq!((packet.seq, packet.lost, packet.info.keyframe), (45, 40, true));

    // For another publisher the position has no meaning: every packet is new.
    let Source { test, publisher, track } = source;
    drop((publisher, track));
    let publisher = Publisher::open(test.config(), Arc::new(HostBackend), |_| {}).unwrap();
    let track = publisher.add_track(0, "a", bounds(1 << 20, LONG)).unwrap();
    let source = Source { test, publisher, track };
    source.push("-K-K-");
    let packet = source.reader(Start::After(place)).packet();
    assert_eq!((packet.seq, packet.lost), (1, 0));
}
