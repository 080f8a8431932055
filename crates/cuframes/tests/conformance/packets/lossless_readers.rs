// SPDX-License-Identifier: LGPL-2.1-or-later
//! Readers for which the publisher waits.

use std::sync::Arc;
use std::time::Duration;

use cuframes::memory::host::HostBackend;
use cuframes::{
    Counters, Interrupt, Mode, Next, Policy, Publisher, PublisherConfig, PushError, RefusalReason,
    Start, Subscriber, SubscriberConfig,
};

use super::{LONG, Reader, Source, bounds, info, lossless, waiting_source};
use crate::fixture::asleep;
use testing::{TestDir, until};

#[test]
fn lossless_reader_gets_every_packet() {
    const PACKETS: u64 = 5_000;
    let source = waiting_source("packets-lossless", LONG, 10);
    let push = |seq: u64| source.track.push(info(seq.is_multiple_of(25)), &seq.to_ne_bytes());
    // A reader counts from its joining on, although it has not read anything.
    let readers: Vec<_> = (0..4).map(|_| lossless(&source.test, Start::OldestKeyframe)).collect();
    // A live reader that reads nothing, for which the publisher does not wait.
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
            // A reader that joins while packets are published.
            readers.push(watch(lossless(&source.test, Start::default())));
        }
    }
    source.track.end();
    for (n, reader) in readers.into_iter().enumerate() {
        let (last, Counters { received, skipped: lost }) = reader.join().unwrap();
        assert_eq!(lost, 0);
        assert_eq!(last, Some(PACKETS), "it read to the end");
        assert!(n >= 4 || received == PACKETS, "{received} for reader {n}");
    }
}

#[test]
fn publisher_waits_for_lossless_reader() {
    let source = waiting_source("packets-waits", LONG, 4);
    let mut reader = lossless(&source.test, Start::default());
    source.push("K---");
    let track = source.track.clone();
    let waits = asleep(move || track.push(info(false), b"-").unwrap());
    assert_eq!(source.publisher.stats().tracks[0].published, 4);
    assert_eq!(reader.packet().seq, 0);
    assert_eq!(waits.join().unwrap(), 4);
    let stats = source.publisher.stats();
    let [its_own] = &stats.subscribers[0].packets[..] else { panic!("it reads one track") };
    assert_eq!((its_own.track, its_own.received, its_own.lost), (0, 1, 0));

    // The publisher may stop waiting, and then drop packets of the reader.
    assert_eq!(source.track.push_unless(info(false), b"-", &|| true), Err(PushError::WouldBlock));
    let track = source.track.clone();
    let waits = asleep(move || track.push(info(false), b"-").unwrap());
    drop(reader);
    assert_eq!(waits.join().unwrap(), 5);
    let mut other = lossless(&source.test, Start::OldestKeyframe);
    let track = source.track.clone();
    let waits = asleep(move || (0..8).try_for_each(|_| track.push(info(false), b"-").map(drop)));
    assert!(!waits.is_finished(), "it waits for one that has not begun");
    source.publisher.stop_waiting();
    assert_eq!(waits.join().unwrap(), Err(PushError::WouldBlock));
    // None of them is a keyframe.
    assert!(matches!(other.poll(), Next::TimedOut));
}

#[test]
fn stalled_lossless_reader_is_evicted() {
    let source = waiting_source("packets-stalled", Duration::from_millis(30), 4);
    let mut reader = lossless(&source.test, Start::default());
    source.push("K---K---K---");
    let end = loop {
        match reader.next() {
            Next::Item(_) => {}
            end => break end,
        }
    };
    assert!(matches!(end, Next::Lost { reason: RefusalReason::Stalled, .. }), "{end:?}");
}

/// The time after which GOPs are discarded does not apply to packets that a lossless reader has yet to take.
#[test]
fn lossless_reader_gets_packets_beyond_their_time() {
    let test = TestDir::new("packets-beyond-time");
    let config = PublisherConfig { policy: Policy::Wait(Duration::MAX), ..test.config() };
    let publisher = Publisher::open(config, Arc::new(HostBackend), |_| {}).unwrap();
    // All GOPs but the newest are too old.
    let track = publisher.add_track(0, "a", bounds(1 << 20, Duration::ZERO)).unwrap();
    let source = Source { test, publisher, track };
    source.push("K--K--K--");
    assert_eq!(source.buffered(), 3);
    let mut reader = lossless(&source.test, Start::OldestKeyframe);
    source.push("K--K--K--");
    assert_eq!(source.buffered(), 12);
    for seq in 6..18 {
        let packet = reader.packet();
        assert_eq!((packet.seq, packet.lost), (seq, 0));
    }
    // Packets that it has taken are discarded, the others are kept.
    source.push("K-");
    assert_eq!(source.buffered(), 2);
    source.push("K-");
    assert_eq!(source.buffered(), 4);
    drop(reader);
    until(|| source.publisher.stats().subscribers.is_empty());
    source.push("K-");
    assert_eq!(source.buffered(), 2);
}

/// Every new keyframe is a possible start, also while the publisher is about to announce it.
#[test]
fn lossless_reader_starts_at_first_new_keyframe() {
    // The ring contains one packet, so that each packet overwrites the one before unless a reader needs it.
    let source = waiting_source("packets-first-new", Duration::MAX, 1);
    let interrupt = Interrupt::new().unwrap();
    let config = SubscriberConfig { mode: Mode::Strict, ..source.test.subscriber_config() };
    let subscriber = Subscriber::connect(config, None, &interrupt).unwrap();
    let packets = subscriber.packets(0, Start::NextKeyframe);
    let mut reader = Reader { packets, _subscriber: subscriber };
    for n in 0..2_000 {
        reader.packets = reader._subscriber.packets(0, Start::NextKeyframe);
        // From here on, the packets are retained.
        assert!(matches!(reader.poll(), Next::TimedOut));
        let track = source.track.clone();
        let pushes = std::thread::spawn(move || {
            for _ in 0..2 {
                track.push(info(true), &[0; 8]).unwrap();
            }
        });
        let first = loop {
            match reader.poll() {
                Next::Item(packet) => break packet,
                Next::TimedOut => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((first.seq, first.lost), (2 * n, 0));
        assert_eq!(reader.packet().seq, 2 * n + 1);
        pushes.join().unwrap();
    }
}
