//! Sleeping and waking across processes: futexes, and the doorbell that ends a wait from within.

use std::io;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;

use super::sync::{AtomicU32, Ordering};

/// A sleeper on kernels before 5.16, which can't wait on two words at once, looks up this often.
const WITHOUT_WAITV: Duration = Duration::from_millis(20);

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
#[derive(Debug)]
pub struct Interrupt {
    bell: std::sync::Arc<Doorbell>,
    set: AtomicBool,
    event: nix::sys::eventfd::EventFd,
}

impl Interrupt {
    pub fn new() -> io::Result<Self> {
        use nix::sys::eventfd::{EfdFlags, EventFd};
        Ok(Self {
            bell: Default::default(),
            set: AtomicBool::new(false),
            event: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    pub fn set(&self) {
        self.set.store(true, Ordering::Release);
        // A full counter is a set one.
        let _ = self.event.write(1);
        self.bell.ring();
    }

    pub fn clear(&self) {
        self.set.store(false, Ordering::Release);
        // Nothing to read is a cleared one.
        let _ = self.event.read();
    }

    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// Sleeps, but no longer than until the interrupt is set.
    pub fn sleep(&self, time: Duration) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(self.fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX));
    }

    /// Readable while the interrupt is set.
    pub(crate) fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.event)
    }

    /// Rings when the interrupt is set; a subscriber of this process rings it for its own events too.
    pub(crate) fn bell(&self) -> &std::sync::Arc<Doorbell> {
        &self.bell
    }
}
