// SPDX-License-Identifier: LGPL-2.1-or-later
//! Sleeping and waking across processes, on words of shared memory.

use std::ptr::from_ref;
// A static of this process, which loom does not model.
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;

use super::atomic::AtomicU32;
use super::clock::deadline_after;

/// Poll interval while the kernel cannot wait for two words at once: before Linux 5.16, and after an error.
const RECHECK_INTERVAL: Duration = Duration::from_millis(20);

/// The kernel has no futex_waitv, or a filter forbids it.
static NO_WAITV: AtomicBool = AtomicBool::new(false);

/// Result of one call of futex_waitv.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitvResult {
    /// The call slept, or had no reason to.
    Done,
    /// The call failed, and a later one may succeed.
    Failed,
    /// The call does not exist, or a filter forbids it. All later ones would fail too.
    Unavailable,
}

impl WaitvResult {
    fn new(result: nix::Result<libc::c_long>) -> Self {
        match result {
            // A word differs from its expected value, the timeout elapsed, or a signal arrived.
            Ok(_) | Err(Errno::EAGAIN | Errno::ETIMEDOUT | Errno::EINTR) => Self::Done,
            Err(Errno::ENOSYS | Errno::EPERM) => Self::Unavailable,
            Err(_) => Self::Failed,
        }
    }
}

fn timespec(d: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: d.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: d.subsec_nanos().into(),
    }
}

/// Wakes one of the threads that sleep on `word`, in any process. A read-only mapping is sufficient.
pub fn wake_one(word: &AtomicU32) {
    futex_wake(word, libc::FUTEX_WAKE, 1);
}

/// Wakes all threads that sleep on `word`, in any process. A read-only mapping is sufficient.
pub fn wake_all(word: &AtomicU32) {
    futex_wake(word, libc::FUTEX_WAKE, i32::MAX);
}

/// Wakes all threads of this process that sleep on `word`, which is in no shared memory.
pub fn wake_all_private(word: &AtomicU32) {
    futex_wake(word, libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX);
}

fn futex_wake(word: &AtomicU32, op: i32, count: i32) {
    // SAFETY: FUTEX_WAKE uses the address as a key and accesses no memory of this process.
    unsafe { libc::syscall(libc::SYS_futex, from_ref(word), op, count) };
}

/// Sleeps while `word` equals `expected`, until it is woken or `timeout` elapses; `None` sleeps forever. May
/// return early.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    futex_wait(word, libc::FUTEX_WAIT, expected, timeout);
}

/// Sleeps as [`wait`], on a word that [`wake_all_private`] wakes.
pub fn wait_private(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    futex_wait(word, libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, expected, timeout);
}

fn futex_wait(word: &AtomicU32, op: i32, expected: u32, timeout: Option<Duration>) {
    let ts = timeout.map(timespec);
    let ts = ts.as_ref().map_or(std::ptr::null(), from_ref);
    // SAFETY: the word is valid for the call; `ts` is null or points to a live timespec.
    unsafe { libc::syscall(libc::SYS_futex, from_ref(word), op, expected, ts) };
}

/// Sleeps as [`wait`], on two words at once, each with its expected value: `shared` in shared memory, and
/// `local` of this process, which [`wake_all_private`] wakes.
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
    let waiter = |(word, expected): (&AtomicU32, u32), flags| Waiter {
        val: expected.into(),
        uaddr: from_ref(word) as u64,
        flags,
        reserved: 0,
    };
    if !NO_WAITV.load(Ordering::Relaxed) {
        let waiters = [waiter(shared, FUTEX_32), waiter(local, FUTEX_32 | FUTEX_PRIVATE)];
        let deadline = timeout.and_then(deadline_after).map(timespec);
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
        match WaitvResult::new(Errno::result(r)) {
            WaitvResult::Done => return,
            // Only this sleep is shorter. Without any sleep, an error that lasts would keep the CPU busy.
            WaitvResult::Failed => {}
            WaitvResult::Unavailable => NO_WAITV.store(true, Ordering::Relaxed),
        }
    }
    // SYNC(bell/ticket): pairs with the Release in `Doorbell::ring`.
    if local.0.load(Ordering::Acquire) == local.1 {
        let timeout = timeout.map_or(RECHECK_INTERVAL, |t| t.min(RECHECK_INTERVAL));
        wait(shared.0, shared.1, Some(timeout));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_call_disables_it() {
        use WaitvResult::{Done, Failed, Unavailable};
        for (result, expected) in [
            (Ok(0), Done),
            (Ok(1), Done),
            (Err(Errno::EAGAIN), Done),
            (Err(Errno::ETIMEDOUT), Done),
            (Err(Errno::EINTR), Done),
            (Err(Errno::ENOSYS), Unavailable),
            (Err(Errno::EPERM), Unavailable),
            (Err(Errno::ENOMEM), Failed),
            (Err(Errno::EFAULT), Failed),
            (Err(Errno::EINVAL), Failed),
            (Err(Errno::EACCES), Failed),
        ] {
            assert_eq!(WaitvResult::new(result), expected, "{result:?}");
        }
    }

    #[test]
    fn both_words_are_waited_for_without_polling() {
        for shared_wakes in [true, false] {
            let (shared, local) = (AtomicU32::new(0), AtomicU32::new(0));
            let woken = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let waits = scope.spawn(|| {
                    wait_either((&shared, 0), (&local, 0), None);
                    assert!(woken.load(Ordering::Relaxed) || NO_WAITV.load(Ordering::Relaxed));
                });
                // A poll would end the wait meanwhile.
                let begin = std::time::Instant::now();
                while begin.elapsed() < 3 * RECHECK_INTERVAL && !waits.is_finished() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                woken.store(true, Ordering::Relaxed);
                while !waits.is_finished() {
                    if shared_wakes {
                        shared.store(1, Ordering::Release);
                        wake_all(&shared);
                    } else {
                        local.store(1, Ordering::Release);
                        let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
                        // SAFETY: FUTEX_WAKE uses the address as a key and accesses no memory of this process.
                        unsafe { libc::syscall(libc::SYS_futex, from_ref(&local), op, 1) };
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        }
    }

    #[test]
    fn timeouts_are_converted() {
        for (timeout, secs) in [
            (Duration::from_nanos(3_000_000_007), 3),
            (Duration::new(u64::MAX, 7), i32::MAX as libc::time_t),
        ] {
            let ts = timespec(timeout);
            assert_eq!((ts.tv_sec, ts.tv_nsec), (secs, 7));
        }
    }

    #[test]
    fn longest_timeout_is_no_deadline() {
        let (shared, local) = (AtomicU32::new(1), AtomicU32::new(1));
        // Neither wait sleeps, because a word differs from its expected value.
        wait(&shared, 0, Some(Duration::MAX));
        wait_either((&shared, 1), (&local, 0), Some(Duration::MAX));
        wait_either((&shared, 0), (&local, 1), Some(Duration::MAX));
    }
}
