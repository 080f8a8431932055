//! The atomic types of this crate; every module takes them from here.
//!
//! With `--cfg loom` they are loom's, so that `tests/loom.rs` explores every interleaving of the code
//! that runs in production.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
