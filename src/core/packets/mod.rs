//! Packets: one ring a track ([`ring`]), the publisher's end of it and the readers'.

pub mod hold;
pub mod ring;

pub(crate) mod reader;
pub(crate) mod track;

use std::sync::Arc;

use crate::core::layout::{
    PACKET_META_WORDS, duration_from_word, duration_to_word, time_from_word, time_to_word,
};

/// What is known of a packet beside its bytes. Times are CLOCK_MONOTONIC in ns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PacketInfo {
    pub pts: Option<i64>,
    pub dts: Option<i64>,
    pub duration: Option<u64>,
    /// Decoding can start here.
    pub keyframe: bool,
    /// `GstBufferFlags` that mean something to others (DISCONT, HEADER, …).
    pub flags: u32,
    /// Its times on other clocks.
    pub references: Vec<Reference>,
}

/// A packet's time on another clock, such as the camera's own by NTP: what GstReferenceTimestampMeta has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Which clock, as GStreamer's caps: `timestamp/x-ntp`.
    pub clock: Arc<str>,
    /// In ns.
    pub timestamp: u64,
    /// In ns.
    pub duration: Option<u64>,
}

/// The caller's words of a packet's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    pub info: PacketInfo,
    pub generation: u32,
    /// Where the keyframe begins before the one that decoding has to start at.
    pub before: Option<u64>,
    pub published: i64,
    /// Bytes behind those of the packet: its references.
    pub extra: u64,
}

const KEYFRAME: u64 = 1;

impl Meta {
    pub fn to_words(&self) -> [u64; PACKET_META_WORDS] {
        let i = &self.info;
        let mut words = [0; PACKET_META_WORDS];
        words[0] = (u64::from(self.generation) << 32) | if i.keyframe { KEYFRAME } else { 0 };
        words[1] = i.flags.into();
        words[2] = time_to_word(i.pts);
        words[3] = time_to_word(i.dts);
        words[4] = duration_to_word(i.duration);
        words[5] = self.before.map_or(0, |position| position + 1);
        words[6] = self.published as u64;
        words[7] = self.extra;
        words
    }

    /// All but the references.
    pub fn from_words(words: &[u64; PACKET_META_WORDS]) -> Self {
        Self {
            info: PacketInfo {
                pts: time_from_word(words[2]),
                dts: time_from_word(words[3]),
                duration: duration_from_word(words[4]),
                keyframe: words[0] & KEYFRAME != 0,
                flags: words[1] as u32,
                references: Vec::new(),
            },
            generation: (words[0] >> 32) as u32,
            before: words[5].checked_sub(1),
            published: words[6] as i64,
            extra: words[7],
        }
    }

    /// When it is to be decoded or shown, as far as that is known.
    pub fn time(&self) -> i64 {
        self.info.dts.or(self.info.pts).unwrap_or(self.published)
    }
}

/// Bytes of all references of a packet at most.
pub(crate) const REFERENCE_BYTES: usize = 4096;
/// Bytes of the name of a clock at most.
const MAX_CLOCK: usize = 255;

/// References as they stand behind a packet's bytes: timestamp, duration, length of the text, text. Those
/// that `most` bytes have no room for are left out.
pub(crate) fn encode_references(references: &[Reference], most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for r in references {
        if r.clock.len() > MAX_CLOCK || bytes.len() + 24 + r.clock.len() > most {
            continue;
        }
        bytes.extend(r.timestamp.to_ne_bytes());
        bytes.extend(duration_to_word(r.duration).to_ne_bytes());
        bytes.extend((r.clock.len() as u64).to_ne_bytes());
        bytes.extend(r.clock.as_bytes());
    }
    bytes
}

/// `None` if the bytes make no sense.
pub(crate) fn decode_references(mut bytes: &[u8]) -> Option<Vec<Reference>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (words, rest) = bytes.split_at_checked(24)?;
        let mut words =
            words.chunks_exact(8).map(|w| u64::from_ne_bytes(w.try_into().expect("8 bytes")));
        let mut word = || words.next().expect("three words");
        let (timestamp, duration) = (word(), duration_from_word(word()));
        let len = usize::try_from(word()).ok().filter(|len| *len <= MAX_CLOCK)?;
        let (text, rest) = rest.split_at_checked(len)?;
        all.push(Reference { clock: str::from_utf8(text).ok()?.into(), timestamp, duration });
        bytes = rest;
    }
    Some(all)
}
