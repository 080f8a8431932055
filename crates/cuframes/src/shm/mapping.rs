// SPDX-License-Identifier: LGPL-2.1-or-later
//! Anonymous shared memory: sealed memfds and their mappings.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use crate::sync::atomic::AtomicU64;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

/// `F_SEAL_FUTURE_WRITE` (Linux 5.1): existing mappings may write, new mappings are read-only.
const FUTURE_WRITE: SealFlag = SealFlag::from_bits_retain(0x0010);

/// Which processes may map a memfd for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Only the creator, by the mapping that exists already.
    ReadOnly,
    /// Every process that has the fd.
    ReadWrite,
}

/// A mapped range of shared memory, unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the range is valid in every thread until the mapping is dropped. Access goes through atomics, or
// through pointers whose users state their own argument.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, len: usize, prot: ProtFlags) -> io::Result<Self> {
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address that the kernel chooses affects no existing memory.
        let ptr = unsafe { mmap(None, size, prot, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Self { ptr: ptr.cast(), len })
    }

    /// Creates a memfd of `len` zero bytes with a fixed size, and maps it for writing.
    ///
    /// # Errors
    /// `len` is 0 or too large, or the system has no memory or file descriptors left.
    pub fn create(name: &str, len: usize, sharing: Sharing) -> io::Result<(Self, OwnedFd)> {
        let (map, fd) = Self::create_sparse(name, len, sharing)?;
        allocate(fd.as_fd(), 0, len)?;
        Ok((map, fd))
    }

    /// Creates a memfd as [`Mapping::create`], whose memory has yet to be allocated: see [`allocate`].
    ///
    /// # Errors
    /// As [`Mapping::create`].
    pub fn create_sparse(name: &str, len: usize, sharing: Sharing) -> io::Result<(Self, OwnedFd)> {
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

    /// Maps the first `len` bytes of a memfd that a peer sent.
    ///
    /// # Errors
    /// The fd is not a memfd, or is shorter than `len`, or the address space is full. A memfd that could
    /// shrink is refused because a read past its end would kill this process. Huge pages are refused because
    /// they cannot be unmapped by the length that was mapped.
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

    /// The start of the range.
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Length of the range in bytes.
    pub fn size(&self) -> usize {
        self.len
    }

    /// Returns the structure of atomics at the start of the range.
    pub(super) fn header<T>(&self) -> &T {
        assert!(size_of::<T>() <= self.len);
        // SAFETY: the mapping is page-aligned, at least as long as T, and lives as long as the borrow. Every
        // T of `shm` consists of atomics and padding, for which all bytes are valid and concurrent writes
        // are defined.
        unsafe { self.ptr.cast::<T>().as_ref() }
    }

    /// Returns `count` words from byte `offset` on.
    pub(super) fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        self.array(offset, count)
    }

    /// Returns `count` structures of atomics from byte `offset` on.
    pub(super) fn array<T>(&self, offset: usize, count: usize) -> &[T] {
        assert!(
            offset.is_multiple_of(align_of::<T>()) && offset + count * size_of::<T>() <= self.len
        );
        // SAFETY: aligned and within the mapping by the assertion above. Atomics, as in `header`.
        unsafe { std::slice::from_raw_parts(self.ptr.add(offset).cast().as_ptr(), count) }
    }
}

/// Allocates `len` bytes of a memfd from `offset` on.
///
/// Memory that is first allocated when it is written fails with SIGBUS, which ends the process, if the system has none
/// left and does not overcommit (`vm.overcommit_memory=2`).
///
/// # Errors
/// The system has no memory left, or the range is not in the memfd.
pub fn allocate(fd: BorrowedFd<'_>, offset: usize, len: usize) -> io::Result<()> {
    let range = |n: usize| i64::try_from(n).map_err(|_| io::ErrorKind::InvalidInput);
    Ok(fallocate(fd, FallocateFlags::empty(), range(offset)?, range(len)?)?)
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and no borrow of it is left.
        let _ = unsafe { munmap(self.ptr.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_writable(fd: &OwnedFd, len: usize) -> bool {
        Mapping::new(fd.as_fd(), len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE).is_ok()
    }

    #[test]
    fn memory_has_fixed_size_and_may_be_writable() {
        for sharing in [Sharing::ReadOnly, Sharing::ReadWrite] {
            let (map, fd) = Mapping::create("test", 4096, sharing).unwrap();
            assert_eq!(map.size(), 4096);
            assert_eq!(is_writable(&fd, 4096), sharing == Sharing::ReadWrite);
            assert!(nix::unistd::ftruncate(&fd, 0).is_err());
            assert!(nix::unistd::ftruncate(&fd, 8192).is_err());
            // No seal can be added, such as one that makes the owner's own mapping the last.
            assert!(fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).is_err());
            let flags =
                nix::fcntl::FdFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFD).unwrap());
            assert!(flags.contains(nix::fcntl::FdFlag::FD_CLOEXEC));

            map.words(0, 512)[511].store(7, std::sync::atomic::Ordering::Relaxed);
            for len in [8, 4096] {
                assert_eq!(
                    Mapping::import(fd.as_fd(), len, Sharing::ReadOnly).unwrap().size(),
                    len
                );
            }
            let other = Mapping::import(fd.as_fd(), 4096, sharing).unwrap();
            assert_eq!(other.words(4088, 1)[0].load(std::sync::atomic::Ordering::Relaxed), 7);
            assert!(Mapping::import(fd.as_fd(), 4097, sharing).is_err());
        }
        assert!(Mapping::create("test", 0, Sharing::ReadOnly).is_err());
    }

    #[test]
    fn imported_memory_is_as_writable_as_asked() {
        let permissions = |map: &Mapping| {
            let start = format!("{:x}-", map.as_ptr() as usize);
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            let line = maps.lines().find(|line| line.starts_with(&start)).unwrap().to_owned();
            line.split(' ').nth(1).unwrap().to_owned()
        };
        let (map, fd) = Mapping::create("test", 4096, Sharing::ReadWrite).unwrap();
        assert_eq!(permissions(&map), "rw-s");
        for (sharing, expected) in [(Sharing::ReadOnly, "r--s"), (Sharing::ReadWrite, "rw-s")] {
            assert_eq!(permissions(&Mapping::import(fd.as_fd(), 4096, sharing).unwrap()), expected);
        }
    }
}
