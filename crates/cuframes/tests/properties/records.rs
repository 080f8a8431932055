// SPDX-License-Identifier: LGPL-2.1-or-later
//! Records of frames, and the index of slots.

use cuframes::ReferenceTimestamp;
use cuframes::shm::layout::{MAX_SLOTS, pack_index, unpack_index};
use cuframes::shm::record::{RECORD_WORDS, Record};
use cuframes::{Crop, FrameInfo, PacketId, Plane, Planes};

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;

use crate::{config, words};

fn info() -> impl Strategy<Value = FrameInfo> {
    // The smallest time and the longest duration stand for none.
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
        // So many always fit.
        vec(reference, 0..=5),
    )
        .prop_map(
            |(
                (pts, dts, duration),
                (captured_ns, flags, size),
                planes,
                crop,
                packet,
                references,
            )| {
                let planes = planes.into_iter().collect();
                #[rustfmt::skip]
                let info = FrameInfo {
                    pts, dts, duration, captured_ns, flags, size, planes, crop, packet, references,
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
        Record { seq: 1, generation: 1, chunk: 1, slot_in_chunk: 0, published_ns: 0, info };
    let words = words(RECORD_WORDS);
    record.store(&words);
    let kept = Record::load(&words).unwrap().info.references;
    assert_eq!(kept, [all[0].clone(), all[2].clone()]);
}

prop_compose! {
    fn record()(
        (seq, generation, chunk, slot_in_chunk, published_ns) in any::<(u64, u32, u32, u32, i64)>(),
        info in info(),
    ) -> Record {
        Record { seq, generation, chunk, slot_in_chunk, published_ns, info }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn records_survive_storing(record in record(), before in record()) {
        let words = words(RECORD_WORDS);
        // A slot contains the record of an older frame.
        before.store(&words);
        record.store(&words);
        prop_assert_eq!(Record::load(&words), Some(record));
    }

    #[test]
    fn any_words_are_record_or_none(
        mut all in vec(any::<u64>(), RECORD_WORDS),
        planes in 0..=2 * Planes::MAX as u64,
        references in any::<bool>(),
    ) {
        // The number of planes can be wrong. Most numbers of 32 bits are.
        all[9] = all[9] & !0xffff_ffff | planes;
        // The same holds for the length of the references, and of a name in them.
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
    fn index_gives_slot_of_its_frame_only(
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
    fn index_compares_lower_48_bits(seq: u64, slot in 0..MAX_SLOTS) {
        prop_assert_eq!(unpack_index(pack_index(seq, slot), seq), Some(slot));
    }
}
