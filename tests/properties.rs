//! What has to hold for any input: the messages, the packet ring, the records, the keys.
//!
//! `make fuzz` looks longer.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};

fn config() -> ProptestConfig {
    ProptestConfig {
        // What failed once is tried first, for ever.
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/corpus/properties.txt",
        ))),
        // As many as it takes to have all cases.
        max_global_rejects: u32::MAX,
        ..ProptestConfig::default()
    }
}

fn words(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

mod messages {
    use super::*;
    use cuframes::memory::Kind;
    use cuframes::protocol::message::{Hello, Message, VERSIONS};
    use cuframes::protocol::wire::{MAX_NAME, Malformed};
    use cuframes::{Mode, RefusalReason};
    use cuframes::{PublisherStatus, SubscriberStatus, TrackStatus};

    fn code() -> impl Strategy<Value = RefusalReason> {
        // Those that are known, and some that are not.
        (0..12u32).prop_map(RefusalReason::from)
    }

    fn text() -> impl Strategy<Value = String> {
        // Control characters are refused.
        prop_oneof![9 => "\\PC{0,40}", 1 => "[a-z]{1000,2000}"]
    }

    fn hello() -> impl Strategy<Value = Message> {
        let mode = prop_oneof![Just(Mode::Newest), Just(Mode::Strict)];
        // A character has 4 bytes at most.
        let name = prop_oneof!["\\PC{0,63}", Just("n".repeat(MAX_NAME))];
        // With a version in common.
        let versions = (0..=*VERSIONS.end(), *VERSIONS.start()..=u16::MAX);
        (versions, mode, any::<u32>(), any::<[u8; 16]>(), name).prop_map(
            |(versions, mode, credit, gpu, name)| {
                Message::Hello(Hello { versions, mode, credit, gpu, name })
            },
        )
    }

    fn message() -> impl Strategy<Value = Message> {
        let format = |(generation, caps)| Message::Format { generation, caps };
        prop_oneof![
            hello(),
            any::<(u16, u64, u32, u32, u32)>().prop_map(|(version, epoch, id, slots, index)| {
                Message::Welcome { version, epoch, id, slots, index }
            }),
            (code(), text()).prop_map(|(code, text)| Message::Refused { code, text }),
            (any::<u32>(), text()).prop_map(format),
            any::<(u32, u32, [u8; 16], u32, u64, u64)>().prop_map(
                |(id, kind, device, slots, stride, size)| {
                    Message::Chunk { id, kind, device, slots, stride, size }
                },
            ),
            any::<u32>().prop_map(|chunk| Message::Retire { chunk }),
            any::<(u32, u64)>().prop_map(|(track, bytes)| Message::Track { track, bytes }),
            (any::<(u32, u32)>(), text()).prop_map(|((track, generation), caps)| {
                Message::TrackFormat { track, generation, caps }
            }),
            (code(), text()).prop_map(|(code, text)| Message::Bye { code, text }),
            Just(Message::Leave),
            any::<((u16, u16), u64)>()
                .prop_map(|(versions, from)| Message::StatusRequest { versions, from }),
            (any::<(u16, u64)>(), status()).prop_map(|((version, next), status)| {
                Message::Status { version, next, status: Box::new(status) }
            }),
        ]
    }

    fn status() -> impl Strategy<Value = PublisherStatus> {
        let track =
            (any::<(u32, u64, u64)>(), text()).prop_map(|((track, published, bytes), caps)| {
                TrackStatus { track, caps, published, in_ring: bytes / 2, too_big: 1, bytes }
            });
        let subscriber = (any::<(u32, i32, u64)>(), "\\PC{0,40}", any::<Option<u32>>()).prop_map(
            |((id, pid, received), name, latency)| SubscriberStatus {
                id,
                name,
                pid,
                uid: id / 2,
                gid: id / 3,
                mode: if pid < 0 { Mode::Strict } else { Mode::Newest },
                max_frames: 4,
                held: id % 4,
                lag: received / 2,
                received,
                skipped: received / 3,
                copied: received / 4,
                latency_ns: latency.map(u64::from),
            },
        );
        let texts = ("\\PC{0,40}", "\\PC{0,40}", text());
        let entries = (vec(track, 0..4), vec(subscriber, 0..4));
        let numbers = any::<(i32, u32, u64, i64, u64, Option<u32>)>();
        (texts, entries, numbers, 1..4u32).prop_map(
            |(
                (key, name, caps),
                (tracks, subscribers),
                (pid, uid, epoch, time_ns, n, last),
                kind,
            )| {
                PublisherStatus {
                    key,
                    name,
                    pid,
                    uid,
                    epoch,
                    time_ns,
                    caps,
                    memory: Kind::try_from(kind).unwrap(),
                    slots: uid / 2,
                    chunks: uid / 3,
                    bytes: n,
                    published: n / 2,
                    dropped: n / 3,
                    last_frame_ns: last.map(i64::from),
                    latency_ns: n / 4,
                    max_subscribers: uid / 4,
                    max_frames_per_subscriber: uid / 5,
                    tracks,
                    subscribers,
                }
            },
        )
    }

    /// Decodes what a stranger sent, with any number of fds. What is understood has one form only.
    fn check_strange(bytes: &[u8]) {
        for fds in 0..3 {
            let Ok(message) = Message::decode(bytes, fds) else { continue };
            assert_eq!(fds, message.fds());
            let again = message.encode();
            match message {
                // Codes of later versions are all the same to this one.
                Message::Refused { code: RefusalReason::Other, .. }
                | Message::Bye { code: RefusalReason::Other, .. } => {
                    assert_eq!(again[..4], bytes[..4]);
                    assert_eq!(again[8..], bytes[8..]);
                }
                _ => assert_eq!(again, bytes),
            }
        }
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn messages_survive_the_way(message in message()) {
            let bytes = message.encode();
            prop_assert_eq!(Message::decode(&bytes, message.fds()), Ok(message));
        }

        #[test]
        fn fds_have_to_be_as_many_as_the_message_says(message in message(), got in 0..4usize) {
            let expected = message.fds();
            prop_assume!(got != expected);
            let decoded = Message::decode(&message.encode(), got);
            prop_assert_eq!(decoded, Err(Malformed::Fds { expected, got }));
        }

        #[test]
        fn a_part_of_a_message_is_none(message in message(), cut in any::<prop::sample::Index>()) {
            let bytes = message.encode();
            let part = &bytes[..cut.index(bytes.len())];
            prop_assert_eq!(Message::decode(part, message.fds()), Err(Malformed::Short));
        }

        #[test]
        fn nothing_may_follow_a_message(message in message(), more in vec(any::<u8>(), 1..9)) {
            let bytes = [message.encode(), more].concat();
            prop_assert_eq!(Message::decode(&bytes, message.fds()), Err(Malformed::Long));
        }

        /// Whatever follows: later versions may have other fields.
        #[test]
        fn other_versions_are_known_by_their_numbers(
            first: u16,
            last: u16,
            rest in vec(any::<u8>(), 0..80),
        ) {
            prop_assume!(first > *VERSIONS.end() || last < *VERSIONS.start());
            let magic = cuframes::shm::layout::MAGIC.to_le_bytes();
            let bytes = [&[1, 0, 0, 0][..], &magic, &first.to_le_bytes(), &last.to_le_bytes(), &rest];
            let decoded = Message::decode(&bytes.concat(), 0);
            prop_assert_eq!(decoded, Err(Malformed::Versions(first, last)));
        }

        #[test]
        fn texts_have_no_control_characters(before in "\\PC{0,9}", control in "\\p{Cc}", code in code()) {
            let message = Message::Refused { code, text: before + &control };
            prop_assert_eq!(Message::decode(&message.encode(), 0), Err(Malformed::Text));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(kind in 0..14u32, rest in vec(any::<u8>(), 0..80)) {
            check_strange(&rest);
            // Most of those that begin like a message get further.
            check_strange(&[&kind.to_le_bytes(), rest.as_slice()].concat());
        }

        #[test]
        fn changed_messages_are_decoded_or_refused(
            message in message(),
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut bytes = message.encode();
            for (at, byte) in changes {
                // The first 64 bytes have the numbers and lengths.
                let at = at.index(bytes.len().min(64));
                bytes[at] = byte;
            }
            check_strange(&bytes);
        }
    }
}

mod packets {
    use std::collections::VecDeque;

    use super::*;
    use cuframes::shm::layout::PACKET_META_WORDS as META_WORDS;
    use cuframes::shm::ring::{Entry, Overwritten, Ring, TooBig, Writer};

    /// Bytes of a packet's header.
    const HEADER: usize = (2 + META_WORDS) * 8;

    struct Memory {
        head: AtomicU64,
        tail: AtomicU64,
        words: Vec<AtomicU64>,
    }

    impl Memory {
        fn new(count: usize) -> Self {
            Self { head: AtomicU64::new(0), tail: AtomicU64::new(0), words: words(count) }
        }

        fn ring(&self) -> Ring<'_> {
            let Self { head, tail, words } = self;
            Ring { head, tail, words }
        }
    }

    /// What a packet of a seed has in it: no run of it occurs in another place or packet.
    fn content(seed: u64, len: usize) -> (Vec<u8>, [u64; META_WORDS]) {
        let word = |i: u64| (seed << 32 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut data: Vec<u8> =
            (0..len.div_ceil(8) as u64).flat_map(|i| word(i).to_le_bytes()).collect();
        data.truncate(len);
        (data, std::array::from_fn(|i| word(u64::MAX - i as u64)))
    }

    fn room(len: usize) -> usize {
        HEADER + len.next_multiple_of(8)
    }

    /// The plain model: the packets that are whole, oldest first, with their positions and lengths.
    struct Model {
        max_bytes: usize,
        next: u64,
        position: u64,
        packets: VecDeque<(u64, u64, usize)>,
    }

    impl Model {
        fn fits(&self, len: usize) -> bool {
            let bytes: usize = self.packets.iter().map(|(_, _, len)| room(*len)).sum();
            bytes + room(len) <= self.max_bytes
        }

        fn write(&mut self, len: usize) -> Result<u64, TooBig> {
            if room(len) > self.max_bytes {
                return Err(TooBig);
            }
            while !self.fits(len) {
                self.packets.pop_front();
            }
            let seq = self.next;
            self.packets.push_back((seq, self.position, len));
            self.position += room(len) as u64;
            self.next += 1;
            Ok(seq)
        }

        /// Where the packet begins that is the `nth` from the oldest on.
        fn start(&self, nth: usize) -> u64 {
            self.packets.get(nth).map_or(self.position, |(_, position, _)| *position)
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// A packet of so many bytes, in two pieces.
        Write(usize, prop::sample::Index),
        /// Forgets so many packets; there may be fewer.
        Forget(usize),
        /// Leaves out a number.
        Skip,
    }

    fn read(ring: Ring<'_>, position: u64) -> Result<(Entry, Vec<u8>), Overwritten> {
        let entry = ring.read_entry(position)?;
        // What was there before must not matter.
        let mut data = vec![0xa5; entry.len];
        ring.read_bytes(&entry, &mut data)?;
        Ok((entry, data))
    }

    /// Does the steps on a ring and on the model and compares the two after each.
    fn compare(words: usize, steps: &[Step]) -> Result<(), TestCaseError> {
        let memory = Memory::new(words);
        let ring = memory.ring();
        let mut writer = Writer::default();
        let max_bytes = words * 8;
        let mut model = Model { max_bytes, next: 0, position: 0, packets: VecDeque::new() };
        // As a reader found them when they were whole.
        let mut entries: Vec<Entry> = Vec::new();

        for step in steps {
            match step {
                Step::Write(len, cut) => {
                    let (data, meta) = content(model.next, *len);
                    let (first, second) = data.split_at(cut.index(len + 1));
                    let left = writer.tail_after(ring, *len);
                    let position = model.position;
                    let written = model.write(*len);
                    prop_assert_eq!(left, written.map(|_| model.start(0).min(position)));
                    prop_assert_eq!(writer.write(ring, [first, second], &meta), written);
                    if written.is_ok() {
                        let entry = ring.read_entry(position).expect("the newest packet is whole");
                        prop_assert_eq!((entry.position, entry.end()), (position, model.position));
                        entries.push(entry);
                    }
                }
                Step::Forget(count) => {
                    let position = model.start(*count);
                    model.packets.drain(..(*count).min(model.packets.len()));
                    writer.forget_before(ring, position);
                }
                Step::Skip => {
                    model.next += 1;
                    writer.skip();
                }
            }
            prop_assert_eq!(writer.len(), model.packets.len());
            prop_assert_eq!((writer.tail(), writer.head()), (model.start(0), model.position));
            prop_assert_eq!((ring.tail(), ring.head()), (model.start(0), model.position));

            for &(seq, position, len) in &model.packets {
                let (data, meta) = content(seq, len);
                let (entry, found) = read(ring, position).expect("a packet of the model is whole");
                prop_assert_eq!((entry.seq, entry.len, entry.meta), (seq, len, meta));
                prop_assert!(found == data, "packet {} of {} bytes is changed", seq, len);
            }
            for entry in entries.iter().filter(|e| e.position < model.start(0)) {
                prop_assert_eq!(ring.read_entry(entry.position), Err(Overwritten));
                let mut out = vec![0; entry.len];
                prop_assert_eq!(ring.read_bytes(entry, &mut out), Err(Overwritten));
            }
        }
        Ok(())
    }

    /// Steps for a ring of so many bytes, with packets of up to `max` bytes.
    fn steps(max: usize, count: usize) -> impl Strategy<Value = Vec<Step>> {
        let len = prop_oneof![1 => 0..=max, 4 => 0..=max / 4, 4 => 0..=max / 16];
        let write =
            (len, any::<prop::sample::Index>()).prop_map(|(len, cut)| Step::Write(len, cut));
        let step = prop_oneof![
            12 => write,
            2 => (0..5usize).prop_map(Step::Forget),
            1 => Just(Step::Skip),
        ];
        vec(step, 1..=count)
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn the_ring_keeps_what_fits((words, steps) in (1..200usize)
            // Some packets are bigger than the ring.
            .prop_flat_map(|words| (Just(words), steps(words * 8 + 9, 40))))
        {
            compare(words, &steps)?;
        }

        /// Whatever a peer writes there, a reader comes to an end without harm.
        #[test]
        fn any_words_are_packets_or_none(
            all in vec(prop_oneof![any::<u64>(), 0..300u64], 1..60),
            position in prop_oneof![any::<u64>(), 0..1000u64],
        ) {
            let memory = Memory::new(all.len());
            for (word, value) in memory.words.iter().zip(&all) {
                word.store(*value, Ordering::Relaxed);
            }
            if let Ok((entry, data)) = read(memory.ring(), position) {
                prop_assert!(data.len() == entry.len && entry.len <= all.len() * 8);
            }
        }
    }

    /// Each case moves some 100 MB, so they are few, whatever PROPTEST_CASES says.
    #[test]
    fn the_ring_keeps_big_packets() {
        let mut runner = TestRunner::new(ProptestConfig { cases: 4, ..config() });
        let ring = ((1 << 18)..(1 << 19) + 100usize, steps(4 << 20, 12));
        runner.run(&ring, |(words, steps)| compare(words, &steps)).unwrap();
    }
}

mod records {
    use super::*;
    use cuframes::ReferenceTimestamp;
    use cuframes::shm::layout::{MAX_SLOTS, pack_index, unpack_index};
    use cuframes::shm::record::{RECORD_WORDS, Record};
    use cuframes::{Crop, FrameInfo, PacketId, Plane, Planes};

    fn info() -> impl Strategy<Value = FrameInfo> {
        // The smallest time and the longest duration mean that there is none.
        let time = || proptest::option::of(i64::MIN + 1..=i64::MAX);
        let plane = any::<(u32, i32)>().prop_map(|(offset, stride)| Plane { offset, stride });
        let crop = any::<(u32, u32, u32, u32)>().prop_map(|(x, y, width, height)| Crop {
            x,
            y,
            width,
            height,
        });
        let packet = any::<(u32, u64)>().prop_map(|(track, seq)| PacketId { track, seq });
        let duration = proptest::option::of(0..u64::MAX);
        let reference =
            (any::<u64>(), duration, "[a-z/-]{0,40}").prop_map(|(timestamp, duration, clock)| {
                ReferenceTimestamp { clock: clock.into(), timestamp, duration }
            });
        (
            (time(), time(), proptest::option::of(0..u64::MAX)),
            any::<(i64, u32, usize)>(),
            vec(plane, 0..=Planes::MAX),
            proptest::option::of(crop),
            proptest::option::of(packet),
            // As many as always fit.
            vec(reference, 0..=5),
        )
            .prop_map(
                |(
                    (pts, dts, duration),
                    (captured, flags, size),
                    planes,
                    crop,
                    packet,
                    references,
                )| {
                    let planes = planes.into_iter().collect();
                    #[rustfmt::skip]
                    let info = FrameInfo {
                        pts, dts, duration, captured, flags, size, planes, crop, packet, references,
                    };
                    info
                },
            )
    }

    #[test]
    fn references_that_do_not_fit_are_left_out() {
        let reference = |timestamp, len| ReferenceTimestamp {
            clock: "x".repeat(len).into(),
            timestamp,
            duration: None,
        };
        let all = [reference(1, 20), reference(2, 400), reference(3, 20)];
        let info = FrameInfo { references: all.to_vec(), ..Default::default() };
        let record =
            Record { seq: 1, generation: 1, chunk: 1, slot_in_chunk: 0, published: 0, info };
        let words = words(RECORD_WORDS);
        record.store(&words);
        let kept = Record::load(&words).unwrap().info.references;
        assert_eq!(kept, [all[0].clone(), all[2].clone()]);
    }

    prop_compose! {
        fn record()(
            (seq, generation, chunk, slot_in_chunk, published) in any::<(u64, u32, u32, u32, i64)>(),
            info in info(),
        ) -> Record {
            Record { seq, generation, chunk, slot_in_chunk, published, info }
        }
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn records_survive_the_way(record in record(), before in record()) {
            let words = words(RECORD_WORDS);
            // A slot has the record of an older frame in it.
            before.store(&words);
            record.store(&words);
            prop_assert_eq!(Record::load(&words), Some(record));
        }

        #[test]
        fn any_words_are_a_record_or_none(
            mut all in vec(any::<u64>(), RECORD_WORDS),
            planes in 0..=2 * Planes::MAX as u64,
            references in any::<bool>(),
        ) {
            // The number of planes is what can be wrong; most numbers of 32 bits are.
            all[9] = all[9] & !0xffff_ffff | planes;
            // Likewise the references: their length, and that of a name in them.
            all[18] = if references { all[18] % 500 } else { 0 };
            all[21] %= 500;
            let strange: Vec<_> = all.into_iter().map(AtomicU64::new).collect();
            let loaded = Record::load(&strange);
            prop_assert!(loaded.is_none() || planes <= Planes::MAX as u64);
            prop_assert!(loaded.is_some() || references || planes > Planes::MAX as u64);
            if let Some(record) = loaded {
                record.store(&strange);
                prop_assert_eq!(Record::load(&strange), Some(record));
            }
            strange[9].fetch_or(0xffff_fff0, Ordering::Relaxed);
            prop_assert_eq!(Record::load(&strange), None);
        }

        #[test]
        fn the_index_gives_the_slot_of_its_frame_only(
            seq in 0..1u64 << 48,
            other in 0..1u64 << 48,
            slot in 0..MAX_SLOTS,
        ) {
            let entry = pack_index(seq, slot);
            prop_assert_eq!(unpack_index(entry, seq), Some(slot));
            for other in [other, seq + 1, seq.wrapping_sub(1)] {
                prop_assert_eq!(unpack_index(entry, other), (other == seq).then_some(slot));
            }
        }

        #[test]
        fn the_index_knows_frames_by_their_lower_48_bits(seq: u64, slot in 0..MAX_SLOTS) {
            prop_assert_eq!(unpack_index(pack_index(seq, slot), seq), Some(slot));
        }
    }
}

mod keys {
    use super::*;
    use cuframes::protocol::runtime_dir::check_key;

    const KEY: &str = "[A-Za-z0-9_-][A-Za-z0-9_.-]{0,62}";
    const NOT_IN_A_KEY: &str = "[^A-Za-z0-9_.-]";

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn keys_are_taken(key in KEY) {
            prop_assert!(check_key(&key).is_ok());
        }

        #[test]
        fn other_characters_are_refused(
            key in KEY,
            at in any::<prop::sample::Index>(),
            other in prop_oneof![NOT_IN_A_KEY, "[/\\x00 é٣]"],
        ) {
            let at = at.index(key.len());
            // In place of another, so that the length is not what is wrong.
            let bad = [&key[..at], &other, &key[at + 1..]].concat();
            prop_assert!(check_key(&bad).is_err(), "{:?}", bad);
        }

        #[test]
        fn dots_do_not_come_first(rest in "[A-Za-z0-9_.-]{0,62}") {
            let bad = format!(".{rest}");
            prop_assert!(check_key(&bad).is_err());
        }

        #[test]
        fn long_keys_are_refused(key in "[A-Za-z0-9_-][A-Za-z0-9_.-]{63,200}") {
            prop_assert!(check_key(&key).is_err());
        }
    }

    #[test]
    fn a_key_has_a_character() {
        assert!(check_key("").is_err());
    }
}
