//! Device memory that travels as an fd: one VMM allocation a chunk.
//!
//! Subscribers map it read-only, in any namespace: the fd is all that they need. It lives until nobody
//! has it any more, so one whose publisher dies goes on reading what it has.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Attached, Backend, Chunk, Geometry, Imported, Kind};
use crate::cuda::{Access, Context, Error, Uuid, VmmAllocation, VmmMapping};

/// Slots begin on multiples of this, which serves textures (512 bytes), and whatever else there is.
pub(super) const ALIGNMENT: usize = 4096;

/// The geometry of a chunk whose slots are aligned for the device.
pub(super) fn device_geometry(slots: u32, size: usize) -> io::Result<Geometry> {
    let stride = size.checked_next_multiple_of(ALIGNMENT).ok_or(io::ErrorKind::InvalidInput)?;
    let geometry = Geometry { slots, stride: stride as u64, size: size as u64 };
    geometry.bytes().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(geometry)
}

/// The allocation's bytes: as many as the driver hands out at least.
fn whole(context: &Context, geometry: Geometry) -> io::Result<usize> {
    let bytes = geometry.bytes().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "the numbers of the memory make no sense")
    })?;
    let granularity = VmmAllocation::granularity(context)?;
    Ok(bytes.checked_next_multiple_of(granularity).ok_or(io::ErrorKind::InvalidData)?)
}

#[derive(Debug)]
pub struct CudaBackend {
    context: Context,
}

impl CudaBackend {
    /// Errors: the device, or the driver on this system, exports no memory as fds.
    pub fn new(context: Context) -> Result<Self, Error> {
        if !context.device().can_export_fds() {
            return Err(Error::Unsupported {
                device: context.device().to_string(),
                what: "export memory as file descriptors on this system: put cudadownload in front of cuframessink",
            });
        }
        Ok(Self { context })
    }

    pub fn context(&self) -> &Context {
        &self.context
    }
}

impl Backend for CudaBackend {
    fn kind(&self) -> Kind {
        Kind::CudaVmm
    }

    fn device(&self) -> [u8; 16] {
        self.context.device().uuid().unwrap_or(Uuid::NONE).0
    }

    fn allocate(&self, slots: u32, size: usize) -> io::Result<Arc<dyn Chunk>> {
        let geometry = device_geometry(slots, size)?;
        let len = whole(&self.context, geometry)?;
        let allocation = VmmAllocation::create(&self.context, len)?;
        let fd = allocation.export()?;
        let map = VmmMapping::new(&self.context, &allocation, len, Access::ReadWrite)?;
        Ok(Arc::new(CudaChunk { attached: Attached::default(), map, fd, geometry }))
    }
}

#[derive(Debug)]
struct CudaChunk {
    attached: Attached,
    map: VmmMapping,
    fd: OwnedFd,
    geometry: Geometry,
}

// SAFETY: the addresses lie in the mapping that the chunk owns.
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

    fn attached(&self) -> Option<&Attached> {
        Some(&self.attached)
    }
}

/// A chunk of another process, mapped read-only for the subscriber's device.
#[derive(Debug)]
pub struct CudaImport {
    attached: Attached,
    map: VmmMapping,
    geometry: Geometry,
}

impl CudaImport {
    pub(super) fn new(context: &Context, fd: OwnedFd, geometry: Geometry) -> io::Result<Self> {
        let len = whole(context, geometry)?;
        let allocation = VmmAllocation::import(context, fd.as_fd())?;
        // An allocation that is smaller than announced can't be mapped at this length.
        let map = VmmMapping::new(context, &allocation, len, Access::ReadOnly)?;
        Ok(Self { attached: Attached::default(), map, geometry })
    }
}

// SAFETY: the addresses lie in the mapping that the import owns.
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

    fn attached(&self) -> Option<&Attached> {
        Some(&self.attached)
    }
}
