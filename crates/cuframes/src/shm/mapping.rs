//! Anonymous shared memory: sealed memfds and their mappings.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use crate::sync::atomic::AtomicU64;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

/// `F_SEAL_FUTURE_WRITE` (Linux 5.1): mappings that exist may write, new ones may not.
const FUTURE_WRITE: SealFlag = SealFlag::from_bits_retain(0x0010);

/// Who may map a memfd for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Only this mapping, which is the creator's.
    ReadOnly,
    /// Whoever gets the fd.
    ReadWrite,
}

/// A mapped range of shared memory.
#[derive(Debug)]
pub struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the range is valid in every thread until it is dropped; access goes through atomics, or
// through pointers whose users argue for themselves.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, len: usize, prot: ProtFlags) -> io::Result<Self> {
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let ptr = unsafe { mmap(None, size, prot, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Self { ptr: ptr.cast(), len })
    }

    /// Creates a memfd of `len` zero bytes that can neither shrink nor grow, and maps it for writing.
    pub fn create(name: &str, len: usize, sharing: Sharing) -> io::Result<(Self, OwnedFd)> {
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&fd, len.try_into().map_err(|_| io::ErrorKind::InvalidInput)?)?;
        let map = Self::new(fd.as_fd(), len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        let mut seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        if sharing == Sharing::ReadOnly {
            seals |= FUTURE_WRITE;
        }
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        Ok((map, fd))
    }

    /// Maps a memfd that came from a peer, of which `len` bytes are to be there. One that could
    /// shrink is refused: reading behind its end would kill this process. So are huge pages, which
    /// can't be unmapped by the length that was mapped.
    pub fn import(fd: BorrowedFd<'_>, len: usize, sharing: Sharing) -> io::Result<Self> {
        let bad = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
        let seals = fcntl(fd, FcntlArg::F_GET_SEALS).map_err(|_| bad("the fd is not a memfd"))?;
        if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK) {
            return Err(bad("the memfd is not sealed against shrinking"));
        }
        if fstatfs(fd)?.filesystem_type() != TMPFS_MAGIC {
            return Err(bad("the memfd is made of huge pages"));
        }
        if fstat(fd)?.st_size < i64::try_from(len).map_err(|_| bad("the length overflows"))? {
            return Err(bad("the memfd is shorter than announced"));
        }
        let write = match sharing {
            Sharing::ReadOnly => ProtFlags::empty(),
            Sharing::ReadWrite => ProtFlags::PROT_WRITE,
        };
        Self::new(fd, len, ProtFlags::PROT_READ | write)
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    pub fn size(&self) -> usize {
        self.len
    }

    /// A structure of atomics at the start.
    pub(super) fn header<T>(&self) -> &T {
        assert!(size_of::<T>() <= self.len);
        // SAFETY: the mapping is page-aligned, at least as long as T, zeroed or written through T,
        // and lives as long as the borrow. Every T of this module is made of atomics and padding,
        // for which any bytes are valid and concurrent writes are defined.
        unsafe { self.ptr.cast::<T>().as_ref() }
    }

    /// `count` words from byte `offset` on.
    pub(super) fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        assert!(offset.is_multiple_of(8) && offset + count * 8 <= self.len);
        // SAFETY: aligned and within the mapping by the assertion; atomics as in `header`.
        unsafe { std::slice::from_raw_parts(self.ptr.add(offset).cast().as_ptr(), count) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and nothing borrows from it any more.
        let _ = unsafe { munmap(self.ptr.cast(), self.len) };
    }
}
