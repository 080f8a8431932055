//! Packets do not depend on the kind of memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gstcuframes::memory::host::HostBackend;
use gstcuframes::{
    Code, Interrupt, Next, Packet, PacketInfo, PacketReader, Publisher, Start, Subscriber,
    SubscriberConfig, Track, TrackConfig, Wait,
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

struct Reader {
    packets: PacketReader,
    interrupt: Arc<Interrupt>,
    _subscriber: Subscriber,
}

impl Reader {
    fn of(site: &Site, track: u32, start: Start) -> Self {
        let interrupt = Arc::new(Interrupt::new().unwrap());
        let config = SubscriberConfig { credit: 0, ..site.subscriber_config() };
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
    let source = Source::new("packets-slow", bounds(1000, LONG));
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
    // 9 packets of 104 bytes fit, 12 to 20.
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
fn a_packet_that_is_too_big_is_refused() {
    let source = Source::new("packets-big", bounds(1000, LONG));
    let mut reader = source.reader(Start::default());
    source.track.push(info(true), &[1; 100]).unwrap();
    source.track.push(info(false), &[2; 1001]).unwrap_err();
    source.track.push(info(true), &[3; 5000]).unwrap_err();
    source.track.push(info(false), &[4; 100]).unwrap();
    let stats = source.publisher.stats().tracks[0];
    assert_eq!((stats.published, stats.in_ring, stats.too_big), (2, 2, 2));
    for (seq, byte) in [(0, 1), (1, 4)] {
        let packet = reader.packet();
        assert_eq!((packet.seq, packet.lost, &packet.data[..]), (seq, 0, &[byte; 100][..]));
    }
    // One that has just the ring's size fits.
    source.track.push(info(true), &[5; 1000]).unwrap();
    assert_eq!(reader.packet().data, [5; 1000]);
    assert_eq!(source.in_ring(), 1);
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
    let source = Source::new("packets-forgotten", bounds(64, LONG));
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
    // With a newer one it goes.
    source.push("-");
    assert_eq!(source.in_ring(), 2);
    assert_eq!(source.reader(Start::OldestKeyframe).packet().seq, 13);

    let long = source.publisher.add_track(1, "b", bounds(1 << 20, LONG)).unwrap();
    let pushed = Instant::now();
    while pushed.elapsed() <= time {
        long.push(info(true), b"K").unwrap();
        std::thread::yield_now();
    }
    let stats = source.publisher.stats().tracks[1];
    assert_eq!(stats.in_ring, stats.published.min(8192));
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
            assert!(matches!(end, Next::Lost { code: Code::Closing, .. }), "{end:?}");
        });
        source.push("K");
        drop(source);
        waits.join().unwrap();
    }
}
