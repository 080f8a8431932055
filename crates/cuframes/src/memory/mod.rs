// SPDX-License-Identifier: LGPL-2.1-or-later
//! Memory that holds frames, shared between processes.
//!
//! A publisher allocates [`Chunk`]s from a [`Backend`]. Each chunk has several slots, and each slot
//! holds one frame. The chunk's fd is sent to the subscribers, whose [`Importer`] maps it as an
//! [`Imported`] chunk.
//!
//! A publisher uses one backend at a time; a subscriber maps every [`Kind`] that its importer supports.
//! A program may bring a backend of its own, as long as its fds can be imported as one of the kinds.

pub mod cuda;
pub mod cuda_ipc;
pub mod host;

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use crate::cuda::{Context, Device, Event, Uuid};

/// How a chunk's memory is shared. The values are those of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Kind {
    /// Host memory. The fd is a memfd sealed against shrinking.
    Host = 1,
    /// Device memory. The fd is exported by the driver ([`crate::cuda::VmmAllocation`]).
    CudaVmm = 2,
    /// Device memory. The fd is a memfd that contains the [`crate::cuda::IpcHandle`] of the memory and,
    /// optionally, those of one event for each slot.
    CudaIpc = 3,
}

impl Kind {
    /// Returns whether addresses are those of a device.
    pub fn is_device(self) -> bool {
        self != Self::Host
    }
}

impl TryFrom<u32> for Kind {
    type Error = u32;

    fn try_from(kind: u32) -> Result<Self, u32> {
        match kind {
            1 => Ok(Self::Host),
            2 => Ok(Self::CudaVmm),
            3 => Ok(Self::CudaIpc),
            other => Err(other),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::CudaVmm => "vmm",
            Self::CudaIpc => "ipc",
        })
    }
}

/// Number and size of the slots of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Number of slots; at least 1.
    pub slots: u32,
    /// Bytes from the start of one slot to the next.
    pub stride: u64,
    /// Bytes of a slot that a frame may use; 1 to `stride`.
    pub size: u64,
}

impl Geometry {
    /// Returns the length of the chunk in bytes, or `None` if a number is out of range.
    pub fn bytes(&self) -> Option<usize> {
        let whole = self.stride.checked_mul(self.slots.into())?;
        (self.slots > 0 && self.size > 0 && self.size <= self.stride)
            .then(|| usize::try_from(whole).ok().filter(|w| *w <= isize::MAX as usize))?
    }

    /// Returns the address of a slot in a chunk that begins at `start`.
    ///
    /// # Panics
    /// `slot` is not less than `self.slots`.
    pub fn address(&self, start: u64, slot: u32) -> u64 {
        assert!(slot < self.slots);
        start + u64::from(slot) * self.stride
    }

    /// Returns the length of a chunk that another process announced.
    fn announced_bytes(&self) -> io::Result<usize> {
        self.bytes().ok_or_else(|| invalid("the numbers of the chunk are out of range"))
    }
}

/// Returns the error for data of a peer that breaks the protocol.
fn invalid(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.to_owned())
}

/// Allocates the memory of a publisher.
pub trait Backend: Send + Sync {
    /// Returns how the chunks are shared.
    fn kind(&self) -> Kind;

    /// Returns the GPU that holds the memory; [`Uuid::NONE`] for host memory.
    fn device(&self) -> Uuid {
        Uuid::NONE
    }

    /// Allocates a chunk with `slots` slots for frames of up to `size` bytes.
    ///
    /// # Errors
    /// A number is out of range, or the system or the GPU has no memory or fd left.
    fn allocate(&self, slots: u32, size: usize) -> io::Result<Arc<dyn Chunk>>;
}

/// An allocation of several slots that other processes can map.
///
/// # Safety
/// For each slot of the geometry, `size` bytes from its address on must be writable memory of the
/// backend's kind, and unused by others, until the chunk is dropped.
pub unsafe trait Chunk: Send + Sync {
    /// Returns number and size of the slots. Always the same.
    fn geometry(&self) -> Geometry;

    /// Returns the fd that is sent to subscribers, of the file that [`Kind`] describes.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Returns the address of a slot: a CPU address for [`Kind::Host`], otherwise a device address.
    ///
    /// # Panics
    /// `slot` is out of range.
    fn address(&self, slot: u32) -> u64;

    /// Makes sure that the slot has memory. Called before each use of a slot, without a lock.
    ///
    /// # Errors
    /// The system has no memory left.
    ///
    /// # Panics
    /// `slot` is out of range.
    fn prepare(&self, _slot: u32) -> io::Result<()> {
        Ok(())
    }

    /// Returns the event that the publisher records after the work that writes the slot, or `None` if
    /// subscribers don't wait for events.
    fn event(&self, _slot: u32) -> Option<&Event> {
        None
    }

    /// Returns the user data stored with this chunk; `None` for host memory.
    fn extensions(&self) -> Option<&Extensions> {
        None
    }
}

/// A [`Chunk`] of another process, mapped by a subscriber.
///
/// # Safety
/// For each slot of the geometry, `size` bytes from its address on must be readable memory of the kind,
/// until the chunk is dropped.
pub unsafe trait Imported: Send + Sync {
    /// Returns how the chunk is shared.
    fn kind(&self) -> Kind;

    /// Returns number and size of the slots. Always the same.
    fn geometry(&self) -> Geometry;

    /// Returns the address of a slot, for reading only: a CPU address for [`Kind::Host`], otherwise a
    /// device address.
    ///
    /// # Panics
    /// `slot` is out of range.
    fn address(&self, slot: u32) -> u64;

    /// Returns the event after which the frame in the slot is complete. The publisher records it before
    /// it publishes the frame. `None` if the chunk has no events.
    fn event(&self, _slot: u32) -> Option<&Event> {
        None
    }

