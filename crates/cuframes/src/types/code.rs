//! Words that both sides use.

/// Why a peer is sent away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum RefusalReason {
    /// All places are taken.
    Full = 1,
    /// No version in common.
    Version = 2,
    /// The message made no sense, or came at the wrong time.
    Malformed = 3,
    /// More claims than the credit allows.
    OverCredit = 4,
    /// It held frames and did not move for too long.
    Stalled = 5,
    /// The publisher ends.
    Closing = 6,
    /// No memory for the credit asked for.
    NoMemory = 7,
    /// The peer did not read its messages.
    Slow = 8,
    /// The publisher does not serve this user.
    Denied = 9,
    /// A code that this version does not know.
    Other = u32::MAX,
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

/// Which frames a subscriber takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u32)]
pub enum Mode {
    /// The newest at the time of asking; those that came between are skipped.
    #[default]
    Newest = 0,
    /// Each in order, as far as the publisher still has it.
    Strict = 1,
}
