// SPDX-License-Identifier: LGPL-2.1-or-later
//! Encoding of reference timestamps (times on other clocks) as bytes.

use super::words::{duration_from_word, duration_to_word};
use crate::types::packet::ReferenceTimestamp;

/// Maximum length of a clock's name in bytes.
const MAX_CLOCK: usize = 255;

/// Bytes of a reference before the name of its clock.
const FIXED: usize = 24;

/// Encodes references as they follow a packet's bytes: timestamp, duration, length of the clock's name, name.
/// References that would exceed `max_bytes` are omitted.
pub(crate) fn encode_references(references: &[ReferenceTimestamp], max_bytes: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for r in references {
        if r.clock.len() > MAX_CLOCK || bytes.len() + FIXED + r.clock.len() > max_bytes {
            continue;
        }
        bytes.extend(r.timestamp.to_ne_bytes());
        bytes.extend(duration_to_word(r.duration).to_ne_bytes());
        bytes.extend((r.clock.len() as u64).to_ne_bytes());
        bytes.extend(r.clock.as_bytes());
    }
    bytes
}

/// Decodes references; `None` if the bytes are invalid.
pub(crate) fn decode_references(mut bytes: &[u8]) -> Option<Vec<ReferenceTimestamp>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (words, rest) = bytes.split_at_checked(FIXED)?;
        let mut words =
            words.chunks_exact(8).map(|w| u64::from_ne_bytes(w.try_into().expect("8 bytes")));
        let mut word = || words.next().expect("three words");
        let (timestamp, duration) = (word(), duration_from_word(word()));
        let len = usize::try_from(word()).ok().filter(|len| *len <= MAX_CLOCK)?;
        let (text, rest) = rest.split_at_checked(len)?;
        all.push(ReferenceTimestamp {
            clock: str::from_utf8(text).ok()?.into(),
            timestamp,
            duration,
        });
        bytes = rest;
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(len: usize) -> ReferenceTimestamp {
        ReferenceTimestamp { clock: "x".repeat(len).into(), timestamp: 1, duration: None }
    }

    /// Returns the lengths of the clocks' names that are kept.
    fn kept(lens: &[usize], max_bytes: usize) -> Vec<usize> {
        let all: Vec<_> = lens.iter().map(|len| reference(*len)).collect();
        let bytes = encode_references(&all, max_bytes);
        assert!(bytes.len() <= max_bytes);
        decode_references(&bytes).unwrap().iter().map(|r| r.clock.len()).collect()
    }

    #[test]
    fn long_names_are_omitted() {
        assert_eq!(kept(&[254, 255, 256, 257, 1], 4096), [254, 255, 1]);
    }

    #[test]
    fn references_beyond_the_maximum_are_omitted() {
        let both = 2 * FIXED + 10 + 20;
        assert_eq!(kept(&[10, 20], both), [10, 20]);
        assert_eq!(kept(&[10, 20], both - 1), [10]);
        assert_eq!(kept(&[10, 20, 5], both - 1), [10, 5]);
        assert_eq!(kept(&[0], FIXED), [0]);
        assert_eq!(kept(&[0], FIXED - 1), [0; 0]);
    }
}
