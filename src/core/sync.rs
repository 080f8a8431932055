//! The one place that atomics come from. `tests/loom.rs` compiles the protocol
//! modules against a `sync` of loom's types instead and explores every interleaving.

pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
