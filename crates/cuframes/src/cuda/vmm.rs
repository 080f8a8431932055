// SPDX-License-Identifier: LGPL-2.1-or-later
//! Virtual memory management (VMM): device memory that other processes map through an fd.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use cudarc::driver::sys::{
    CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationGranularity_flags,
    CUmemAllocationHandleType, CUmemAllocationProp, CUmemAllocationType,
    CUmemGenericAllocationHandle, CUmemLocation, CUmemLocationType,
};

use super::driver::{cu, cu_in};
use super::memory::{Mapped, MemoryKind, sealed};
use super::{Context, Device, Result};

const FD: CUmemAllocationHandleType =
    CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

fn location(device: &Device) -> CUmemLocation {
    CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device.ordinal() }
}

/// Device memory that can be exported to other processes as an fd.
///
/// It has no address until it is mapped ([`VmmMapping`]). The driver frees it when the last fd,
/// allocation and mapping of it on the host is gone.
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
        // SAFETY: created or imported once by this object. Mappings keep the memory on their own.
        let _ = unsafe { cu_in!(&self.context, cuMemRelease(self.handle)) };
    }
}

impl VmmAllocation {
    fn properties(device: &Device) -> CUmemAllocationProp {
        let mut properties: MaybeUninit<CUmemAllocationProp> = MaybeUninit::zeroed();
        let p = properties.as_mut_ptr();
        // SAFETY: `p` points to the structure, and nothing is read through it. The fields that are left
        // zero are numbers and flags, for which zero is valid; the enums are written here.
        unsafe {
            (&raw mut (*p).type_).write(CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED);
            (&raw mut (*p).requestedHandleTypes).write(FD);
            (&raw mut (*p).location).write(location(device));
            properties.assume_init()
        }
    }

    /// Returns the unit of allocation sizes on the context's device, in bytes (2 MiB on all GPUs so far).
    ///
    /// # Errors
    /// The device has no VMM.
    pub fn granularity(context: &Context) -> Result<usize> {
        let properties = Self::properties(context.device());
        let minimum = CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        let mut granularity = 0;
        // SAFETY: the driver reads the properties and writes a number.
        unsafe {
            cu_in!(context, cuMemGetAllocationGranularity(&mut granularity, &properties, minimum))
        }?;
        Ok(granularity.max(1))
    }

    /// Allocates `size` bytes on the context's device. `size` must be a multiple of the
    /// [granularity](Self::granularity).
    ///
    /// # Errors
    /// The size is invalid, or the GPU has no memory left.
    pub fn create(context: &Context, size: usize) -> Result<Self> {
        let properties = Self::properties(context.device());
        let mut handle = 0;
        // SAFETY: the driver reads the properties and writes a handle.
        unsafe { cu_in!(context, cuMemCreate(&mut handle, size, &properties, 0)) }?;
        Ok(Self { handle, context: context.clone() })
    }

    /// Returns an fd for other processes. The fd keeps the memory allocated.
    ///
    /// # Errors
    /// The process has no fd left, or the driver refused the call.
    pub fn export(&self) -> Result<OwnedFd> {
        let mut fd: c_int = -1;
        let to: *mut c_int = &mut fd;
        // SAFETY: for this type of handle, the driver writes an int.
        unsafe {
            cu_in!(&self.context, cuMemExportToShareableHandle(to.cast(), self.handle, FD, 0))
        }?;
        // SAFETY: the driver opened this fd for this call, and leaves it to the caller to close.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Imports the memory behind an fd that another process exported. The fd may come from an untrusted
    /// peer: the driver rejects fds that it did not export.
    ///
    /// # Errors
    /// The fd is not exported memory, or its GPU is not visible to this process.
    pub fn import(context: &Context, fd: BorrowedFd<'_>) -> Result<Self> {
        let mut handle = 0;
        // The driver takes an fd as a pointer.
        let fd = std::ptr::without_provenance_mut::<c_void>(fd.as_raw_fd() as usize);
        // SAFETY: the driver writes a handle; the fd is open while it is borrowed.
        unsafe { cu_in!(context, cuMemImportFromShareableHandle(&mut handle, fd, FD)) }?;
        Ok(Self { handle, context: context.clone() })
    }

    /// Returns the device that holds the memory. Imported memory may be on another device than the
    /// context's.
    ///
    /// # Errors
    /// The driver refused the call.
    pub fn device(&self) -> Result<Device> {
        let driver = self.context.driver();
        let mut properties: MaybeUninit<CUmemAllocationProp> = MaybeUninit::zeroed();
        let p = properties.as_mut_ptr();
        // SAFETY: the driver writes the structure.
        unsafe { cu_in!(&self.context, cuMemGetAllocationPropertiesFromHandle(p, self.handle)) }?;
        // SAFETY: an int inside the structure. The rest is not read, because its enums may have values
        // that the bindings lack.
        let handle = unsafe { (&raw const (*p).location.id).read() };
        Ok(Device { driver, handle })
    }
}

/// Permissions of a [`VmmMapping`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads only. The driver refuses copies into the mapping, and writes by kernels fault.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// Addresses at which a [`VmmAllocation`] is used.
pub type VmmMapping = Mapped<MappedVmm>;

/// Kind of [`VmmMapping`].
#[derive(Debug)]
pub struct MappedVmm {
    /// False while the addresses are reserved only.
    mapped: bool,
}

impl MemoryKind for MappedVmm {}

impl sealed::Release for MappedVmm {
    const NAME: &'static str = "VmmMapping";

    unsafe fn release(memory: &Mapped<Self>) -> Result<()> {
        let driver = memory.context.driver();
        // SAFETY: reserved and mapped by `new`; the caller's contract.
        unsafe {
            if memory.kind.mapped {
                cu!(driver, cuMemUnmap(memory.address, memory.len))?;
            }
            cu!(driver, cuMemAddressFree(memory.address, memory.len))
        }
    }
}

impl VmmMapping {
    /// Maps `len` bytes, a multiple of the [granularity](VmmAllocation::granularity), for use by the
    /// device of `context`. The mapping stays valid after the allocation is dropped.
    ///
    /// # Errors
    /// The allocation is smaller than `len`, or is on a device that this one can't access.
    pub fn new(
        context: &Context,
        allocation: &VmmAllocation,
        len: usize,
        access: Access,
    ) -> Result<Self> {
        let driver = context.driver();
        let mut address = 0;
        // SAFETY: the driver writes an address.
        unsafe { cu_in!(context, cuMemAddressReserve(&mut address, len, 0, 0, 0)) }?;
        let kind = MappedVmm { mapped: false };
        let mut mapping = Self { address, len, context: context.clone(), kind };
        let flags = match access {
            Access::ReadOnly => CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READ,
            Access::ReadWrite => CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        let access = CUmemAccessDesc { location: location(context.device()), flags };
        context.with(|| {
            // SAFETY: the range was reserved for this mapping, and nothing uses it yet.
            unsafe { cu!(driver, cuMemMap(address, len, 0, allocation.handle, 0)) }?;
            mapping.kind.mapped = true;
            // SAFETY: the driver reads one description.
            unsafe { cu!(driver, cuMemSetAccess(address, len, &access, 1)) }
        })?;
        Ok(mapping)
    }
}
