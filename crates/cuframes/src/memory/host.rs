// SPDX-License-Identifier: LGPL-2.1-or-later
//! Host memory: each chunk is a sealed memfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Backend, Chunk, Geometry, Imported, Kind};
use crate::shm::mapping::{Mapping, Sharing};

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
        let (map, fd) = Mapping::create("cuframes-frames", bytes, Sharing::ReadOnly)?;
        Ok(Arc::new(HostChunk { map, fd, geometry }))
    }
}

#[derive(Debug)]
struct HostChunk {
    map: Mapping,
    fd: OwnedFd,
    geometry: Geometry,
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
