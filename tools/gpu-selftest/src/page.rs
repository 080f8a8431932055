// SPDX-License-Identifier: LGPL-2.1-or-later
//! A page of shared memory, to which a GPU writes numbers.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cuframes::cuda::{Context, HostAccess, RegisteredHost};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::report::Outcome;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// A mapped page of shared memory.
pub(crate) struct SharedPage {
    start: NonNull<u8>,
    fd: OwnedFd,
}

// SAFETY: the page is accessed through atomics and by the driver only.
unsafe impl Send for SharedPage {}
// SAFETY: as above.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    /// Creates a page. It is sealed against further writable mappings, as a publisher's control segment.
    pub(crate) fn new() -> Outcome<Self> {
        let fd = memfd_create("selftest", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&fd, PAGE as i64)?;
        let page = Self::map(fd, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        // F_SEAL_FUTURE_WRITE
        let future_write = SealFlag::from_bits_retain(0x10);
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | future_write;
        fcntl(&page.fd, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(page)
    }

    /// Maps the page of another process read-only, by its [path](Self::path).
    pub(crate) fn open(path: &str) -> Outcome<Self> {
        Self::map(File::open(path)?.into(), ProtFlags::PROT_READ)
    }

    fn map(fd: OwnedFd, prot: ProtFlags) -> Outcome<Self> {
        let len = PAGE.try_into()?;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mmap(None, len, prot, MapFlags::MAP_SHARED, fd.as_fd(), 0) }?;
        Ok(Self { start: start.cast(), fd })
    }

    /// Returns the path of the page in /proc, for other processes.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: the page is aligned and mapped while `self` exists. Any bytes are a valid atomic, which
        // others may write.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().cast()) }
    }

    /// Reads the number in the first word.
    pub(crate) fn load(&self) -> u64 {
        self.word().load(Ordering::Acquire)
    }

    /// Writes the number in the first word. The page must be created by [`SharedPage::new`].
    pub(crate) fn store(&self, value: u64) {
        self.word().store(value, Ordering::Release);
    }

    /// Registers the page for a GPU.
    ///
    /// # Safety
    /// `ReadWrite` is allowed only for a page that was created by [`SharedPage::new`].
    pub(crate) unsafe fn register(
        self: &Arc<Self>,
        context: &Context,
        access: HostAccess,
    ) -> cuframes::cuda::Result<RegisteredHost> {
        let start = self.start.as_ptr();
        // SAFETY: the page is mapped until the last clone is dropped, and writable by the caller's
        // contract. All reads are atomic.
        unsafe { RegisteredHost::new(context, start, PAGE, access, self.clone()) }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and nothing borrows from it any more.
        let _ = unsafe { munmap(self.start.cast(), PAGE) };
    }
}
