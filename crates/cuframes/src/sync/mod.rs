// SPDX-License-Identifier: LGPL-2.1-or-later
//! Synchronization: atomics, futexes, locks, interrupts, the clock, and forked processes.

pub mod atomic;
pub mod clock;
#[cfg(not(loom))]
pub mod event;
#[cfg(not(loom))]
pub mod futex;
pub mod interrupt;
pub mod lock;
#[cfg(loom)]
pub mod model;
pub mod process;
pub mod versioned;

#[cfg(loom)]
pub use model::{event, futex};

pub use lock::lock;
