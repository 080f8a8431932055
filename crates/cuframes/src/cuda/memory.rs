//! Device memory of several kinds, and host memory that the device can reach.
//!
//! What is dropped here waits for the work of its context first: the driver would take memory away
//! under a copy that is still enqueued.

use std::any::Any;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use cudarc::driver::sys::{
    CU_MEMHOSTREGISTER_DEVICEMAP, CU_MEMHOSTREGISTER_PORTABLE, CU_MEMHOSTREGISTER_READ_ONLY,
    CUipcMem_flags, CUipcMemHandle, CUmemAccess_flags, CUmemAccessDesc,
    CUmemAllocationGranularity_flags, CUmemAllocationHandleType, CUmemAllocationProp,
    CUmemAllocationType, CUmemGenericAllocationHandle, CUmemLocation, CUmemLocationType,
};

use super::driver::cu;
use super::{Context, Device, Error, IpcHandle, Result};

const FD: CUmemAllocationHandleType =
    CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

fn too_big() -> Error {
    Error::Value {
        problem: "The memory is too big for this process: raise its limit (ulimit -v)".into(),
    }
}

fn location(device: &Device) -> CUmemLocation {
    CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device.ordinal() }
}

/// Memory on the device that can be given to other processes as an fd. It has no address before it is
/// mapped, and is freed when nobody on the host has an fd, an allocation or a mapping of it any more.
pub struct VmmAllocation {
    handle: CUmemGenericAllocationHandle,
    context: Context,
}

impl fmt::Debug for VmmAllocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VmmAllocation({:#x} in {:?})", self.handle, self.context)
    }
}

impl Drop for VmmAllocation {
    fn drop(&mut self) {
        let driver = self.context.driver();
        // SAFETY: created or imported once by this object. Mappings have the memory for themselves.
        let _ = self.context.with(|| unsafe { cu!(driver, cuMemRelease(self.handle)) });
    }
}

impl VmmAllocation {
    fn properties(device: &Device) -> CUmemAllocationProp {
        // SAFETY: a plain structure of numbers, of which zeros are valid: no handle type, no flags.
        // (Its enums' values are set below.)
        let mut properties: MaybeUninit<CUmemAllocationProp> = MaybeUninit::zeroed();
        let p = properties.as_mut_ptr();
        // SAFETY: `p` points to the structure; nothing is read through it.
        unsafe {
            (&raw mut (*p).type_).write(CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED);
            (&raw mut (*p).requestedHandleTypes).write(FD);
            (&raw mut (*p).location).write(location(device));
            // SAFETY: every field is zero, where that is valid, or was written.
            properties.assume_init()
        }
    }

    /// What sizes of allocations on the device are multiples of (2 MiB on all GPUs so far).
    pub fn granularity(context: &Context) -> Result<usize> {
        let (driver, properties) = (context.driver(), Self::properties(context.device()));
        let minimum = CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        let mut granularity = 0;
        context.with(|| {
            // SAFETY: the driver reads the properties and writes a number.
            unsafe {
                cu!(driver, cuMemGetAllocationGranularity(&mut granularity, &properties, minimum))
            }
        })?;
        Ok(granularity.max(1))
    }

    /// Allocates `size` bytes, a multiple of the granularity, on the context's device.
    pub fn create(context: &Context, size: usize) -> Result<Self> {
        let (driver, properties) = (context.driver(), Self::properties(context.device()));
        let mut handle = 0;
        // SAFETY: the driver reads the properties and writes a handle.
        context.with(|| unsafe { cu!(driver, cuMemCreate(&mut handle, size, &properties, 0)) })?;
        Ok(Self { handle, context: context.clone() })
    }

