// SPDX-License-Identifier: LGPL-2.1-or-later
//! Parameters and results of a wait for a frame or packet.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::types::refusal::RefusalReason;

/// How long to wait for a frame or packet, and what ends the wait early.
///
/// The default waits without timeout and without busy polling, and returns at the end of the stream. The interrupt that was
/// given to [`Subscriber::connect`](crate::Subscriber::connect) ends every wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wait {
    /// Maximum time to wait; zero polls once, `None` and [`Duration::MAX`] wait forever.
    pub timeout: Option<Duration>,
    /// Length of the interval around the expected time of the next frame in which the reader polls
    /// instead of sleeping. The expected time follows from the pace of the previous frames. Polling saves
    /// the latency of a wake-up and costs as much CPU time as the interval is long. Zero disables it;
    /// waits for packets ignore it. [`Duration::MAX`] always polls once the pace is known.
    pub busy_poll: Duration,
    /// At the end of the stream, continue to wait for a publisher that resumes it, instead of returning
    /// [`Next::Eos`].
    pub past_eos: bool,
}

/// Result of [`Subscriber::next_frame`](crate::Subscriber::next_frame) and
/// [`PacketReader::next`](crate::PacketReader::next).
#[derive(Debug)]
pub enum Next<T> {
    /// The next frame or packet.
    Item(T),
    /// The stream has ended. A later wait returns items again if the publisher resumes the stream.
    Eos,
    /// The timeout of the wait elapsed.
    TimedOut,
    /// The interrupt is set.
    Interrupted,
    /// The publisher exited, or evicted this subscriber. A new
    /// [`Subscriber`](crate::Subscriber) can connect to the next publisher.
    Lost {
        /// Why the connection ended. [`RefusalReason::Closing`] if the publisher exited.
        reason: RefusalReason,
        /// The reason as a sentence for a log.
        text: String,
    },
}

/// Converts a refusal during a wait, such as the end of the publisher before it has completed a frame.
pub(super) fn refused_is_lost<T>(result: Result<Next<T>>) -> Result<Next<T>> {
    match result {
        Err(Error::Refused { reason, text, .. }) => Ok(Next::Lost { reason, text }),
        other => other,
    }
}
