//! Packets do not depend on the kind of memory.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cuframes::memory::host::HostBackend;
use cuframes::{
    Interrupt, Mode, Next, Packet, PacketInfo, PacketReader, Policy, Publisher, PublisherConfig,
    PushError, ReferenceTimestamp, RefusalReason, Start, Subscriber, SubscriberConfig, Track,
    TrackConfig, Wait,
};

use super::asleep;
use super::support::{Site, item, until};

const LONG: Duration = Duration::from_secs(3600);

/// A publisher of track 0.
struct Source {
    site: Site,
    publisher: Publisher,
    track: Track,
}

impl Source {
    fn new(test: &str, config: TrackConfig) -> Self {
        let site = Site::new(test);
        let publisher = Publisher::open(site.config(), Arc::new(HostBackend), |_| {}).unwrap();
        let track = publisher.add_track(0, "a", config).unwrap();
        Self { site, publisher, track }
    }

    fn reader(&self, start: Start) -> Reader {
        Reader::of(&self.site, 0, start)
    }

    /// Packets of a byte each, keyframes where there is a `K`.
    fn push(&self, packets: &str) -> u64 {
        let push = |c| self.track.push(info(c == 'K'), &[c as u8]).unwrap();
        packets.chars().map(push).fold(0, |_, seq| seq)
    }

    fn in_ring(&self) -> u64 {
        self.publisher.stats().tracks[0].in_ring
    }
}

fn info(keyframe: bool) -> PacketInfo {
    PacketInfo { keyframe, ..Default::default() }
}

/// What a packet of so many bytes takes in the ring.
fn room(len: u64) -> u64 {
    128 + len.next_multiple_of(8)
}

struct Reader {
    packets: PacketReader,
    interrupt: Arc<Interrupt>,
    _subscriber: Subscriber,
}

impl Reader {
    fn of(site: &Site, track: u32, start: Start) -> Self {
        let interrupt = Arc::new(Interrupt::new().unwrap());
        let config = SubscriberConfig { max_frames: 0, ..site.subscriber_config() };
        let subscriber = Subscriber::connect(config, None, &interrupt).unwrap();
        Self { packets: subscriber.packets(track, start), interrupt, _subscriber: subscriber }
    }

    fn next(&mut self) -> Next<Packet> {
        self.packets.next(&Wait::forever(&self.interrupt)).unwrap()
    }

    /// What there is without waiting.
    fn look(&mut self) -> Next<Packet> {
        let wait = Wait { timeout: Some(Duration::ZERO), ..Wait::forever(&self.interrupt) };
        self.packets.next(&wait).unwrap()
    }

    #[track_caller]
    fn packet(&mut self) -> Packet {
        item(self.next())
    }
}

fn bounds(bytes: u64, time: Duration) -> TrackConfig {
    TrackConfig { bytes, time }
}

#[test]
fn the_first_packet_is_a_keyframe() {
    let source = Source::new("packets-first", bounds(1 << 20, LONG));
    // Before any keyframe there is nothing to start at. They come to the end, so they know the track.
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
        assert_eq!(reader.packets.counters(), (11 - seq, 0));
    }
    let seq = source.push("--K");
    let packet = next.packet();
    assert_eq!((packet.seq, packet.info.keyframe, packet.lost), (seq, true, 0));
}