    /// An fd for other processes. It keeps the memory.
    pub fn export(&self) -> Result<OwnedFd> {
        let driver = self.context.driver();
        let mut fd: c_int = -1;
        let to: *mut c_int = &mut fd;
        // SAFETY: for this type of handle, the driver writes an int.
        self.context.with(|| unsafe {
            cu!(driver, cuMemExportToShareableHandle(to.cast(), self.handle, FD, 0))
        })?;
        // SAFETY: the driver made this fd for this call, and closes none.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// The memory behind an fd that another process exported. The fd need not be trusted: the driver
    /// refuses what it did not make.
    pub fn import(context: &Context, fd: BorrowedFd<'_>) -> Result<Self> {
        let driver = context.driver();
        let mut handle = 0;
        // An fd travels as a pointer here.
        let fd = std::ptr::without_provenance_mut::<c_void>(fd.as_raw_fd() as usize);
        // SAFETY: the driver writes a handle; the fd is open while it is borrowed.
        context
            .with(|| unsafe { cu!(driver, cuMemImportFromShareableHandle(&mut handle, fd, FD)) })?;
        Ok(Self { handle, context: context.clone() })
    }

    /// The device that has the memory; for imported memory, maybe another than the context's.
    pub fn device(&self) -> Result<Device> {
        let driver = self.context.driver();
        let mut properties: MaybeUninit<CUmemAllocationProp> = MaybeUninit::zeroed();
        let p = properties.as_mut_ptr();
        // SAFETY: the driver writes the structure.
        self.context.with(|| unsafe {
            cu!(driver, cuMemGetAllocationPropertiesFromHandle(p, self.handle))
        })?;
        // SAFETY: an int at its place in the structure. The rest is not looked at: its enums may have
        // values that the bindings don't know.
        let handle = unsafe { (&raw const (*p).location.id).read() };
        Ok(Device { driver, handle })
    }
}

/// What a mapping may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Writes are refused by the driver, and fault in kernels.
    ReadOnly,
    ReadWrite,
}

/// Addresses at which a [`VmmAllocation`] is used.
pub struct VmmMapping {
    address: u64,
    len: usize,
    context: Context,
    mapped: bool,
}

impl fmt::Debug for VmmMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VmmMapping({:#x}, {} in {:?})", self.address, self.len, self.context)
    }
}

impl Drop for VmmMapping {
    fn drop(&mut self) {
        let driver = self.context.driver();
        let _ = self.context.synchronize();
        let _ = self.context.with(|| {
            // SAFETY: reserved and mapped by this object, and no work uses it any more.
            unsafe {
                if self.mapped {
                    cu!(driver, cuMemUnmap(self.address, self.len))?;
                }
                cu!(driver, cuMemAddressFree(self.address, self.len))
            }
        });
    }
}

impl VmmMapping {
    /// Maps `len` bytes, a multiple of the granularity, for use by the device of `context`. The mapping
    /// lives on without the allocation.
    ///
    /// Errors: the allocation is smaller, or belongs to another device that this one can't access.
    pub fn new(
        context: &Context,
        allocation: &VmmAllocation,
        len: usize,
        access: Access,
    ) -> Result<Self> {
        let driver = context.driver();
        let mut address = 0;
        // SAFETY: the driver writes an address.
        context.with(|| unsafe { cu!(driver, cuMemAddressReserve(&mut address, len, 0, 0, 0)) })?;
        let mut mapping = Self { address, len, context: context.clone(), mapped: false };
        let flags = match access {
            Access::ReadOnly => CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READ,
            Access::ReadWrite => CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        let access = CUmemAccessDesc { location: location(context.device()), flags };
        context.with(|| {
            // SAFETY: the range was reserved for this, and nothing uses it yet.
            unsafe { cu!(driver, cuMemMap(address, len, 0, allocation.handle, 0)) }?;
            mapping.mapped = true;
            // SAFETY: the driver reads one description.
            unsafe { cu!(driver, cuMemSetAccess(address, len, &access, 1)) }
        })?;
        Ok(mapping)
    }

    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn context(&self) -> &Context {
        &self.context
    }
}

/// Plain device memory.
pub struct DeviceMemory {
    address: u64,
    len: usize,
    context: Context,
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceMemory({:#x}, {} in {:?})", self.address, self.len, self.context)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let driver = self.context.driver();
        // SAFETY: allocated by this object. The driver waits for the work that uses it.
        let _ = self.context.with(|| unsafe { cu!(driver, cuMemFree_v2(self.address)) });
    }
}

impl DeviceMemory {
    pub fn new(context: &Context, len: usize) -> Result<Self> {
        let driver = context.driver();
        let mut address = 0;
        // SAFETY: the driver writes an address.
        context.with(|| unsafe { cu!(driver, cuMemAlloc_v2(&mut address, len)) })?;
        Ok(Self { address, len, context: context.clone() })
    }

    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What another process opens the memory by, while this one lives.
    pub fn ipc_handle(&self) -> Result<IpcHandle> {
        let driver = self.context.driver();
        let mut handle = CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: the driver writes a handle; the memory is allocated while `self` lives.
        self.context
            .with(|| unsafe { cu!(driver, cuIpcGetMemHandle(&mut handle, self.address)) })?;
        Ok(handle.reserved.map(|b| b as u8))
    }
}

/// [`DeviceMemory`] of another process. It can be written, as there is no way to say otherwise.
pub struct IpcMemory {
    address: u64,
    len: usize,
    context: Context,
}

impl fmt::Debug for IpcMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IpcMemory({:#x}, {} in {:?})", self.address, self.len, self.context)
    }
}

impl Drop for IpcMemory {
    fn drop(&mut self) {
        let driver = self.context.driver();
        let _ = self.context.synchronize();
        // SAFETY: opened by this object, and no work uses it any more.
        let _ = self.context.with(|| unsafe { cu!(driver, cuIpcCloseMemHandle(self.address)) });
    }
}

impl IpcMemory {
    /// Opens memory of another process. The bytes need not be trusted: the driver refuses those that
    /// are no handle.
    ///
    /// Errors: also where the memory is this process's own, or the processes don't share the PID and
    /// IPC namespaces.
    pub fn open(context: &Context, handle: &IpcHandle) -> Result<Self> {
        let driver = context.driver();
        let handle = CUipcMemHandle { reserved: handle.map(|b| b as std::ffi::c_char) };
        let flags = CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        let mut address = 0;
        // SAFETY: the driver writes an address.
        context
            .with(|| unsafe { cu!(driver, cuIpcOpenMemHandle_v2(&mut address, handle, flags)) })?;
        let mut memory = Self { address, len: 0, context: context.clone() };
        let mut base = 0;
        // SAFETY: the driver writes where the allocation begins, and its length.
        context.with(|| unsafe {
            cu!(driver, cuMemGetAddressRange_v2(&mut base, &mut memory.len, address))
        })?;
        memory.len = memory.len.saturating_sub((address - base) as usize);
        Ok(memory)
    }

    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn context(&self) -> &Context {
        &self.context
    }
}

/// How the device may use host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostAccess {
    /// For memory that is mapped read-only: [`Device::can_register_read_only`].
    ReadOnly,
    ReadWrite,
}

/// Host memory that the device can reach, such as shared memory that it writes numbers to.
pub struct RegisteredHost {
    host: *mut c_void,
    len: usize,
    address: u64,
    access: HostAccess,
    context: Context,
    /// Keeps the memory until it is not registered any more.
    _keep: Box<dyn Any + Send + Sync>,
}

// SAFETY: the pointer is a key for the driver, and nothing is read or written through it here.
unsafe impl Send for RegisteredHost {}
// SAFETY: as above.
unsafe impl Sync for RegisteredHost {}

impl fmt::Debug for RegisteredHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegisteredHost({:?}, {} in {:?})", self.host, self.len, self.context)
    }
}

