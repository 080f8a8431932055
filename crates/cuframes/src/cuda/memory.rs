// SPDX-License-Identifier: LGPL-2.1-or-later
//! Memory that a device can access: [`Mapped`] and its kinds.
//!
//! No kind releases memory while enqueued work uses it. Most wait for the work of their context first, because
//! the driver would otherwise take the memory away under a copy that is still enqueued.

use std::any::Any;
use std::ffi::{c_char, c_void};
use std::fmt;

use cudarc::driver::sys::{
    CU_MEMHOSTREGISTER_DEVICEMAP, CU_MEMHOSTREGISTER_PORTABLE, CU_MEMHOSTREGISTER_READ_ONLY,
    CUipcMem_flags, CUipcMemHandle,
};

use super::driver::{cu, cu_in};
use super::{Context, Error, IpcHandle, Result};

pub(super) mod sealed {
    use super::{Mapped, MemoryKind, Result};

    /// How a kind of memory is released.
    pub trait Release: Sized {
        /// Name of the type in debug output.
        const NAME: &'static str;
        /// Whether to wait for the context's work first, because the driver's call does not.
        const WAITS_FIRST: bool = true;

        /// Releases the memory.
        ///
        /// # Safety
        /// Called once, by `drop`, with the memory's context current. With [`Self::WAITS_FIRST`] no work
        /// uses the memory any more. (Sealing the trait is not enough to keep others out: generic code can
        /// call the functions of a bound.)
        unsafe fn release(memory: &Mapped<Self>) -> Result<()>
        where
            Self: MemoryKind;
    }
}

/// The origin of [`Mapped`] memory, which decides how it is released. Implemented by this crate only.
pub trait MemoryKind: sealed::Release {}

/// A range of addresses that work in a CUDA context can use. Released on drop.
///
/// Used through its aliases [`DeviceMemory`], [`IpcMemory`], [`VmmMapping`](super::VmmMapping) and
/// [`RegisteredHost`].
pub struct Mapped<K: MemoryKind> {
    pub(super) address: u64,
    pub(super) len: usize,
    pub(super) context: Context,
    pub(super) kind: K,
}

impl<K: MemoryKind> fmt::Debug for Mapped<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({:#x}, {} in {:?})", K::NAME, self.address, self.len, self.context)
    }
}

impl<K: MemoryKind> Drop for Mapped<K> {
    fn drop(&mut self) {
        if K::WAITS_FIRST {
            let _ = self.context.synchronize();
        }
        // SAFETY: called once, with the context current; its work is done if the kind needs that.
        let _ = self.context.with(|| unsafe { K::release(self) });
    }
}

impl<K: MemoryKind> Mapped<K> {
    /// Returns the address on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the context in which the addresses are valid.
    pub fn context(&self) -> &Context {
        &self.context
    }
}

/// Device memory allocated by this process.
pub type DeviceMemory = Mapped<Allocated>;

/// Kind of [`DeviceMemory`].
#[derive(Debug)]
pub struct Allocated(());

impl MemoryKind for Allocated {}

impl sealed::Release for Allocated {
    const NAME: &'static str = "DeviceMemory";
    // `cuMemFree` waits for the work that uses the memory, and for no other work of the context.
    const WAITS_FIRST: bool = false;

    unsafe fn release(memory: &Mapped<Self>) -> Result<()> {
        // SAFETY: allocated by `new`; the caller's contract.
        unsafe { cu!(memory.context.driver(), cuMemFree_v2(memory.address)) }
    }
}

impl DeviceMemory {
    /// Allocates `len` bytes on the context's device.
    ///
    /// # Errors
    /// `len` is 0, or the GPU has no memory left.
    pub fn new(context: &Context, len: usize) -> Result<Self> {
        let mut address = 0;
        // SAFETY: the driver writes an address.
        unsafe { cu_in!(context, cuMemAlloc_v2(&mut address, len)) }?;
        Ok(Self { address, len, context: context.clone(), kind: Allocated(()) })
    }

    /// Returns a handle that lets another process open the memory. It is valid while `self` exists.
    ///
    /// # Errors
    /// The driver on this system does not support CUDA IPC.
    pub fn ipc_handle(&self) -> Result<IpcHandle> {
        let mut handle = CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: the driver writes a handle; the memory is allocated while `self` exists.
        unsafe { cu_in!(&self.context, cuIpcGetMemHandle(&mut handle, self.address)) }?;
        Ok(handle.reserved.map(|b| b as u8))
    }
}

/// [`DeviceMemory`] of another process. The driver maps it writable; it has no read-only mode for this
/// kind.
pub type IpcMemory = Mapped<OpenedIpc>;

/// Kind of [`IpcMemory`].
#[derive(Debug)]
pub struct OpenedIpc(());

impl MemoryKind for OpenedIpc {}

