//! Device memory by the driver's older way to share it: a handle of 64 bytes.
//!
//! For systems whose driver exports no fds. It has its limits: both processes have to be in the same
//! PID and IPC namespaces, a process can't open its own memory, and subscribers could write to it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::cuda::device_geometry;
use super::{Backend, Chunk, Geometry, Imported, Kind};
use crate::gpu::{Context, DeviceMemory, IpcHandle, IpcMemory, Uuid};

/// Puts the handle into a file of its own: a chunk travels as an fd, of whatever kind it is.
fn write_handle(handle: &IpcHandle) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create("cuframes-ipc", flags)?);
    file.write_all(handle)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::all()))?;
    Ok(file.into())
}

fn read_handle(fd: OwnedFd) -> io::Result<IpcHandle> {
    let file = File::from(fd);
    let mut handle = [0; size_of::<IpcHandle>()];
    // Nothing waits here: only a memfd has seals.
    fcntl(&file, FcntlArg::F_GET_SEALS)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the fd is not a memfd"))?;
    file.read_exact_at(&mut handle, 0)?;
    Ok(handle)
}

#[derive(Debug)]
pub struct CudaIpcBackend {
    context: Context,
}

impl CudaIpcBackend {
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    pub fn context(&self) -> &Context {
        &self.context
    }
}

impl Backend for CudaIpcBackend {
    fn kind(&self) -> Kind {
        Kind::CudaIpc
    }

    fn device(&self) -> [u8; 16] {
        self.context.device().uuid().unwrap_or(Uuid::NONE).0
    }

    fn allocate(&self, slots: u32, size: usize) -> io::Result<Arc<dyn Chunk>> {
        let geometry = device_geometry(slots, size)?;
        let bytes = geometry.bytes().ok_or(io::ErrorKind::InvalidInput)?;
        let memory = DeviceMemory::new(&self.context, bytes)?;
        let fd = write_handle(&memory.ipc_handle()?)?;
        Ok(Arc::new(CudaIpcChunk { memory, fd, geometry }))
    }
}

#[derive(Debug)]
struct CudaIpcChunk {
    memory: DeviceMemory,
    fd: OwnedFd,
    geometry: Geometry,
}

// SAFETY: the addresses lie in the mapping that the chunk owns.
unsafe impl Chunk for CudaIpcChunk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn address(&self, slot: u32) -> u64 {
        self.geometry.address(self.memory.address(), slot)
    }
}

/// A chunk of another process.
#[derive(Debug)]
pub struct CudaIpcImport {
    memory: IpcMemory,
    geometry: Geometry,
}

impl CudaIpcImport {
    pub(super) fn new(context: &Context, fd: OwnedFd, geometry: Geometry) -> io::Result<Self> {
        let bad = |text| io::Error::new(io::ErrorKind::InvalidData, text);
        let bytes =
            geometry.bytes().ok_or_else(|| bad("the numbers of the memory make no sense"))?;
        let memory = IpcMemory::open(context, &read_handle(fd)?)?;
        if memory.len() < bytes {
            return Err(bad("the memory is shorter than announced"));
        }
        Ok(Self { memory, geometry })
    }
}

// SAFETY: the addresses lie in the mapping that the import owns.
unsafe impl Imported for CudaIpcImport {
    fn kind(&self) -> Kind {
        Kind::CudaIpc
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn address(&self, slot: u32) -> u64 {
        self.geometry.address(self.memory.address(), slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_travels_as_a_file_that_nobody_can_change() {
        let handle: IpcHandle = std::array::from_fn(|i| i as u8);
        let fd = write_handle(&handle).unwrap();
        let mut other = File::from(fd.try_clone().unwrap());
        assert!(other.write_all(b"x").is_err());
        assert!(other.set_len(0).is_err());
        assert_eq!(read_handle(fd).unwrap(), handle);
    }

    #[test]
    fn what_is_no_handle_is_refused() {
        let null = File::open("/dev/null").unwrap();
        assert!(read_handle(null.into()).is_err());
        let short = memfd_create("short", MFdFlags::MFD_CLOEXEC).unwrap();
        assert!(read_handle(short).is_err());
    }
}
