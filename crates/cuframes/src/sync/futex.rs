//! Sleeping and waking across processes: futexes, and the doorbell that ends a wait from within.

use std::ptr::from_ref;
// Statics of this process; loom does not model them.
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;

use super::atomic::AtomicU32;
use super::clock::now;

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
    unsafe { libc::syscall(libc::SYS_futex, from_ref(word), libc::FUTEX_WAKE, i32::MAX) };
}

/// Sleeps while `word` is `seen`, until it is woken or `timeout` is over. May return early.
pub fn wait(word: &AtomicU32, seen: u32, timeout: Option<Duration>) {
    futex_wait(word, libc::FUTEX_WAIT, seen, timeout);
}

pub(super) fn futex_wait(word: &AtomicU32, op: i32, seen: u32, timeout: Option<Duration>) {
    let ts = timeout.map(timespec);
    let ts = ts.as_ref().map_or(std::ptr::null(), from_ref);
    // SAFETY: the word is valid for the call, `ts` is null or points to a live timespec.
    unsafe { libc::syscall(libc::SYS_futex, from_ref(word), op, seen, ts) };
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
        uaddr: from_ref(word) as u64,
        flags,
        reserved: 0,
    };
    if !NO_WAITV.load(Ordering::Relaxed) {
        let waiters = [waiter(shared, FUTEX_32), waiter(local, FUTEX_32 | FUTEX_PRIVATE)];
        let deadline = timeout.map(|t| timespec(now() + t));
        let deadline = deadline.as_ref().map_or(std::ptr::null(), from_ref);
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
