// SPDX-License-Identifier: LGPL-2.1-or-later
//! Which process owns an object.

use std::num::NonZeroUsize;
use std::sync::OnceLock;
// A static of this process; loom does not model it.
use std::sync::atomic::{AtomicU32, Ordering};

use super::clock;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

/// The process that created an object.
///
/// A forked process has a copy of every object, and shares its sockets, eventfds and shared memory with the
/// parent, but has none of its threads. Such a copy is dropped without any effect on the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(u32);

impl Owner {
    /// Returns the calling process.
    pub fn this_process() -> Self {
        let Some(word) = wiped_on_fork() else { return Self(std::process::id()) };
        match word.load(Ordering::Relaxed) {
            0 => {
                // The first call, also in a forked process. The number differs from the parent's even if a new PID
                // namespace gives both the same pid.
                let id = (clock::now_ns() as u32 ^ std::process::id()) | 1;
                let first = word.compare_exchange(0, id, Ordering::Relaxed, Ordering::Relaxed);
                Self(first.err().unwrap_or(id))
            }
            id => Self(id),
        }
    }

    /// Returns whether the calling process created the object; false in a process that was forked since.
    ///
    /// Costs one load, without a system call, where the kernel can wipe memory on fork (Linux 4.14).
    pub fn is_this_process(self) -> bool {
        self == Self::this_process()
    }
}

/// Returns a word that the kernel sets to 0 in a forked process, or `None` where it cannot.
fn wiped_on_fork() -> Option<&'static AtomicU32> {
    static WORD: OnceLock<Option<&'static AtomicU32>> = OnceLock::new();
    *WORD.get_or_init(|| {
        let len = NonZeroUsize::new(size_of::<AtomicU32>())?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new private mapping affects no existing memory, and the advice applies to that mapping only. It is
        // never unmapped, begins at a page and is zeroed, so it is valid as an atomic for the rest of the process.
        unsafe {
            let page = mmap_anonymous(None, len, protection, MapFlags::MAP_PRIVATE).ok()?;
            madvise(page, len.get(), MmapAdvise::MADV_WIPEONFORK).ok()?;
            Some(page.cast::<AtomicU32>().as_ref())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    #[test]
    fn forked_process_is_not_the_owner() {
        let owner = Owner::this_process();
        assert!(owner.is_this_process());
        // SAFETY: the child calls only functions that are async-signal-safe.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let own = Owner::this_process();
                let right = !owner.is_this_process() && own.is_this_process();
                // SAFETY: ends the process without running anything of the parent's.
                unsafe { nix::libc::_exit(i32::from(!right)) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            }
        }
        assert!(owner.is_this_process());
    }
}
