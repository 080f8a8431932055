// SPDX-License-Identifier: LGPL-2.1-or-later
//! Delivery modes of a subscriber of frames.

/// Which frames a subscriber takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u32)]
pub enum Mode {
    /// The newest frame at the time of the call; skips the frames before it.
    #[default]
    Newest = 0,
    /// Each frame in order, as far as the publisher still has it. A publisher with
    /// [`Policy::Wait`](crate::Policy) waits for this subscriber.
    Strict = 1,
}