impl sealed::Release for OpenedIpc {
    const NAME: &'static str = "IpcMemory";

    unsafe fn release(memory: &Mapped<Self>) -> Result<()> {
        // SAFETY: opened by `open`; the caller's contract.
        unsafe { cu!(memory.context.driver(), cuIpcCloseMemHandle(memory.address)) }
    }
}

impl IpcMemory {
    /// Opens memory of another process. The handle may come from an untrusted peer: the driver rejects
    /// bytes that are not a handle.
    ///
    /// # Errors
    /// The handle is invalid, the memory belongs to this process, or the processes are in different PID
    /// or IPC namespaces.
    pub fn open(context: &Context, handle: &IpcHandle) -> Result<Self> {
        let handle = CUipcMemHandle { reserved: handle.map(|b| b as c_char) };
        let flags = CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        let mut address = 0;
        // SAFETY: the driver writes an address.
        unsafe { cu_in!(context, cuIpcOpenMemHandle_v2(&mut address, handle, flags)) }?;
        let mut memory = Self { address, len: 0, context: context.clone(), kind: OpenedIpc(()) };
        let mut base = 0;
        // SAFETY: the driver writes the start and the length of the allocation.
        unsafe { cu_in!(context, cuMemGetAddressRange_v2(&mut base, &mut memory.len, address)) }?;
        memory.len = memory.len.saturating_sub((address - base) as usize);
        Ok(memory)
    }
}

/// Access of the device to [`RegisteredHost`] memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostAccess {
    /// Reads only; for memory that is mapped read-only. Needs
    /// [`Device::can_register_read_only`](super::Device::can_register_read_only).
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// Host memory that the device can access, such as shared memory to which it writes numbers.
pub type RegisteredHost = Mapped<Registered>;

/// Kind of [`RegisteredHost`].
pub struct Registered {
    host: *mut c_void,
    access: HostAccess,
    /// Keeps the memory mapped. Dropped after `release`.
    _keep: Box<dyn Any + Send + Sync>,
}

// SAFETY: the pointer identifies the registration to the driver; it is never dereferenced.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registered({:?}, {:?})", self.host, self.access)
    }
}

impl MemoryKind for Registered {}

impl sealed::Release for Registered {
    const NAME: &'static str = "RegisteredHost";

    unsafe fn release(memory: &Mapped<Self>) -> Result<()> {
        // SAFETY: registered by `new`; the caller's contract.
        unsafe { cu!(memory.context.driver(), cuMemHostUnregister(memory.kind.host)) }
    }
}

impl RegisteredHost {
    /// Registers `len` bytes of host memory from `host` on. `keep` is dropped after the registration
    /// ended.
    ///
    /// # Errors
    /// `len` is 0 or too large, a page of the range is registered already, or the device lacks
    /// read-only registration and `access` asks for it.
    ///
    /// # Safety
    /// The range must stay mapped, with the permissions that `access` names, until `keep` is dropped.
    /// Code that reads the range must expect concurrent writes by the device, as from another process.
    pub unsafe fn new(
        context: &Context,
        host: *mut u8,
        len: usize,
        access: HostAccess,
        keep: impl Any + Send + Sync + 'static,
    ) -> Result<Self> {
        if len == 0 || isize::try_from(len).is_err() {
            let problem = "The memory is too big for this process: raise its limit (ulimit -v)";
            return Err(Error::InvalidArgument { problem: problem.into() });
        }
        let host: *mut c_void = host.cast();
        let flags = CU_MEMHOSTREGISTER_DEVICEMAP | CU_MEMHOSTREGISTER_PORTABLE;
        let flags = match access {
            HostAccess::ReadOnly => flags | CU_MEMHOSTREGISTER_READ_ONLY,
            HostAccess::ReadWrite => flags,
        };
        // SAFETY: the range is mapped, by the caller's contract.
        unsafe { cu_in!(context, cuMemHostRegister_v2(host, len, flags)) }?;
        let kind = Registered { host, access, _keep: Box::new(keep) };
        let mut memory = Self { address: 0, len, context: context.clone(), kind };
        let address = &mut memory.address;
        // SAFETY: the driver writes an address; the range is registered.
        unsafe { cu_in!(context, cuMemHostGetDevicePointer_v2(address, host, 0)) }?;
        Ok(memory)
    }

    /// Returns the device address of the 8-byte word at `offset`, which the device may write.
    pub(super) fn word_address(&self, offset: usize) -> Result<u64> {
        let inside = self.len >= 8 && offset <= self.len - 8 && offset.is_multiple_of(8);
        if !inside || self.kind.access == HostAccess::ReadOnly {
            let problem = format!("There is no word to write at byte {offset} of {self:?}");
            return Err(Error::InvalidArgument { problem });
        }
        Ok(self.address + offset as u64)
    }
}
