// SPDX-License-Identifier: LGPL-2.1-or-later
//! Shared memory: everything that two processes read and write at the same time.
//!
//! [`layout`] has the structures, and [`segments`] the three kinds of segments that consist of them.
//! [`claim`], [`retention`], [`ring`], [`sleeper`], [`stream_end`] and [`waiter`] are the lock-free protocols;
//! `tests/loom` models them. Pairs of atomic operations carry a name at both ends, such as `SYNC(claim/retire)`.
//!
//! All shared words are atomics. A peer may write any of them at any time, so no other reference to shared
//! memory is ever created, and each value is checked before it is used as an index or a length.

pub mod claim;
pub mod layout;
pub mod mapping;
pub mod packet_header;
pub mod record;
pub mod references;
pub mod retention;
pub mod ring;
pub mod segments;
pub mod sleeper;
pub mod stream_end;
pub mod waiter;
mod words;
