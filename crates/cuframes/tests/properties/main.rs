// SPDX-License-Identifier: LGPL-2.1-or-later
//! Properties that hold for any input: messages, the packet ring, records, keys. `make fuzz` tries more cases.

use std::sync::atomic::AtomicU64;

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

mod keys;
mod messages;
mod packets;
mod records;

pub(crate) fn config() -> ProptestConfig {
    ProptestConfig {
        // Cases that failed once are tried first from then on.
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/corpus/properties.txt",
        ))),
        // As many rejects as it takes to run all cases.
        max_global_rejects: u32::MAX,
        ..ProptestConfig::default()
    }
}

pub(crate) fn words(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}
