// SPDX-License-Identifier: LGPL-2.1-or-later
//! What a process can do to the sleepers of memory that it may only read.

use std::os::fd::AsFd;
use std::sync::atomic::AtomicU32;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Where the sleepers of others are moved to. Nothing wakes them there.
static ELSEWHERE: AtomicU32 = AtomicU32::new(0);

/// The words of a memfd, mapped for reading. Linux lets a process that can read a word wake the sleepers on it, or move
/// them to a word of its own.
#[derive(Debug)]
pub struct ReadableWords {
    start: *const u32,
    bytes: usize,
}

// SAFETY: the memory is only named in system calls.
unsafe impl Send for ReadableWords {}
// SAFETY: as above.
unsafe impl Sync for ReadableWords {}

impl ReadableWords {
    /// Maps all of a memfd.
    ///
    /// # Errors
    ///
    /// The fd is no memfd, or there is no memory left.
    pub fn map(fd: impl AsFd) -> nix::Result<Self> {
        let bytes = nix::sys::stat::fstat(&fd)?.st_size as usize;
        let len = bytes.try_into().map_err(|_| Errno::EINVAL)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Self { start: start.as_ptr().cast(), bytes })
    }

    /// Returns the number of words of 4 bytes.
    pub fn len(&self) -> usize {
        self.bytes / 4
    }

    /// Returns whether there is no word.
    pub fn is_empty(&self) -> bool {
        self.bytes < 4
    }

    /// Moves all sleepers on a word to a word of this process, and returns their number.
    pub fn capture(&self, word: usize) -> usize {
        let elsewhere = ELSEWHERE.as_ptr();
        // SAFETY: both words are mapped, and the kernel changes neither.
        Self::count(unsafe {
            let word = self.address(word);
            libc::syscall(
                libc::SYS_futex,
                word,
                libc::FUTEX_REQUEUE,
                0,
                i32::MAX as usize,
                elsewhere,
            )
        })
    }

    /// Wakes all sleepers on a word, and returns their number.
    pub fn wake(&self, word: usize) -> usize {
        // SAFETY: the word is mapped, and the kernel does not change it.
        Self::count(unsafe {
            libc::syscall(libc::SYS_futex, self.address(word), libc::FUTEX_WAKE, i32::MAX)
        })
    }

    fn address(&self, word: usize) -> *const u32 {
        assert!(word < self.len());
        // SAFETY: a word of the mapping.
        unsafe { self.start.add(word) }
    }

    fn count(result: libc::c_long) -> usize {
        Errno::result(result).expect("a process may do this to words that it can read") as usize
    }
}

impl Drop for ReadableWords {
    fn drop(&mut self) {
        let start = std::ptr::NonNull::new(self.start.cast_mut().cast()).unwrap();
        // SAFETY: the mapping belongs to this value, and nothing borrows from it.
        unsafe { munmap(start, self.bytes) }.unwrap();
    }
}
