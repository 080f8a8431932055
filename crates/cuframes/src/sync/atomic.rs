// SPDX-License-Identifier: LGPL-2.1-or-later
//! The atomic types of this crate; all other modules import them from here.
//!
//! With `--cfg loom` they are loom's types, so that `tests/loom` explores all interleavings of the
//! production code.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
