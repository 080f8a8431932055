// SPDX-License-Identifier: LGPL-2.1-or-later
//! Synchronization: atomics, futexes, locks, interrupts, and the clock.

pub mod atomic;
pub mod clock;
pub mod futex;
pub mod interrupt;
pub mod lock;

pub use lock::lock;