impl Drop for RegisteredHost {
    fn drop(&mut self) {
        let driver = self.context.driver();
        let _ = self.context.synchronize();
        // SAFETY: registered by this object, and no work uses it any more.
        let _ = self.context.with(|| unsafe { cu!(driver, cuMemHostUnregister(self.host)) });
    }
}

impl RegisteredHost {
    /// Registers a range of host memory. No page of it may be registered already.
    ///
    /// # Safety
    /// The range has to be mapped, as `access` says, until `keep` is dropped. Whatever reads it has to
    /// expect that the device writes there, as another process would.
    pub unsafe fn new(
        context: &Context,
        host: *mut u8,
        len: usize,
        access: HostAccess,
        keep: impl Any + Send + Sync + 'static,
    ) -> Result<Self> {
        let driver = context.driver();
        if len == 0 || isize::try_from(len).is_err() {
            return Err(too_big());
        }
        let host: *mut c_void = host.cast();
        let flags = CU_MEMHOSTREGISTER_DEVICEMAP | CU_MEMHOSTREGISTER_PORTABLE;
        let flags = match access {
            HostAccess::ReadOnly => flags | CU_MEMHOSTREGISTER_READ_ONLY,
            HostAccess::ReadWrite => flags,
        };
        // SAFETY: the range is mapped, by the caller's promise.
        context.with(|| unsafe { cu!(driver, cuMemHostRegister_v2(host, len, flags)) })?;
        let (context, _keep) = (context.clone(), Box::new(keep));
        let mut memory = Self { host, len, address: 0, access, context, _keep };
        let address = &mut memory.address;
        // SAFETY: the driver writes an address; the range is registered.
        memory
            .context
            .with(|| unsafe { cu!(driver, cuMemHostGetDevicePointer_v2(address, host, 0)) })?;
        Ok(memory)
    }

    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Where the device finds the memory.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the device finds a word that it may write.
    pub(super) fn writable(&self, offset: usize) -> Result<u64> {
        let inside = self.len >= 8 && offset <= self.len - 8 && offset.is_multiple_of(8);
        if !inside || self.access == HostAccess::ReadOnly {
            let problem = format!("There is no word to write at byte {offset} of {self:?}");
            return Err(Error::Value { problem });
        }
        Ok(self.address + offset as u64)
    }
}
