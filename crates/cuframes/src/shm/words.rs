// SPDX-License-Identifier: LGPL-2.1-or-later
//! Conversion of values to and from the 64-bit words of shared memory.

const NO_TIME: i64 = i64::MIN;

const NO_DURATION: u64 = u64::MAX;

pub(super) fn pair(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

pub(super) fn halves(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

pub(super) fn time_to_word(t: Option<i64>) -> u64 {
    t.unwrap_or(NO_TIME) as u64
}

pub(super) fn time_from_word(w: u64) -> Option<i64> {
    Some(w as i64).filter(|t| *t != NO_TIME)
}

pub(super) fn duration_to_word(d: Option<u64>) -> u64 {
    d.unwrap_or(NO_DURATION)
}

pub(super) fn duration_from_word(w: u64) -> Option<u64> {
    Some(w).filter(|d| *d != NO_DURATION)
}
