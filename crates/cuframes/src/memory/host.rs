// SPDX-License-Identifier: LGPL-2.1-or-later
//! Host memory: each chunk is a sealed memfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Backend, Chunk, Geometry, Imported, Kind};
use crate::shm::mapping::{Mapping, Sharing, allocate};
use crate::sync::atomic::{AtomicBool, Ordering};

/// Slots begin on page boundaries, which satisfies every alignment that a decoder asks for.
const PAGE: usize = 4096;

/// Allocates host memory, for frames that the CPU writes.
#[derive(Debug, Default)]
pub struct HostBackend;

impl Backend for HostBackend {
    fn kind(&self) -> Kind {
        Kind::Host
    }

    fn allocate(&self, slots: u32, size: usize) -> io::Result<Arc<dyn Chunk>> {
        let stride = size.checked_next_multiple_of(PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let geometry = Geometry { slots, stride: stride as u64, size: size as u64 };
        let bytes = geometry.bytes().ok_or(io::ErrorKind::InvalidInput)?;
        let (map, fd) = Mapping::create_sparse("cuframes-frames", bytes, Sharing::ReadOnly)?;
        let allocated = (0..slots).map(|_| AtomicBool::new(false)).collect();
        Ok(Arc::new(HostChunk { map, fd, geometry, allocated }))
    }
}

#[derive(Debug)]
struct HostChunk {
    map: Mapping,
    fd: OwnedFd,
    geometry: Geometry,
    /// Which slots have memory. Slots that are never used cost none.
    allocated: Box<[AtomicBool]>,
}

// SAFETY: the slots are inside the mapping that the chunk owns.
unsafe impl Chunk for HostChunk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn address(&self, slot: u32) -> u64 {
        self.geometry.address(self.map.as_ptr() as u64, slot)
    }

    fn prepare(&self, slot: u32) -> io::Result<()> {
        let allocated = &self.allocated[slot as usize];
        // A slot is prepared by its only user.
        if !allocated.load(Ordering::Relaxed) {
            let stride = self.geometry.stride as usize;
            allocate(self.fd.as_fd(), slot as usize * stride, stride)?;
            allocated.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// A chunk of another process, mapped read-only.
#[derive(Debug)]
pub(super) struct HostImport {
    map: Mapping,
    geometry: Geometry,
}

impl HostImport {
    pub(super) fn new(fd: OwnedFd, geometry: Geometry) -> io::Result<Self> {
        let bytes = geometry.announced_bytes()?;
        Ok(Self { map: Mapping::import(fd.as_fd(), bytes, Sharing::ReadOnly)?, geometry })
    }
}

// SAFETY: the slots are inside the mapping that the import owns.
unsafe impl Imported for HostImport {
    fn kind(&self) -> Kind {
        Kind::Host
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn address(&self, slot: u32) -> u64 {
        self.geometry.address(self.map.as_ptr() as u64, slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::fstat;

    #[test]
    fn slot_has_memory_once_it_is_prepared() {
        let chunk = HostBackend.allocate(3, 2 * PAGE + 1).unwrap();
        let allocated = || fstat(chunk.fd()).unwrap().st_blocks as usize * 512;
        assert_eq!(allocated(), 0);
        for n in 1..=3 {
            chunk.prepare(n - 1).unwrap();
            assert_eq!(allocated(), n as usize * 3 * PAGE);
        }
    }
}
