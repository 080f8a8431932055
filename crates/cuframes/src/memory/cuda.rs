// SPDX-License-Identifier: LGPL-2.1-or-later
//! Device memory that is shared as an fd: each chunk is a VMM allocation.
//!
//! Subscribers map it read-only. The fd is all they need, so they may be in any namespace. The memory
//! stays allocated while any process has it, so a subscriber can read its frames even after the
//! publisher died.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Backend, Chunk, Extensions, Geometry, Imported, Kind};
use crate::cuda::{Access, Context, Error, Uuid, VmmAllocation, VmmMapping};

/// Alignment of slots in bytes. Textures, which have the largest requirement, need 512.
const ALIGNMENT: usize = 4096;

/// Returns the geometry of a chunk whose slots are aligned for the device.
pub(super) fn device_geometry(slots: u32, size: usize) -> io::Result<Geometry> {
    let stride = size.checked_next_multiple_of(ALIGNMENT).ok_or(io::ErrorKind::InvalidInput)?;
    let geometry = Geometry { slots, stride: stride as u64, size: size as u64 };
    geometry.bytes().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(geometry)
}

/// Returns the length of the allocation: that of the chunk, rounded up to the driver's granularity.
fn allocation_len(context: &Context, geometry: Geometry) -> io::Result<usize> {
    let bytes = geometry.announced_bytes()?;
    let granularity = VmmAllocation::granularity(context)?;
    Ok(bytes.checked_next_multiple_of(granularity).ok_or(io::ErrorKind::InvalidData)?)
}

/// Allocates device memory that is shared as fds of the driver ([`Kind::CudaVmm`]).
#[derive(Debug)]
pub struct CudaBackend {
    context: Context,
}

impl CudaBackend {
    /// Returns a backend that allocates on the context's device.
    ///
    /// # Errors
    /// The device, or the driver on this system, can't export memory as fds.
    pub fn new(context: Context) -> Result<Self, Error> {
        if !context.device().can_export_fds() {
            return Err(Error::Unsupported {
                device: context.device().to_string(),
                what: "export memory as file descriptors on this system: put cudadownload in front of cuframessink",
            });
        }
        Ok(Self { context })
    }

    /// Returns the context in which the chunks are mapped.
    pub fn context(&self) -> &Context {
        &self.context
    }
}

impl Backend for CudaBackend {
    fn kind(&self) -> Kind {
        Kind::CudaVmm
    }

    fn device(&self) -> Uuid {
        self.context.device().uuid().unwrap_or(Uuid::NONE)
    }

    fn allocate(&self, slots: u32, size: usize) -> io::Result<Arc<dyn Chunk>> {
        let geometry = device_geometry(slots, size)?;
        let len = allocation_len(&self.context, geometry)?;
        let allocation = VmmAllocation::create(&self.context, len)?;
        let fd = allocation.export()?;
        let map = VmmMapping::new(&self.context, &allocation, len, Access::ReadWrite)?;
        Ok(Arc::new(CudaChunk { extensions: Extensions::default(), map, fd, geometry }))
    }
}

#[derive(Debug)]
struct CudaChunk {
    extensions: Extensions,
    map: VmmMapping,
    fd: OwnedFd,
    geometry: Geometry,
}

// SAFETY: the slots are inside the mapping that the chunk owns.
unsafe impl Chunk for CudaChunk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn address(&self, slot: u32) -> u64 {
        self.geometry.address(self.map.address(), slot)
    }

    fn extensions(&self) -> Option<&Extensions> {
        Some(&self.extensions)
    }
}

/// A chunk of another process, mapped read-only for the subscriber's device.
#[derive(Debug)]
pub(super) struct CudaImport {
    extensions: Extensions,
    map: VmmMapping,
    geometry: Geometry,
}

impl CudaImport {
    pub(super) fn new(context: &Context, fd: OwnedFd, geometry: Geometry) -> io::Result<Self> {
        let len = allocation_len(context, geometry)?;
        let allocation = VmmAllocation::import(context, fd.as_fd())?;
        // The driver refuses to map more than the allocation has, so its real length needs no check.
        let map = VmmMapping::new(context, &allocation, len, Access::ReadOnly)?;
        Ok(Self { extensions: Extensions::default(), map, geometry })
    }
}

// SAFETY: the slots are inside the mapping that the import owns.
unsafe impl Imported for CudaImport {
    fn kind(&self) -> Kind {
        Kind::CudaVmm
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn address(&self, slot: u32) -> u64 {
        self.geometry.address(self.map.address(), slot)
    }

    fn context(&self) -> Option<&Context> {
        Some(self.map.context())
    }

    fn extensions(&self) -> Option<&Extensions> {
        Some(&self.extensions)
    }
}
