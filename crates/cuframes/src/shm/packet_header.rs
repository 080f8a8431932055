//! What stands before a packet's bytes.

use super::layout::PACKET_META_WORDS;
use super::words::{duration_from_word, duration_to_word, time_from_word, time_to_word};
use crate::types::packet::PacketInfo;

/// The caller's words of a packet's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PacketHeader {
    pub info: PacketInfo,
    pub generation: u32,
    /// Where the keyframe begins before the one that decoding has to start at.
    pub before: Option<u64>,
    pub published: i64,
    /// Bytes behind those of the packet: its references.
    pub extra: u64,
}

const KEYFRAME: u64 = 1;

impl PacketHeader {
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
