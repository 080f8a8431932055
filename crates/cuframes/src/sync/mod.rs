//! Atomics, futexes, the clock, interrupts: what everything else waits and counts with.

pub mod atomic;
pub mod clock;
pub mod futex;
pub mod interrupt;
pub mod lock;

pub use lock::lock;
