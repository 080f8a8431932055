//! Device memory by the driver's older way to share it: a handle of 64 bytes.
//!
//! For systems whose driver exports no fds. It has its limits: both processes have to be in the same
//! PID and IPC namespaces, a process can't open its own memory, and subscribers could write to it.
//!
//! For devices that can't write numbers in the order of a stream there is an event for each slot, too.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::cuda::device_geometry;
use super::{Attached, Backend, Chunk, Geometry, Imported, Kind};
use crate::cuda::{Context, DeviceMemory, Event, IpcHandle, IpcMemory, Uuid};
use crate::shm::layout::MAX_SLOTS;

const HANDLE: usize = size_of::<IpcHandle>();

/// Puts the handles into a file of their own, that of the memory first and then those of the events, if
/// any: a chunk travels as an fd, of whatever kind it is.
fn write_handles(handles: &[IpcHandle]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create("cuframes-ipc", flags)?);
    file.write_all(handles.as_flattened())?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::all()))?;
    Ok(file.into())
}

/// The handle of the memory, and as many of events as there are slots, or none.
fn read_handles(fd: OwnedFd, slots: u32) -> io::Result<(IpcHandle, Vec<IpcHandle>)> {
    let bad = |text| io::Error::new(io::ErrorKind::InvalidData, text);
    let file = File::from(fd);
    // Nothing waits here: only a memfd has seals.
    fcntl(&file, FcntlArg::F_GET_SEALS).map_err(|_| bad("the fd is not a memfd"))?;
    let read = |n: usize| {
        let mut handle = [0; HANDLE];
        file.read_exact_at(&mut handle, (n * HANDLE) as u64).map(|()| handle)
    };
    let events = if file.metadata()?.len() <= HANDLE as u64 { 0 } else { slots };
    if events > MAX_SLOTS {
        return Err(bad("there can't be as many slots"));
    }
    Ok((read(0)?, (1..=events as usize).map(read).collect::<io::Result<_>>()?))
}

#[derive(Debug)]
pub struct CudaIpcBackend {
    context: Context,
    events: bool,
}

impl CudaIpcBackend {
    /// With `events`, subscribers wait for an event of the slot ([`Chunk::event`]).
    pub fn new(context: Context, events: bool) -> Self {
        Self { context, events }
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
        let event = |_| Event::interprocess(&self.context);
        let events: Vec<Event> =
            (0..slots).filter(|_| self.events).map(event).collect::<Result<_, _>>()?;
        let mut handles = vec![memory.ipc_handle()?];
        for event in &events {
            handles.push(event.ipc_handle()?);
        }
        let (attached, fd) = (Attached::default(), write_handles(&handles)?);
        Ok(Arc::new(CudaIpcChunk { attached, memory, events, fd, geometry }))
    }
}

#[derive(Debug)]
struct CudaIpcChunk {
    attached: Attached,
    memory: DeviceMemory,
    /// One for each slot, or none.
    events: Vec<Event>,
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

    fn event(&self, slot: u32) -> Option<&Event> {
        self.events.get(slot as usize)
    }

    fn attached(&self) -> Option<&Attached> {
        Some(&self.attached)
    }
}

/// A chunk of another process.
#[derive(Debug)]
pub struct CudaIpcImport {
    attached: Attached,
    memory: IpcMemory,
    events: Vec<Event>,
    geometry: Geometry,
}

impl CudaIpcImport {
    pub(super) fn new(context: &Context, fd: OwnedFd, geometry: Geometry) -> io::Result<Self> {
        let bad = |text| io::Error::new(io::ErrorKind::InvalidData, text);
        let bytes =
            geometry.bytes().ok_or_else(|| bad("the numbers of the memory make no sense"))?;
        let (handle, events) = read_handles(fd, geometry.slots)?;
        let memory = IpcMemory::open(context, &handle)?;
        if memory.len() < bytes {
            return Err(bad("the memory is shorter than announced"));
        }
        let open = |handle| Event::open(context, handle);
        let events = events.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { attached: Attached::default(), memory, events, geometry })
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

    fn event(&self, slot: u32) -> Option<&Event> {
        self.events.get(slot as usize)
    }

    fn context(&self) -> Option<&Context> {
        Some(self.memory.context())
    }

    fn attached(&self) -> Option<&Attached> {
        Some(&self.attached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_travel_as_a_file_that_nobody_can_change() {
        let handles = [1, 2, 3].map(|n| -> IpcHandle { std::array::from_fn(|i| i as u8 * n) });
        let fd = write_handles(&handles).unwrap();
        let mut other = File::from(fd.try_clone().unwrap());
        assert!(other.write_all(b"x").is_err());
        assert!(other.set_len(0).is_err());
        assert_eq!(read_handles(fd, 2).unwrap(), (handles[0], handles[1..].to_vec()));
        let alone = write_handles(&handles[..1]).unwrap();
        assert_eq!(read_handles(alone, 2).unwrap(), (handles[0], vec![]));
    }

    #[test]
    fn what_is_no_handle_is_refused() {
        let null = File::open("/dev/null").unwrap();
        assert!(read_handles(null.into(), 1).is_err());
        let short = memfd_create("short", MFdFlags::MFD_CLOEXEC).unwrap();
        assert!(read_handles(short, 1).is_err());
        let few = write_handles(&[[0; HANDLE]; 2]).unwrap();
        assert!(read_handles(few.try_clone().unwrap(), 2).is_err());
        assert!(read_handles(few, u32::MAX).is_err());
    }
}
