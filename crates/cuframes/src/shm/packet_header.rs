// SPDX-License-Identifier: LGPL-2.1-or-later
//! The part of a packet's header that describes the packet: [`PacketInfo`] and its place in the GOP.

use super::layout::PACKET_META_WORDS;
use super::words::{duration_from_word, duration_to_word, time_from_word, time_to_word};
use crate::types::packet::PacketInfo;

/// The words of a packet's header after sequence number and length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PacketHeader {
    pub info: PacketInfo,
    /// Generation of the caps that the packet was published with.
    pub generation: u32,
    /// Position of the keyframe before the one that decoding of this packet starts at.
    pub previous_keyframe: Option<u64>,
    /// Time of publication, ns of CLOCK_MONOTONIC.
    pub published_ns: i64,
    /// Bytes of encoded references that follow the packet's bytes.
    pub references_len: u64,
}

const KEYFRAME: u64 = 1;

impl PacketHeader {
    pub(crate) fn to_words(&self) -> [u64; PACKET_META_WORDS] {
        let i = &self.info;
        let mut words = [0; PACKET_META_WORDS];
        words[0] = (u64::from(self.generation) << 32) | if i.keyframe { KEYFRAME } else { 0 };
        words[1] = i.flags.into();
        words[2] = time_to_word(i.pts);
        words[3] = time_to_word(i.dts);
        words[4] = duration_to_word(i.duration);
        words[5] = self.previous_keyframe.map_or(0, |position| position + 1);
        words[6] = self.published_ns as u64;
        words[7] = self.references_len;
        words
    }

    /// Reads the header. The references follow the packet's bytes and stay empty here.
    pub(crate) fn from_words(words: &[u64; PACKET_META_WORDS]) -> Self {
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
            previous_keyframe: words[5].checked_sub(1),
            published_ns: words[6] as i64,
            references_len: words[7],
        }
    }

    /// The time of decoding, else of presentation, else of publication; ns of CLOCK_MONOTONIC.
    pub(crate) fn time(&self) -> i64 {
        self.info.dts.or(self.info.pts).unwrap_or(self.published_ns)
    }
}

/// Maximum bytes of all encoded references of a packet.
pub(crate) const REFERENCE_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn header(info: PacketInfo) -> PacketHeader {
        let (generation, previous_keyframe) = (3, Some(8));
        PacketHeader { info, generation, previous_keyframe, published_ns: 30, references_len: 5 }
    }

    #[test]
    fn headers_survive_storing() {
        let info = PacketInfo {
            pts: Some(20),
            dts: Some(10),
            duration: Some(7),
            keyframe: true,
            flags: u32::MAX,
            references: Vec::new(),
        };
        let none = PacketHeader { previous_keyframe: None, ..header(PacketInfo::default()) };
        for header in [header(info), none] {
            assert_eq!(PacketHeader::from_words(&header.to_words()), header);
        }
        // The position of the first packet is 0.
        let first = PacketHeader { previous_keyframe: Some(0), ..header(PacketInfo::default()) };
        assert_eq!(PacketHeader::from_words(&first.to_words()), first);
    }

    #[test]
    fn unknown_flags_are_ignored() {
        let mut words = header(PacketInfo::default()).to_words();
        words[0] |= 2;
        assert!(!PacketHeader::from_words(&words).info.keyframe);
    }

    #[test]
    fn time_of_decoding_precedes_others() {
        let times = |dts, pts| header(PacketInfo { dts, pts, ..Default::default() }).time();
        assert_eq!(
            [times(Some(10), Some(20)), times(None, Some(20)), times(None, None)],
            [10, 20, 30]
        );
    }
}