/// Bytes of packet `seq`: any length up to a few kB, some much longer, some empty.
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
    // Some 200 packets fit, so it wraps often.
    let source = Source::new("packets-bytes", bounds(512 << 10, LONG));
    // The first packets may be there before it looks.
    let mut all = source.reader(Start::OldestKeyframe);
    // It reads as fast as it can, and nobody waits for it.
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
            // Slower than the rest.
            std::thread::yield_now();
        }
        assert_eq!(some.packets.counters(), (received, lost + PACKETS - next));
    });
    for seq in 0..PACKETS {
        // As far ahead as the ring has room in any case.
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
fn a_slow_reader_goes_on_at_a_keyframe() {
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
    // 9 packets fit, 12 to 20.
    let packet = reader.packet();
    assert_eq!((packet.seq, packet.lost, packet.info.keyframe), (20, 19, true));
    push(21);
    let packet = reader.packet();
    assert_eq!((packet.seq, packet.lost, packet.info.keyframe), (40, 19, true));
    source.track.push(info(false), &[41; 100]).unwrap();
    let packet = reader.packet();
    assert_eq!((packet.seq, packet.lost, &packet.data[..]), (41, 0, &[41; 100][..]));
    assert_eq!(reader.packets.counters(), (4, 38));

    // With no keyframe in the ring it waits for one.
    for seq in 42..60 {
        source.track.push(info(false), &[seq; 100]).unwrap();
    }
    assert!(matches!(reader.look(), Next::TimedOut));
    for seq in 60..65 {
        source.track.push(info(seq == 62), &[seq; 100]).unwrap();
    }
    let packet = reader.packet();
    assert_eq!((packet.seq, packet.lost, packet.info.keyframe), (62, 20, true));
}

#[test]
fn a_packet_that_is_too_big_is_refused_with_all_that_depends_on_it() {
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
    assert_eq!((stats.published, stats.in_ring), (3, 3));
    assert_eq!((stats.too_big, stats.undecodable, stats.cut_gops), (2, 2, 0));
    for (seq, lost, len) in [(5, 4, 200), (6, 0, 101)] {
        let packet = reader.packet();
        assert_eq!((packet.seq, packet.lost, packet.data.len()), (seq, lost, len));
    }
    // One that has just the ring's size fits.
    assert_eq!(push(true, 1000), Ok(7));
    assert_eq!(reader.packet().data.len(), 1000);
    assert_eq!(source.in_ring(), 1);
    assert_eq!(reader.packets.counters(), (4, 4));
}

#[test]
fn what_is_there_is_what_was_there_when_the_reader_came() {
    let source = Source::new("packets-next", bounds(1 << 20, LONG));
    // Before there is anything, it is the first that comes.
    let mut first = source.reader(Start::LatestKeyframe);
    source.push("K--K--");
    let starts = [
        (Start::LatestKeyframe, 3),
        (Start::NextKeyframe, 7),
        (Start::OldestKeyframe, 0),
        (Start::Preroll { time: Duration::ZERO, gops: 1 }, 0),
    ];
    let mut readers = starts.map(|(start, seq)| (source.reader(start), seq));
    // They look for the first time when all this is there.
    source.push("-K-K-");
    for (reader, seq) in &mut readers {
        assert_eq!((reader.packet().seq, reader.packet().seq), (*seq, *seq + 1));
    }
    assert_eq!(first.packet().seq, 0);
}

/// Only bytes bound what is in the ring.
#[test]
fn a_gop_may_have_very_many_packets() {
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
    assert_eq!(source.publisher.stats().tracks[0].cut_gops, 0);
}

#[test]
fn a_gop_that_does_not_fit_is_counted_once() {
    let source = Source::new("packets-cut", bounds(10 * room(1), LONG));
    source.push("K");
    let mut early = source.reader(Start::default());
    assert_eq!(early.packet().seq, 0);
    for seq in 1..30 {
        source.push("-");
        assert_eq!(early.packet().seq, seq);
    }
    assert_eq!(source.publisher.stats().tracks[0].cut_gops, 1);
    // Who comes now finds nothing to begin at, and who is in it gets on.
    let mut late = [Start::LatestKeyframe, Start::OldestKeyframe].map(|start| source.reader(start));
    for reader in &mut late {
        assert!(matches!(reader.look(), Next::TimedOut));
    }
    source.push("-K--");
    assert_eq!(early.packet().seq, 30);
    for reader in late.iter_mut().chain([&mut early]) {
        let packet = reader.packet();
        assert_eq!((packet.seq, packet.lost), (31, 0));
    }
    assert_eq!(source.publisher.stats().tracks[0].cut_gops, 1);
}

#[test]
fn a_reader_may_begin_in_the_past() {
    let source = Source::new("packets-preroll", bounds(1 << 20, LONG));
    let second = 1_000_000_000;
    // A keyframe every 5 s, with a packet a second: those of 0, 5, 10 and 15 s; the last is of 17 s.
    for seq in 0..18 {
        let pts = Some(seq * second);
        let info = PacketInfo { pts, dts: pts, ..info(seq % 5 == 0) };
        source.track.push(info, &[seq as u8]).unwrap();
    }
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
    // The further of the two counts, as far as there is something.
    for (time, gops, seq) in [(0, 1, 10), (0, 2, 5), (3, 2, 5), (12, 1, 5), (13, 0, 0), (99, 99, 0)]
    {
        assert_eq!(begins(time, gops), seq, "{time} s, {gops} GOPs");
    }
}

/// Sound and metadata, where each packet can be decoded alone.
#[test]
fn a_track_of_keyframes_begins_at_any_packet() {
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

/// Video leads, sound begins with what belongs to its first picture, whenever that is known.
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
    let mut follows = Reader::of(&source.site, 1, Start::NotBefore(begin.clone()));
    assert!(matches!(follows.look(), Next::TimedOut));
    begin.set(1_234_000_000).unwrap();
    assert_eq!(follows.packet().info.pts, Some(1_240_000_000));
    assert_eq!(follows.packet().info.pts, Some(1_260_000_000));

    // An end does not come before the beginning.
    let begin = Arc::new(OnceLock::new());
    let mut follows = Reader::of(&source.site, 1, Start::NotBefore(begin.clone()));
    sound.end();
    assert!(matches!(follows.look(), Next::TimedOut));
    begin.set(1_980_000_000).unwrap();
    assert_eq!(follows.packet().info.pts, Some(1_980_000_000));
    assert!(matches!(follows.next(), Next::Eos));

    // What is to come is waited for.
    push_sound(2_000);
    let later = Arc::new(OnceLock::from(5_000_000_000));
    let mut follows = Reader::of(&source.site, 1, Start::NotBefore(later));
    assert!(matches!(follows.look(), Next::TimedOut));
    push_sound(4_990);
    assert!(matches!(follows.look(), Next::TimedOut));
    push_sound(5_010);
    assert_eq!(follows.packet().info.pts, Some(5_010_000_000));
}

#[test]
fn another_reader_goes_on_where_one_was() {
    let source = Source::new("packets-after", bounds(20 * room(1), LONG));
    let mut reader = source.reader(Start::default());
    assert_eq!(reader.packets.place(), None);
    source.push("K--");
    assert_eq!((reader.packet().seq, reader.packet().seq), (0, 1));
    let place = reader.packets.place().unwrap();
    drop(reader);
    source.push("K-");
    let mut reader = source.reader(Start::After(place));
    for seq in 2..5 {
        let packet = reader.packet();
        assert_eq!((packet.seq, packet.lost), (seq, 0));
    }
    // What was overwritten while nobody read is lost, and counted.
    let place = reader.packets.place().unwrap();
    drop(reader);
    source.push(&"K---------".repeat(5));
    let mut reader = source.reader(Start::After(place));
    let packet = reader.packet();
    assert_eq!((packet.seq, packet.lost, packet.info.keyframe), (45, 40, true));

    // Another life of the publisher has nothing to do with it: all of it is new.
    let Source { site, publisher, track } = source;
    drop((publisher, track));
    let publisher = Publisher::open(site.config(), Arc::new(HostBackend), |_| {}).unwrap();
    let track = publisher.add_track(0, "a", bounds(1 << 20, LONG)).unwrap();
    let source = Source { site, publisher, track };
    source.push("-K-K-");
    let packet = source.reader(Start::After(place)).packet();
    assert_eq!((packet.seq, packet.lost), (1, 0));
}

#[test]
fn times_of_other_clocks_cross() {
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

/// A publisher that waits, and the small ring of its track.
fn patient(test: &str, timeout: Duration, packets: u64) -> Source {
    let site = Site::new(test);
    let config = PublisherConfig { policy: Policy::Wait(timeout), ..site.config() };
    let publisher = Publisher::open(config, Arc::new(HostBackend), |_| {}).unwrap();
    let track = publisher.add_track(0, "a", bounds(packets * room(8), LONG)).unwrap();
    Source { site, publisher, track }
}

fn lossless(site: &Site, start: Start) -> Reader {
    let interrupt = Arc::new(Interrupt::new().unwrap());
    let config = SubscriberConfig { max_frames: 0, mode: Mode::Strict, ..site.subscriber_config() };
    let subscriber = Subscriber::connect(config, None, &interrupt).unwrap();
    Reader { packets: subscriber.packets(0, start), interrupt, _subscriber: subscriber }
}

#[test]
fn a_lossless_reader_gets_everything() {
    const PACKETS: u64 = 5_000;
    let source = patient("packets-lossless", LONG, 10);
    let push = |seq: u64| source.track.push(info(seq.is_multiple_of(25)), &seq.to_ne_bytes());
    // Those of whom nothing was heard since they joined count from then on.
    let readers: Vec<_> = (0..4).map(|_| lossless(&source.site, Start::OldestKeyframe)).collect();
    // And one that reads nothing, and that nobody waits for.
    let _live = source.reader(Start::default());
    let watch = |mut reader: Reader| {
        std::thread::spawn(move || {
            let mut next = None;
            loop {
                let packet = match reader.next() {
                    Next::Item(packet) => packet,
                    Next::Eos => break,
                    other => panic!("{other:?}"),
                };
                assert_eq!((packet.lost, &packet.data[..]), (0, &packet.seq.to_ne_bytes()[..]));
                assert!(next.is_none_or(|next| next == packet.seq), "after {next:?}");
                next = Some(packet.seq + 1);
            }
            (next, reader.packets.counters())
        })
    };
    let mut readers: Vec<_> = readers.into_iter().map(watch).collect();
    for seq in 0..PACKETS {
        assert_eq!(push(seq), Ok(seq));
        if seq % 1000 == 500 {
            // One that comes while it runs.
            readers.push(watch(lossless(&source.site, Start::default())));
        }
    }
    source.track.end();
    for (n, reader) in readers.into_iter().enumerate() {
        let (last, (received, lost)) = reader.join().unwrap();
        assert_eq!(lost, 0);
        assert_eq!(last, Some(PACKETS), "it read to the end");
        assert!(n >= 4 || received == PACKETS, "{received} for reader {n}");
    }
}

#[test]
fn a_publisher_waits_for_a_lossless_reader() {
    let source = patient("packets-waits", LONG, 4);
    let mut reader = lossless(&source.site, Start::default());
    source.push("K---");
    let track = source.track.clone();
    let waits = asleep(move || track.push(info(false), b"-").unwrap());
    assert_eq!(source.publisher.stats().tracks[0].published, 4);
    assert_eq!(reader.packet().seq, 0);
    assert_eq!(waits.join().unwrap(), 4);
    let stats = source.publisher.stats();
    let [its_own] = &stats.subscribers[0].packets[..] else { panic!("it reads one track") };
    assert_eq!((its_own.track, its_own.received, its_own.lost), (0, 1, 0));

    // It may give up the wait, and then the reader.
    assert_eq!(source.track.push_unless(info(false), b"-", &|| true), Err(PushError::WouldBlock));
    let track = source.track.clone();
    let waits = asleep(move || track.push(info(false), b"-").unwrap());
    drop(reader);
    assert_eq!(waits.join().unwrap(), 5);
    let mut other = lossless(&source.site, Start::OldestKeyframe);
    let track = source.track.clone();
    let waits = asleep(move || (0..8).try_for_each(|_| track.push(info(false), b"-").map(drop)));
    assert!(!waits.is_finished(), "it waits for one that has not begun");
    source.publisher.stop_waiting();
    assert_eq!(waits.join().unwrap(), Err(PushError::WouldBlock));
    // None of them is a keyframe.
    assert!(matches!(other.look(), Next::TimedOut));
}

#[test]
fn a_lossless_reader_that_takes_nothing_is_sent_away() {
    let source = patient("packets-stalled", Duration::from_millis(30), 4);
    let mut reader = lossless(&source.site, Start::default());
    source.push("K---K---K---");
    let end = loop {
        match reader.next() {
            Next::Item(_) => {}
            end => break end,
        }
    };
    assert!(matches!(end, Next::Lost { code: RefusalReason::Stalled, .. }), "{end:?}");
}

#[test]
fn caps_change_at_their_packet() {
    let source = Source::new("packets-caps", bounds(1 << 20, LONG));
    let mut at_once = source.reader(Start::default());
    let mut later = source.reader(Start::OldestKeyframe);
    // The caps of 6 packets each; some are replaced before there is one.
    let mut expected = VecDeque::new();
    for caps in ["a", "b", "-c", "d"] {
        match caps {
            "a" => {}
            "-c" => {
                source.track.set_caps("never used");
                source.track.set_caps(caps);
            }
            _ => source.track.set_caps(caps),
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
fn caps_of_what_is_overwritten_are_forgotten() {
    let source = Source::new("packets-forgotten", bounds(8 * room(1), LONG));
    let mut reader = source.reader(Start::default());
    for n in 0..300 {
        source.track.set_caps(&format!("caps {n}"));
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
    // The newest GOP stays however old it is.
    source.push("-");
    assert_eq!(source.in_ring(), 5);
    let pushed = Instant::now();
    until(|| pushed.elapsed() > time);
    source.push("K");
    assert_eq!(source.in_ring(), 6);
    assert_eq!(source.reader(Start::OldestKeyframe).packet().seq, 8);
    // The one before stays until the newer one covers the time.
    source.push("-");
    assert_eq!(source.in_ring(), 7);
    let pushed = Instant::now();
    until(|| pushed.elapsed() > time);
    source.push("-");
    assert_eq!(source.in_ring(), 3);
    assert_eq!(source.reader(Start::OldestKeyframe).packet().seq, 13);

    let long = source.publisher.add_track(1, "b", bounds(1 << 20, LONG)).unwrap();
    let pushed = Instant::now();
    while pushed.elapsed() <= time {
        long.push(info(true), b"K").unwrap();
        std::thread::yield_now();
    }
    let stats = source.publisher.stats().tracks[1];
    assert_eq!(stats.in_ring, stats.published.min((1 << 20) / room(1)));
}

#[test]
fn a_track_may_come_later() {
    let source = Source::new("packets-later", bounds(1 << 20, LONG));
    let mut reader = Reader::of(&source.site, 7, Start::default());
    assert!(matches!(reader.look(), Next::TimedOut));
    let waits = asleep(move || (reader.packet(), reader));
    source.push("K");
    let track = source.publisher.add_track(7, "late", bounds(1 << 20, LONG)).unwrap();
    track.push(info(true), b"seven").unwrap();
    let (packet, mut reader) = waits.join().unwrap();
    assert_eq!((&*packet.caps, &packet.data[..]), ("late", &b"seven"[..]));
    // Tracks do not mix.
    source.push("-");
    assert!(matches!(reader.look(), Next::TimedOut));
}

#[test]
fn a_track_goes_on_behind_its_end() {
    let source = Source::new("packets-end", bounds(1 << 20, LONG));
    let mut reader = source.reader(Start::default());
    source.push("K-");
    source.track.end();
    assert_eq!(reader.packet().seq, 0);
    assert_eq!(reader.packet().seq, 1);
    assert!(matches!(reader.next(), Next::Eos));
    let waits = asleep(move || {
        let wait = Wait { past_eos: true, ..Wait::forever(&reader.interrupt) };
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
fn the_last_packet_is_not_lost() {
    for n in 0..100 {
        let source = Source::new(&format!("packets-last-{n}"), bounds(1 << 20, LONG));
        let mut reader = source.reader(Start::default());
        let waits = asleep(move || {
            assert_eq!(reader.packet().seq, 0);
            let end = reader.next();
            assert!(matches!(end, Next::Lost { code: RefusalReason::Closing, .. }), "{end:?}");
        });
        source.push("K");
        drop(source);
        waits.join().unwrap();
    }
}
