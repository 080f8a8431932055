//! Where pixels live. One publisher uses one kind of memory; a subscriber takes whatever comes.

pub mod cuda;
pub mod cuda_ipc;
pub mod host;

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use crate::cuda::{Context, Device, Event, Uuid};

/// A kind of memory, by its number in the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Kind {
    /// Memfds, mapped by the CPU.
    Host = 1,
    /// Device memory, as fds of the driver.
    CudaVmm = 2,
    /// Device memory, as handles of the driver in small memfds.
    CudaIpc = 3,
}

impl Kind {
    /// Addresses are those of a device.
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

/// How many slots of which size one allocation has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    pub slots: u32,
    /// Bytes from one slot to the next.
    pub stride: u64,
    /// Bytes that a frame may take in a slot; at most `stride`.
    pub size: u64,
}

impl Geometry {
    /// Bytes of the whole, or `None` where the numbers make no sense.
    pub fn bytes(&self) -> Option<usize> {
        let whole = self.stride.checked_mul(self.slots.into())?;
        (self.slots > 0 && self.size > 0 && self.size <= self.stride)
            .then(|| usize::try_from(whole).ok().filter(|w| *w <= isize::MAX as usize))?
    }

    /// Where the slot begins in memory that begins at `start`.
    fn address(&self, start: u64, slot: u32) -> u64 {
        assert!(slot < self.slots);
        start + u64::from(slot) * self.stride
    }
}

/// The publisher's side: makes chunks.
pub trait Backend: Send + Sync {
    fn kind(&self) -> Kind;

    /// The UUID of the GPU that the memory is on; zeros for the host.
    fn device(&self) -> [u8; 16] {
        [0; 16]
    }

    /// Allocates a chunk for frames of `size` bytes.
    fn allocate(&self, slots: u32, size: usize) -> io::Result<Arc<dyn Chunk>>;
}

/// Several slots in one allocation that other processes can map.
///
/// # Safety
/// For each slot of the geometry, `size` bytes from its address on have to be memory of the backend's
/// kind, writable and used by nobody else, until the chunk is dropped.
pub unsafe trait Chunk: Send + Sync {
    fn geometry(&self) -> Geometry;

    /// What is sent to subscribers.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Where the slot begins: an address of the CPU or of the device.
    fn address(&self, slot: u32) -> u64;

    /// What has to be recorded behind the work that writes the slot, if subscribers wait for that.
    fn event(&self, _slot: u32) -> Option<&Event> {
        None
    }

    /// Of memory for which it makes sense.
    fn attached(&self) -> Option<&Attached> {
        None
    }
}

/// The subscriber's side of a [`Chunk`].
///
/// # Safety
/// As for [`Chunk`], but readable.
pub unsafe trait Imported: Send + Sync {
    fn kind(&self) -> Kind;

    fn geometry(&self) -> Geometry;

    /// Where the slot begins: an address of the CPU or of the device, to be read only.
    fn address(&self, slot: u32) -> u64;

    /// What the frame in the slot is complete behind. It was recorded before the frame was published.
    fn event(&self, _slot: u32) -> Option<&Event> {
        None
    }

    /// The context that addresses of a device are valid in.
    fn context(&self) -> Option<&Context> {
        None
    }

    /// Of memory for which it makes sense.
    fn attached(&self) -> Option<&Attached> {
        None
    }
}

/// What the user of some memory keeps with it, and goes before it does: the first field of what owns it.
#[derive(Default)]
pub struct Attached(OnceLock<Box<dyn Any + Send + Sync>>);

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Attached").field(&self.0.get().is_some()).finish()
    }
}

impl Attached {
    /// The `T` of the memory; of a second type, one that is not kept.
    pub fn get<T: Any + Clone + Default + Send + Sync>(&self) -> T {
        let any = self.0.get_or_init(|| Box::new(T::default()));
        any.downcast_ref().cloned().unwrap_or_default()
    }
}

/// What a subscriber can map. Host memory always; device memory, if it has a context for it.
#[derive(Clone, Default)]
pub struct Importer {
    cuda: Option<Cuda>,
}