    /// Returns the context in which device addresses are valid; `None` for host memory.
    fn context(&self) -> Option<&Context> {
        None
    }

    /// Returns the user data stored with this chunk; `None` for host memory.
    fn extensions(&self) -> Option<&Extensions> {
        None
    }
}

/// Typed user data owned by a chunk.
///
/// Must be the owner's first field, so that it is dropped before the memory.
#[derive(Default)]
pub struct Extensions(OnceLock<Box<dyn Any + Send + Sync>>);

impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Extensions").field(&self.0.get().is_some()).finish()
    }
}

impl Extensions {
    /// Returns a clone of the stored `T`, creating it on first use. A chunk stores one type; asking for
    /// another returns a fresh, unstored value.
    pub fn get<T: Any + Clone + Default + Send + Sync>(&self) -> T {
        let any = self.0.get_or_init(|| Box::new(T::default()));
        any.downcast_ref().cloned().unwrap_or_default()
    }
}

/// A chunk as its publisher announced it. The numbers are untrusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkInfo {
    /// How the chunk is shared.
    pub kind: Kind,
    /// The GPU that holds the memory; [`Uuid::NONE`] for host memory.
    pub device: Uuid,
    /// Number and size of the slots.
    pub geometry: Geometry,
}

/// Maps the chunks of publishers: always host memory, and device memory if it has a CUDA context.
#[derive(Clone, Default)]
pub struct Importer {
    cuda: Option<Cuda>,
}

#[derive(Clone)]
enum Cuda {
    Context(Context),
    Lazy(Arc<dyn Fn(Uuid) -> io::Result<Context> + Send + Sync>),
}

impl fmt::Debug for Importer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.cuda {
            None => "Importer(host)",
            Some(Cuda::Context(_)) => "Importer(cuda)",
            Some(Cuda::Lazy(_)) => "Importer(cuda_lazy)",
        })
    }
}

impl Importer {
    /// Returns an importer of host memory.
    pub fn host() -> Self {
        Self::default()
    }

    /// Returns an importer of host memory and of device memory, for use in the context.
    pub fn cuda(context: Context) -> Self {
        Self { cuda: Some(Cuda::Context(context)) }
    }

    /// Returns an importer of host memory and of device memory that calls `make` for a context when it
    /// imports a chunk of device memory, with the UUID of the publisher's GPU.
    ///
    /// A context occupies GPU memory. This way a subscriber of host memory does not create one.
    pub fn cuda_lazy(make: impl Fn(Uuid) -> io::Result<Context> + Send + Sync + 'static) -> Self {
        Self { cuda: Some(Cuda::Lazy(Arc::new(make))) }
    }

    /// Returns the GPU for which device memory is mapped; [`Uuid::NONE`] for an importer without a
    /// context, or one that asks for it later.
    pub fn gpu(&self) -> Uuid {
        match &self.cuda {
            Some(Cuda::Context(context)) => context.device().uuid().unwrap_or(Uuid::NONE),
            _ => Uuid::NONE,
        }
    }

    /// Maps a chunk that a publisher sent. Neither the description nor the fd needs to be trusted.
    ///
    /// Device memory is mapped in the importer's context if its GPU can read the chunk's device.
    /// Otherwise it is mapped in a context on the chunk's device: [`Imported::context`] then differs
    /// from the importer's, and frames have to be copied.
    ///
    /// # Errors
    /// A number is out of range, the fd does not match the kind, the address space is exhausted, the
    /// importer has no context for device memory, or the chunk's device is not visible to this process.
    pub fn import(&self, chunk: ChunkInfo, fd: OwnedFd) -> io::Result<Arc<dyn Imported>> {
        let ChunkInfo { kind, device, geometry } = chunk;
        Ok(match kind {
            Kind::Host => Arc::new(host::HostImport::new(fd, geometry)?),
            Kind::CudaVmm => {
                let context = self.context_for(device)?;
                Arc::new(cuda::CudaImport::new(&context, fd, geometry)?)
            }
            Kind::CudaIpc => {
                let context = self.context_for(device)?;
                Arc::new(cuda_ipc::CudaIpcImport::new(&context, fd, geometry)?)
            }
        })
    }

    /// Returns the context in which memory of the device is mapped.
    fn context_for(&self, device: Uuid) -> io::Result<Context> {
        let own = match &self.cuda {
            Some(Cuda::Context(context)) => context.clone(),
            Some(Cuda::Lazy(make)) => make(device)?,
            None => {
                let text =
                    "they are in the memory of a GPU, and this subscriber takes host memory only";
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
        };
        reachable(own, device)
    }
}

/// Returns `own` if its GPU can read the memory of the GPU `owner`, otherwise a context on `owner`.
///
/// Fails if this process does not see the GPU `owner`.
fn reachable(own: Context, owner: Uuid) -> io::Result<Context> {
    let reader = own.device();
    if owner == Uuid::NONE || reader.uuid()? == owner {
        return Ok(own);
    }
    let device = Device::by_uuid(owner).map_err(|e| {
        let text = format!(
            "they are on another GPU than {reader}, and that one is not visible here ({e}): make it visible too (CUDA_VISIBLE_DEVICES, --gpus), or publish with memory=host"
        );
        io::Error::new(io::ErrorKind::Unsupported, text)
    })?;
    // Some machines report peer access that does not work, for example with some IOMMUs. The variable
    // lets their users turn it off.
    let disabled = std::env::var_os("CUFRAMES_P2P_DISABLE").is_some_and(|value| value == "1");
    if reader.can_access(&device) && !disabled {
        return Ok(own);
    }
    Ok(Context::primary(&device)?)
}
