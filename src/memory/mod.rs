//! Where pixels live. One publisher uses one kind of memory; a subscriber takes whatever comes.

pub mod host;

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A kind of memory, by its number in the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Kind {
    /// Memfds, mapped by the CPU.
    Host = 1,
}

impl TryFrom<u32> for Kind {
    type Error = u32;
    fn try_from(kind: u32) -> Result<Self, u32> {
        match kind {
            1 => Ok(Self::Host),
            other => Err(other),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
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
pub trait Chunk: Send + Sync {
    fn geometry(&self) -> Geometry;

    /// What is sent to subscribers.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Where the slot begins: an address of the CPU or of the device.
    fn address(&self, slot: u32) -> u64;
}

/// The subscriber's side of a [`Chunk`].
pub trait Imported: Send + Sync {
    fn geometry(&self) -> Geometry;

    /// Where the slot begins: an address of the CPU or of the device, to be read only.
    fn address(&self, slot: u32) -> u64;
}

/// Maps a chunk that a publisher sent. Its numbers are not trusted.
///
/// Errors: the numbers make no sense, the fd is not what the kind says, or the address space is full.
pub fn import(kind: Kind, fd: OwnedFd, geometry: Geometry) -> io::Result<Arc<dyn Imported>> {
    match kind {
        Kind::Host => Ok(Arc::new(host::HostImport::new(fd, geometry)?)),
    }
}
