//! GStreamer's CUDA library: contexts, streams, memory and pools of its own kind.

pub mod error;
pub mod library;
pub mod memory_cache;
pub mod pool;

pub use error::{Error, Result};
pub use library::*;
