//! How to wait, and what a wait came to.

use std::time::Duration;

use crate::sync::interrupt::Interrupt;
use crate::types::code::RefusalReason;

/// How long to wait, and what ends the wait.
#[derive(Debug, Clone, Copy)]
pub struct Wait<'a> {
    pub interrupt: &'a Interrupt,
    /// `None` is forever.
    pub timeout: Option<Duration>,
    /// How long to look for a frame without sleeping, around the time at which the next is expected by
    /// the pace of those before; costs as much CPU time and saves the wake-up.
    pub spin: Duration,
    /// At the end of the stream, go on waiting for a publisher that starts it again.
    pub past_eos: bool,
}

impl<'a> Wait<'a> {
    /// Until there is something, without spinning.
    pub fn forever(interrupt: &'a Interrupt) -> Self {
        Self { interrupt, timeout: None, spin: Duration::ZERO, past_eos: false }
    }
}

/// What a wait came to.
#[derive(Debug)]
pub enum Next<T> {
    Item(T),
    /// The stream has ended, unless the publisher starts it again.
    Eos,
    TimedOut,
    /// The interrupt is set.
    Interrupted,
    /// The publisher is gone, or has sent this subscriber away. A new [`Subscriber`] may join the next.
    Lost {
        code: RefusalReason,
        text: String,
    },
}
