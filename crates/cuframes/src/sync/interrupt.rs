//! Ends waits of this process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use super::clock::now;
use super::futex::{futex_wait, wait_either};

/// Who polls without an event for interrupts looks up this often.
const WITHOUT_EVENT: Duration = Duration::from_millis(20);

/// What a thread that waits for a peer also listens to: something happened in this process.
///
/// It is a counter, so that nothing that rings between a look at the state and the sleep is lost.
#[derive(Debug, Default)]
pub struct Doorbell(AtomicU32);

impl Doorbell {
    pub fn ring(&self) {
        // Release pairs with the Acquire in `seen`: what was changed before the ring is seen after it.
        self.0.fetch_add(1, Ordering::Release);
        // SAFETY: as in `wake_all`.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                std::ptr::from_ref(&self.0),
                libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                i32::MAX,
            )
        };
    }

    /// To be read before the state that decides whether to sleep.
    pub fn seen(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Sleeps until the bell rings after `seen` was read. May return early.
    pub fn wait(&self, seen: u32, timeout: Option<Duration>) {
        // The bell wakes its private key only, so this waits for that one.
        futex_wait(&self.0, libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, seen, timeout);
    }

    /// Sleeps until the bell rings after `seen` was read, or `word` is not `value` any more and was woken.
    pub fn wait_with(&self, seen: u32, word: (&AtomicU32, u32), timeout: Option<Duration>) {
        wait_either(word, (&self.0, seen), timeout);
    }
}

/// Ends waits of this process from another of its threads, also those in `poll`.
///
/// It stays set until [`Interrupt::clear`]; each wait that it is handed to returns at once while it is.
#[derive(Debug, Default)]
pub struct Interrupt {
    bell: Arc<Doorbell>,
    set: AtomicBool,
    /// For those in `poll`. Made when it is first needed, if there is an fd for it.
    event: OnceLock<EventFd>,
}

fn event() -> nix::Result<EventFd> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
}

impl Interrupt {
    /// One that ends waits at once. `Interrupt::default()` needs no fd to be made; where there is none for it
    /// later, some waits end 20 ms after it is set.
    pub fn new() -> io::Result<Self> {
        Ok(Self { event: OnceLock::from(event()?), ..Self::default() })
    }

    pub fn set(&self) {
        self.set.store(true, Ordering::Release);
        // Pairs with the fence in `fd`: either we see the event there, or it sees that we are set.
        fence(Ordering::SeqCst);
        if let Some(event) = self.event.get() {
            // A full counter is a set one.
            let _ = event.write(1);
        }
        self.bell.ring();
    }

    pub fn clear(&self) {
        self.set.store(false, Ordering::Release);
        if let Some(event) = self.event.get() {
            // Nothing to read is a cleared one.
            let _ = event.read();
        }
    }

    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// Sleeps, but no longer than until the interrupt is set.
    pub fn sleep(&self, time: Duration) {
        let deadline = now() + time;
        loop {
            let seen = self.bell.seen();
            let left = deadline.saturating_sub(now());
            if self.is_set() || left.is_zero() {
                return;
            }
            self.bell.wait(seen, Some(left));
        }
    }

    /// Waits until one of the fds can be read, but no longer than until the interrupt is set. May return
    /// early.
    pub fn poll(&self, fds: &[BorrowedFd<'_>], timeout: Duration) {
        let own = self.fd();
        let timeout = if own.is_some() { timeout } else { timeout.min(WITHOUT_EVENT) };
        let all = fds.iter().copied().chain(own);
        let mut all: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // Rounded up, so that nothing is polled for in circles.
        let timeout = PollTimeout::try_from(timeout.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut all, timeout);
    }

    /// Readable while the interrupt is set; `None` while there is no fd for it.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        if self.event.get().is_none() {
            let _ = self.event.set(event().ok()?);
            // Pairs with the fence in `set`.
            fence(Ordering::SeqCst);
            if self.is_set() {
                let _ = self.event.get()?.write(1);
            }
        }
        self.event.get().map(|event| event.as_fd())
    }

    /// Rings when the interrupt is set; a subscriber of this process rings it for its own events too.
    pub fn bell(&self) -> &Arc<Doorbell> {
        &self.bell
    }
}
