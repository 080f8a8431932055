// SPDX-License-Identifier: LGPL-2.1-or-later
//! Synchronization: atomics, futexes, locks, interrupts, the clock, and forked processes.

pub mod atomic;
pub mod clock;
pub mod futex;
pub mod interrupt;
pub mod lock;
pub mod process;

pub use lock::lock;
