// SPDX-License-Identifier: LGPL-2.1-or-later
//! Messages of the socket.

use cuframes::info::{PublisherStatus, SubscriberStatus, TrackStatus};
use cuframes::memory::Kind;
use cuframes::protocol::message::{Hello, Message, VERSIONS};
use cuframes::protocol::wire::{MAX_CAPS, MAX_MESSAGE, MAX_NAME, Malformed, check_caps};
use cuframes::{Mode, RefusalReason};

use proptest::collection::vec;
use proptest::prelude::*;

use crate::config;

fn reason() -> impl Strategy<Value = RefusalReason> {
    // Known codes, and some unknown ones.
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
    // The ranges have a version in common.
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
        (reason(), text()).prop_map(|(reason, text)| Message::Refused { reason, text }),
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
        (reason(), text()).prop_map(|(reason, text)| Message::Bye { reason, text }),
        Just(Message::Leave),
        any::<((u16, u16), u64)>()
            .prop_map(|(versions, from)| Message::StatusRequest { versions, from }),
        (any::<(u16, u64)>(), status()).prop_map(|((version, next), status)| {
            Message::Status { version, next, status: Box::new(status) }
        }),
    ]
}

fn status() -> impl Strategy<Value = PublisherStatus> {
    let track = (any::<(u32, u64, u64)>(), text()).prop_map(|((track, published, bytes), caps)| {
        TrackStatus { track, caps, published, buffered: bytes / 2, oversized: 1, bytes }
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
        |((key, name, caps), (tracks, subscribers), (pid, uid, epoch, time_ns, n, last), kind)| {
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

/// Decodes any bytes, with any number of fds. A message that is accepted has one encoding only.
fn check_strange(bytes: &[u8]) {
    for fds in 0..3 {
        let Ok(message) = Message::decode(bytes, fds) else { continue };
        assert_eq!(fds, message.fds());
        let again = message.encode();
        match message {
            // This version maps all codes of later versions to `Other`.
            Message::Refused { reason: RefusalReason::Other, .. }
            | Message::Bye { reason: RefusalReason::Other, .. } => {
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
    fn messages_survive_encoding(message in message()) {
        let bytes = message.encode();
        prop_assert_eq!(Message::decode(&bytes, message.fds()), Ok(message));
    }

    #[test]
    fn wrong_number_of_fds_is_refused(message in message(), got in 0..4usize) {
        let expected = message.fds();
        prop_assume!(got != expected);
        let decoded = Message::decode(&message.encode(), got);
        prop_assert_eq!(decoded, Err(Malformed::Fds { expected, got }));
    }

    #[test]
    fn truncated_message_is_refused(message in message(), cut in any::<prop::sample::Index>()) {
        let bytes = message.encode();
        let part = &bytes[..cut.index(bytes.len())];
        prop_assert_eq!(Message::decode(part, message.fds()), Err(Malformed::Short));
    }

    #[test]
    fn message_with_trailing_bytes_is_refused(message in message(), more in vec(any::<u8>(), 1..9)) {
        let bytes = [message.encode(), more].concat();
        prop_assert_eq!(Message::decode(&bytes, message.fds()), Err(Malformed::Long));
    }

    /// Later versions may have any other fields.
    #[test]
    fn other_versions_are_recognized(
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
    fn texts_with_control_characters_are_refused(before in "\\PC{0,9}", control in "\\p{Cc}", reason in reason()) {
        let message = Message::Refused { reason, text: before + &control };
        prop_assert_eq!(Message::decode(&message.encode(), 0), Err(Malformed::Text));
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(kind in 0..14u32, rest in vec(any::<u8>(), 0..80)) {
        check_strange(&rest);
        // Bytes that begin like a message are decoded further.
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

/// Publishers check caps by the rules of the receiver.
#[test]
fn caps_are_limited_on_both_sides() {
    let check = |caps: &str, accepted: bool| {
        assert_eq!(check_caps(caps).is_ok(), accepted);
        let (track, generation) = (1, 2);
        for message in [
            Message::Format { generation, caps: caps.into() },
            Message::TrackFormat { track, generation, caps: caps.into() },
        ] {
            let bytes = message.encode();
            assert!(!accepted || bytes.len() <= MAX_MESSAGE);
            let expected = if accepted { Ok(message) } else { Err(Malformed::Text) };
            assert_eq!(Message::decode(&bytes, 0), expected);
        }
    };
    for caps in ["", "video/x-raw", &"c".repeat(MAX_CAPS), &"\u{e4}".repeat(MAX_CAPS / 2)] {
        check(caps, true);
    }
    for caps in [&"c".repeat(MAX_CAPS + 1), "a\nb", "\0", "\u{7f}", "\u{9f}"] {
        check(caps, false);
    }
}
