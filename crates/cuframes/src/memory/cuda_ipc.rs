// SPDX-License-Identifier: LGPL-2.1-or-later
//! Device memory that is shared by CUDA IPC, the driver's older mechanism: a handle of 64 bytes.
//!
//! It serves systems whose driver can't export fds. Its limits: both processes must be in the same PID
//! and IPC namespaces, a process can't open its own memory, and subscribers get write access.
//!
//! For devices that can't write numbers in stream order, a chunk can also have an event for each slot.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::cuda::device_geometry;
use super::{Backend, Chunk, Extensions, Geometry, Imported, Kind, invalid};
use crate::cuda::{Context, DeviceMemory, Event, IpcHandle, IpcMemory, Uuid};
use crate::shm::layout::MAX_SLOTS;

const HANDLE: usize = size_of::<IpcHandle>();

/// The handles of a chunk. They travel in a sealed memfd, because chunks of every kind travel as an fd.
#[derive(Debug, PartialEq, Eq)]
struct Handles {
    memory: IpcHandle,
    /// One for each slot, or none.
    events: Vec<IpcHandle>,
}

impl Handles {
    /// Writes the handles to a new memfd: first the memory's, then those of the events.
    fn write(&self) -> io::Result<OwnedFd> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut file = File::from(memfd_create("cuframes-ipc", flags)?);
        file.write_all(&self.memory)?;
        file.write_all(self.events.as_flattened())?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::all()))?;
        Ok(file.into())
    }

    /// Reads the handles of a chunk with this number of slots. The fd is untrusted.
    fn read(fd: OwnedFd, slots: u32) -> io::Result<Self> {
        let file = File::from(fd);
        // Only a memfd has seals. Reads from other files, such as pipes, could block.
        fcntl(&file, FcntlArg::F_GET_SEALS).map_err(|_| invalid("the fd is not a memfd"))?;
        let read = |n: usize| {
            let mut handle = [0; HANDLE];
            file.read_exact_at(&mut handle, (n * HANDLE) as u64).map(|()| handle)
        };
        let events = if file.metadata()?.len() <= HANDLE as u64 { 0 } else { slots };
        if events > MAX_SLOTS {
            return Err(invalid("the chunk has too many slots"));
        }
        let memory = read(0)?;
        Ok(Self { memory, events: (1..=events as usize).map(read).collect::<io::Result<_>>()? })
    }
}

/// Allocates device memory that is shared by CUDA IPC ([`Kind::CudaIpc`]).
#[derive(Debug)]
pub struct CudaIpcBackend {
    context: Context,
    events: bool,
}

impl CudaIpcBackend {
    /// Returns a backend that allocates on the context's device. With `events`, each slot has an event
    /// ([`Chunk::event`]), for which subscribers wait.
    pub fn new(context: Context, events: bool) -> Self {
        Self { context, events }
    }

    /// Returns the context in which the chunks are allocated.
    pub fn context(&self) -> &Context {
        &self.context
    }
}

impl Backend for CudaIpcBackend {
    fn kind(&self) -> Kind {
        Kind::CudaIpc
    }

    fn device(&self) -> Uuid {
        self.context.device().uuid().unwrap_or(Uuid::NONE)
    }

    fn allocate(&self, slots: u32, size: usize) -> io::Result<Arc<dyn Chunk>> {
        let geometry = device_geometry(slots, size)?;
        let bytes = geometry.bytes().ok_or(io::ErrorKind::InvalidInput)?;
        let memory = DeviceMemory::new(&self.context, bytes)?;
        let event = |_| Event::interprocess(&self.context);
        let events: Vec<Event> =
            (0..slots).filter(|_| self.events).map(event).collect::<Result<_, _>>()?;
        let handles = Handles {
            memory: memory.ipc_handle()?,
            events: events.iter().map(Event::ipc_handle).collect::<Result<_, _>>()?,
        };
        let (extensions, fd) = (Extensions::default(), handles.write()?);
        Ok(Arc::new(CudaIpcChunk { extensions, memory, events, fd, geometry }))
    }
}

#[derive(Debug)]
struct CudaIpcChunk {
    extensions: Extensions,
    memory: DeviceMemory,
    /// One for each slot, or none.
    events: Vec<Event>,
    fd: OwnedFd,
    geometry: Geometry,
}

// SAFETY: the slots are inside the allocation that the chunk owns.
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

    fn extensions(&self) -> Option<&Extensions> {
        Some(&self.extensions)
    }
}

/// A chunk of another process.
#[derive(Debug)]
pub(super) struct CudaIpcImport {
    extensions: Extensions,
    memory: IpcMemory,
    events: Vec<Event>,
    geometry: Geometry,
}

impl CudaIpcImport {
    pub(super) fn new(context: &Context, fd: OwnedFd, geometry: Geometry) -> io::Result<Self> {
        let bytes = geometry.announced_bytes()?;
        let handles = Handles::read(fd, geometry.slots)?;
        let memory = IpcMemory::open(context, &handles.memory)?;
        if memory.len() < bytes {
            return Err(invalid("the memory is shorter than announced"));
        }
        let open = |handle| Event::open(context, handle);
        let events = handles.events.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { extensions: Extensions::default(), memory, events, geometry })
    }
}

// SAFETY: the slots are inside the memory that the import owns, whose length `new` checked.
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

    fn extensions(&self) -> Option<&Extensions> {
        Some(&self.extensions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handle_file_is_sealed() {
        let [memory, events @ ..] =
            [1, 2, 3].map(|n| -> IpcHandle { std::array::from_fn(|i| i as u8 * n) });
        let handles = Handles { memory, events: events.to_vec() };
        let fd = handles.write().unwrap();
        let mut other = File::from(fd.try_clone().unwrap());
        assert!(other.write_all(b"x").is_err());
        assert!(other.set_len(0).is_err());
        assert_eq!(Handles::read(fd, 2).unwrap(), handles);
        let without_events = Handles { memory, events: vec![] };
        assert_eq!(Handles::read(without_events.write().unwrap(), 2).unwrap(), without_events);
    }

    #[test]
    fn bad_handle_file_is_refused() {
        let null = File::open("/dev/null").unwrap();
        assert!(Handles::read(null.into(), 1).is_err());
        let short = memfd_create("short", MFdFlags::MFD_CLOEXEC).unwrap();
        assert!(Handles::read(short, 1).is_err());
        let few = Handles { memory: [0; HANDLE], events: vec![[0; HANDLE]] }.write().unwrap();
        assert!(Handles::read(few.try_clone().unwrap(), 2).is_err());
        assert!(Handles::read(few, u32::MAX).is_err());
    }
}