#[derive(Clone)]
enum Cuda {
    Context(Context),
    WhenNeeded(Arc<dyn Fn(Uuid) -> io::Result<Context> + Send + Sync>),
}

impl fmt::Debug for Importer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.cuda {
            None => "Importer of host memory",
            Some(Cuda::Context(_)) => "Importer of device memory",
            Some(Cuda::WhenNeeded(_)) => "Importer of device memory, when there is some",
        })
    }
}

impl Importer {
    /// Host memory only.
    pub fn host() -> Self {
        Self::default()
    }

    /// Also device memory, for use in the context.
    pub fn cuda(context: Context) -> Self {
        Self { cuda: Some(Cuda::Context(context)) }
    }

    /// Also device memory, for a context that `make` gives for each chunk, which is handed the
    /// publisher's GPU: a context takes memory of the GPU, which a subscriber of host memory need not
    /// spend.
    pub fn cuda_when_needed(
        make: impl Fn(Uuid) -> io::Result<Context> + Send + Sync + 'static,
    ) -> Self {
        Self { cuda: Some(Cuda::WhenNeeded(Arc::new(make))) }
    }

    /// The GPU that device memory is mapped for; zeros without one, or while that is not known.
    pub fn gpu(&self) -> Uuid {
        match &self.cuda {
            Some(Cuda::Context(context)) => context.device().uuid().unwrap_or(Uuid::NONE),
            _ => Uuid::NONE,
        }
    }

    /// Maps a chunk that a publisher sent, of memory on the GPU `owner`. Its numbers are not trusted.
    ///
    /// Device memory is mapped in the importer's context, if its GPU can read that of the owner, else
    /// in a context on the owner's: then [`Imported::context`] is another, and frames have to be copied.
    ///
    /// Errors: the numbers make no sense, the fd is not what the kind says, the address space is full,
    /// or this subscriber has no GPU, or does not see the publisher's.
    pub fn import(
        &self,
        (kind, owner): (Kind, Uuid),
        fd: OwnedFd,
        geometry: Geometry,
    ) -> io::Result<Arc<dyn Imported>> {
        let context = || match &self.cuda {
            Some(Cuda::Context(context)) => Ok(context.clone()),
            Some(Cuda::WhenNeeded(make)) => make(owner),
            None => {
                let text =
                    "they are in the memory of a GPU, and this subscriber takes host memory only";
                Err(io::Error::new(io::ErrorKind::Unsupported, text))
            }
        };
        Ok(match kind {
            Kind::Host => Arc::new(host::HostImport::new(fd, geometry)?),
            Kind::CudaVmm => {
                let context = reachable(&context()?, owner)?;
                Arc::new(cuda::CudaImport::new(&context, fd, geometry)?)
            }
            Kind::CudaIpc => {
                let context = reachable(&context()?, owner)?;
                Arc::new(cuda_ipc::CudaIpcImport::new(&context, fd, geometry)?)
            }
        })
    }
}

/// The context, if its GPU can read the memory of the GPU `owner`, else one on that.
///
/// Errors: this process does not see the owner.
fn reachable(context: &Context, owner: Uuid) -> io::Result<Context> {
    let own = context.device();
    if owner == Uuid::NONE || own.uuid()? == owner {
        return Ok(context.clone());
    }
    let device = Device::by_uuid(owner).map_err(|e| {
        let text = format!(
            "they are on another GPU than {own}, and that one is not visible here ({e}): make it visible too (CUDA_VISIBLE_DEVICES, --gpus), or publish with memory=host"
        );
        io::Error::new(io::ErrorKind::Unsupported, text)
    })?;
    // On some machines the access is there and does not work, as with some IOMMUs.
    let disabled = std::env::var_os("CUFRAMES_P2P_DISABLE").is_some_and(|value| value == "1");
    if own.can_access(&device) && !disabled {
        return Ok(context.clone());
    }
    Ok(Context::primary(&device)?)
}
