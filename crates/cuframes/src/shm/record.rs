// SPDX-License-Identifier: LGPL-2.1-or-later
//! The record of a frame in shared memory: [`FrameInfo`] and the location of the pixels.
//!
//! There is one record per slot, and the claim on the slot protects pixels and record together.

use std::borrow::Borrow;

use super::references::{decode_references, encode_references};
use super::words::*;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::types::frame::{Crop, FrameInfo, PacketId, Plane, Planes};

/// Size of a record in words.
pub const RECORD_WORDS: usize = 64;

/// First word of the references. The word before has their length in bytes.
const REFERENCES: usize = 19;

/// Maximum bytes of all references of a frame: 24 for each, plus the name of its clock.
pub const REFERENCE_BYTES: usize = (RECORD_WORDS - REFERENCES) * 8;

/// A record. `I` is [`FrameInfo`] in a record that was read; a writer uses `&FrameInfo`, so that nothing is
/// cloned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<I = FrameInfo> {
    /// Sequence number of the frame.
    pub seq: u64,
    /// Generation of the caps that the frame was published with.
    pub generation: u32,
    /// Id of the chunk that the slot is part of.
    pub chunk: u32,
    /// Index of the slot in its chunk.
    pub slot_in_chunk: u32,
    /// Time of publication, ns of CLOCK_MONOTONIC.
    pub published_ns: i64,
    /// Description of the frame.
    pub info: I,
}

const HAS_CROP: u64 = 1;

const HAS_PACKET: u64 = 2;

impl<I: Borrow<FrameInfo>> Record<I> {
    /// Writes the record. The caller owns the slot, and publishes its number afterwards. References that
    /// exceed [`REFERENCE_BYTES`] are omitted.
    pub fn store(&self, words: &[AtomicU64]) {
        let i: &FrameInfo = self.info.borrow();
        let crop = i.crop.unwrap_or_default();
        let packet = i.packet.unwrap_or(PacketId { track: 0, seq: 0 });
        let has =
            u64::from(i.crop.is_some()) * HAS_CROP + u64::from(i.packet.is_some()) * HAS_PACKET;
        let plane = |n: usize| i.planes.get(n).map_or(0, |p| pair(p.offset, p.stride as u32));
        let all = [
            self.seq,
            pair(self.generation, self.chunk),
            pair(self.slot_in_chunk, i.flags),
            time_to_word(i.pts),
            time_to_word(i.dts),
            duration_to_word(i.duration),
            i.captured_ns as u64,
            self.published_ns as u64,
            i.size as u64,
            has << 32 | i.planes.len() as u64,
            plane(0),
            plane(1),
            plane(2),
            plane(3),
            pair(crop.x, crop.y),
            pair(crop.width, crop.height),
            u64::from(packet.track),
            packet.seq,
        ];
        let references = encode_references(&i.references, REFERENCE_BYTES);
        let text = references.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        let all = all.into_iter().chain([references.len() as u64]).chain(text);
        for (to, from) in words.iter().zip(all) {
            // SYNC(publish/claim): ordered before the slot's number, which is stored with Release.
            to.store(from, Ordering::Relaxed);
        }
    }
}

impl Record {
    /// Reads the record of a slot that the caller has claimed; `None` if it is invalid.
    pub fn load(words: &[AtomicU64]) -> Option<Self> {
        // SYNC(publish/claim): ordered after the slot's number, which was loaded with Acquire.
        let w = |n: usize| words[n].load(Ordering::Relaxed);
        let (generation, chunk) = halves(w(1));
        let (slot_in_chunk, flags) = halves(w(2));
        let (has, planes) = (w(9) >> 32, w(9) as u32 as usize);
        if planes > Planes::MAX {
            return None;
        }
        let (x, y) = halves(w(14));
        let (width, height) = halves(w(15));
        let len = usize::try_from(w(REFERENCES - 1)).ok().filter(|len| *len <= REFERENCE_BYTES)?;
        let bytes: Vec<u8> =
            (0..len.div_ceil(8)).flat_map(|n| w(REFERENCES + n).to_ne_bytes()).take(len).collect();
        Some(Self {
            seq: w(0),
            generation,
            chunk,
            slot_in_chunk,
            published_ns: w(7) as i64,
            info: FrameInfo {
                pts: time_from_word(w(3)),
                dts: time_from_word(w(4)),
                duration: duration_from_word(w(5)),
                captured_ns: w(6) as i64,
                flags,
                size: usize::try_from(w(8)).ok()?,
                planes: (0..planes)
                    .map(|n| halves(w(10 + n)))
                    .map(|(offset, stride)| Plane { offset, stride: stride as i32 })
                    .collect(),
                crop: (has & HAS_CROP != 0).then_some(Crop { x, y, width, height }),
                packet: (has & HAS_PACKET != 0)
                    .then(|| PacketId { track: w(16) as u32, seq: w(17) }),
                references: decode_references(&bytes)?,
            },
        })
    }
}
