//! Sleeping and waking across processes: futexes, and the doorbell that ends a wait from within.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::sync::{AtomicBool, AtomicU32, Ordering, fence};

/// A sleeper on kernels before 5.16, which can't wait on two words at once, looks up this often.
const WITHOUT_WAITV: Duration = Duration::from_millis(20);

/// Who polls without an event for interrupts looks up this often.
const WITHOUT_EVENT: Duration = Duration::from_millis(20);

static NO_WAITV: AtomicBool = AtomicBool::new(false);

fn timespec(d: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: d.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: d.subsec_nanos().into(),
    }
}

/// Wakes everybody who sleeps on `word`, in any process. A read-only mapping will do.
pub fn wake_all(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE takes the address as a key and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Sleeps while `word` is `seen`, until it is woken or `timeout` is over. May return early.
pub fn wait(word: &AtomicU32, seen: u32, timeout: Option<Duration>) {
    futex_wait(word, libc::FUTEX_WAIT, seen, timeout);
}

fn futex_wait(word: &AtomicU32, op: i32, seen: u32, timeout: Option<Duration>) {
    let ts = timeout.map(timespec);
    let ts = ts.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word is valid for the call, `ts` is null or points to a live timespec.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, seen, ts) };
}

/// As [`wait`], on two words at once: `shared` in shared memory and `local` of this process.
pub fn wait_either(shared: (&AtomicU32, u32), local: (&AtomicU32, u32), timeout: Option<Duration>) {
    const FUTEX_32: u32 = 2;
    const FUTEX_PRIVATE: u32 = 128;
    /// `struct futex_waitv` of linux/futex.h.
    #[repr(C)]
    struct Waiter {
        val: u64,
        uaddr: u64,
        flags: u32,
        reserved: u32,
    }
    let waiter = |(word, seen): (&AtomicU32, u32), flags| Waiter {
        val: seen.into(),
        uaddr: word.as_ptr() as u64,
        flags,
        reserved: 0,
    };
    if !NO_WAITV.load(Ordering::Relaxed) {
        let waiters = [waiter(shared, FUTEX_32), waiter(local, FUTEX_32 | FUTEX_PRIVATE)];
        let deadline = timeout.map(|t| timespec(now() + t));
        let deadline = deadline.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the array and the words that it points to are valid for the call; the deadline is
        // null or points to a live timespec.
        let r = unsafe {
            libc::syscall(
                libc::SYS_futex_waitv,
                waiters.as_ptr(),
                waiters.len(),
                0,
                deadline,
                libc::CLOCK_MONOTONIC,
            )
        };
        // Anything else than an ordinary end: no such call, or a filter that forbids it.
        let ended = [Errno::EAGAIN, Errno::ETIMEDOUT, Errno::EINTR];
        if r >= 0 || ended.contains(&Errno::last()) {
            return;
        }
        NO_WAITV.store(true, Ordering::Relaxed);
    }
    if local.0.load(Ordering::Acquire) == local.1 {
        wait(shared.0, shared.1, Some(timeout.map_or(WITHOUT_WAITV, |t| t.min(WITHOUT_WAITV))));
    }
}

/// CLOCK_MONOTONIC since its origin: the time that all processes of a host share.
pub fn now() -> Duration {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("CLOCK_MONOTONIC exists on every Linux");
    Duration::from(t)
}

/// As [`now`], in nanoseconds.
pub fn now_ns() -> i64 {
    now().as_nanos() as i64
}

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
                self.0.as_ptr(),
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
    pub(crate) fn poll(&self, fds: &[BorrowedFd<'_>], timeout: Duration) {
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
    pub(crate) fn bell(&self) -> &Arc<Doorbell> {
        &self.bell
    }
}
