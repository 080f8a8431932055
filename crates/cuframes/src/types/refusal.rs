// SPDX-License-Identifier: LGPL-2.1-or-later
//! Reasons for which a publisher refuses or evicts a subscriber.

/// Why a publisher refuses or evicts a subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum RefusalReason {
    /// The publisher has its maximum number of subscribers.
    Full = 1,
    /// The two sides have no version of the protocol in common.
    Version = 2,
    /// A message was invalid or out of order.
    Malformed = 3,
    /// The subscriber asked for more frames than one subscriber may hold, or held more than its credit.
    OverCredit = 4,
    /// The subscriber held frames and took none for longer than the publisher waits.
    Stalled = 5,
    /// The publisher exits.
    Closing = 6,
    /// There is no memory, or no file descriptor, for this subscriber.
    NoMemory = 7,
    /// The subscriber did not read its messages.
    Slow = 8,
    /// The publisher does not serve this user.
    Denied = 9,
    /// A code that this version does not know.
    Other = u32::MAX,
}

impl RefusalReason {
    /// Returns whether another attempt can succeed without a change of configuration.
    pub(crate) fn is_transient(self) -> bool {
        use RefusalReason::{Closing, Full, NoMemory, Slow, Stalled};
        matches!(self, Full | Closing | NoMemory | Slow | Stalled)
    }
}

impl From<u32> for RefusalReason {
    fn from(code: u32) -> Self {
        use RefusalReason::*;
        [Full, Version, Malformed, OverCredit, Stalled, Closing, NoMemory, Slow, Denied]
            .into_iter()
            .find(|c| *c as u32 == code)
            .unwrap_or(Other)
    }
}
