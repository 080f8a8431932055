// SPDX-License-Identifier: LGPL-2.1-or-later
//! An eventfd, and waiting for it in `poll`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// An eventfd: readable between [`Event::set`] and [`Event::reset`].
#[derive(Debug)]
pub struct Event(EventFd);

impl Event {
    /// Returns an event that is not readable.
    ///
    /// # Errors
    /// The process or the system has no file descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    /// Makes it readable.
    pub fn set(&self) {
        // An error means that the counter is full, and so the event is readable already.
        let _ = self.0.write(1);
    }

    /// Makes it not readable.
    pub fn reset(&self) {
        // An error means that the event was not readable.
        let _ = self.0.read();
    }
}

/// Waits until one of the fds or `event` is readable, or until `timeout` elapses. Returns whether `event` is readable.
pub fn poll(fds: &[BorrowedFd<'_>], event: Option<&Event>, timeout: Duration) -> bool {
    let own = event.map(|event| event.0.as_fd());
    let all = fds.iter().copied().chain(own);
    let mut all: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    // Rounded up, so that the last millisecond does not become a loop of polls without timeout.
    let timeout = PollTimeout::try_from(timeout.as_millis() + 1).unwrap_or(PollTimeout::MAX);
    let readable = nix::poll::poll(&mut all, timeout).is_ok_and(|n| n > 0);
    readable && event.is_some() && all.last().is_some_and(|fd| fd.any() == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

    #[test]
    fn event_neither_blocks_nor_is_inherited() {
        let event = Event::new().unwrap();
        let flags = |arg| fcntl(&event.0, arg).unwrap();
        let status = OFlag::from_bits_retain(flags(FcntlArg::F_GETFL));
        assert!(status.contains(OFlag::O_NONBLOCK));
        assert!(FdFlag::from_bits_retain(flags(FcntlArg::F_GETFD)).contains(FdFlag::FD_CLOEXEC));
    }
}
