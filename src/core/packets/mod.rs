//! Packets: one ring of bytes a track ([`ring`]), the publisher's end of it and the readers'.

pub mod ring;

pub(crate) mod reader;
pub(crate) mod track;

use crate::core::layout::{duration_from_word, duration_to_word, time_from_word, time_to_word};
use ring::META_WORDS;

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
}

/// The caller's words of an index entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    pub info: PacketInfo,
    pub generation: u32,
    /// Sequence number of the keyframe that decoding has to start at.
    pub gop: Option<u64>,
    pub published: i64,
}

const KEYFRAME: u64 = 1;

impl Meta {
    pub fn to_words(&self) -> [u64; META_WORDS] {
        let i = &self.info;
        let mut words = [0; META_WORDS];
        words[0] = (u64::from(self.generation) << 32) | if i.keyframe { KEYFRAME } else { 0 };
        words[1] = i.flags.into();
        words[2] = time_to_word(i.pts);
        words[3] = time_to_word(i.dts);
        words[4] = duration_to_word(i.duration);
        words[5] = self.gop.map_or(0, |seq| seq + 1);
        words[6] = self.published as u64;
        words
    }

    pub fn from_words(words: &[u64; META_WORDS]) -> Self {
        Self {
            info: PacketInfo {
                pts: time_from_word(words[2]),
                dts: time_from_word(words[3]),
                duration: duration_from_word(words[4]),
                keyframe: words[0] & KEYFRAME != 0,
                flags: words[1] as u32,
            },
            generation: (words[0] >> 32) as u32,
            gop: words[5].checked_sub(1),
            published: words[6] as i64,
        }
    }
}
