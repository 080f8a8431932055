// SPDX-License-Identifier: LGPL-2.1-or-later
//! The driver's functions, looked up once at run time.

#![allow(non_snake_case)]

use std::ffi::{CStr, c_char, c_int, c_longlong, c_uchar, c_uint, c_ulonglong, c_void};

use cudarc::driver::sys::{
    self, CUDA_MEMCPY2D, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent,
    CUipcEventHandle, CUipcMemHandle, CUmemAccessDesc, CUmemAllocationGranularity_flags,
    CUmemAllocationHandleType, CUmemAllocationProp, CUmemGenericAllocationHandle, CUstream, CUuuid,
};
use once_cell::sync::OnceCell;

use super::library::Library;
use super::{Error, Result};

/// Oldest supported driver: 470 (CUDA 11.4). It has all required functions, and is the first to give
/// the parts of a GPU (MIG) UUIDs of their own.
pub(super) const MIN_VERSION: i32 = 11040;

const LIBRARY: &str = "libcuda.so.1";

const SUCCESS: u32 = 0;
const NOT_READY: u32 = 600;

macro_rules! table {
    (required { $($name:ident($($argument:ty),*);)* } optional { $($opt:ident($($opt_argument:ty),*);)* }) => {
        /// The functions in use, by the names of their symbols.
        ///
        /// They return `u32` instead of the bindings' enum: newer drivers return error numbers that the
        /// enum lacks, and such a value of the enum would be undefined behaviour.
        pub(super) struct Driver {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> u32,)*
            $(pub(super) $opt: Option<unsafe extern "C" fn($($opt_argument),*) -> u32>,)*
            cuGetErrorName: unsafe extern "C" fn(u32, *mut *const c_char) -> u32,
            /// CUDA version: 12040 is CUDA 12.4.
            pub(super) version: i32,
        }

        // The arguments are those of the bindings, which are generated from NVIDIA's header.
        $(const _: unsafe fn($($argument),*) -> sys::CUresult = sys::$name;)*
        $(const _: unsafe fn($($opt_argument),*) -> sys::CUresult = sys::$opt;)*

        impl Driver {
            /// Looks up all functions. Fails with the name of the first required one that is missing.
            ///
            /// # Safety
            /// The library must be the driver's, and must stay open while the result is in use.
            unsafe fn look_up(library: &Library, version: i32) -> Result<Self, &'static str> {
                // SAFETY: the types are those of the bindings, by the assertions above. The library is
                // the driver's and stays open, by the caller's contract.
                unsafe {
                    Ok(Self {
                        $($name: library.find(stringify!($name)).ok_or(stringify!($name))?,)*
                        $($opt: library.find(stringify!($opt)),)*
                        cuGetErrorName: library.find("cuGetErrorName").ok_or("cuGetErrorName")?,
                        version,
                    })
                }
            }
        }
    };
}

table! {
    required {
        cuInit(c_uint);
        cuDeviceGetCount(*mut c_int);
        cuDeviceGet(*mut CUdevice, c_int);
        cuDeviceGetName(*mut c_char, c_int, CUdevice);
        cuDeviceGetUuid_v2(*mut CUuuid, CUdevice);
        cuDeviceGetAttribute(*mut c_int, CUdevice_attribute, CUdevice);
        cuDeviceCanAccessPeer(*mut c_int, CUdevice, CUdevice);
        cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
        cuDevicePrimaryCtxRelease_v2(CUdevice);

        cuCtxPushCurrent_v2(CUcontext);
        cuCtxPopCurrent_v2(*mut CUcontext);
        cuCtxGetDevice(*mut CUdevice);
        cuCtxSynchronize();

        cuStreamCreate(*mut CUstream, c_uint);
        cuStreamDestroy_v2(CUstream);
        cuStreamQuery(CUstream);
        cuStreamSynchronize(CUstream);
        cuStreamWaitEvent(CUstream, CUevent, c_uint);

        cuEventCreate(*mut CUevent, c_uint);
        cuEventDestroy_v2(CUevent);
        cuEventRecord(CUevent, CUstream);
        cuEventQuery(CUevent);
        cuEventSynchronize(CUevent);

        cuMemAlloc_v2(*mut CUdeviceptr, usize);
        cuMemFree_v2(CUdeviceptr);
        cuMemGetAddressRange_v2(*mut CUdeviceptr, *mut usize, CUdeviceptr);
        cuMemHostRegister_v2(*mut c_void, usize, c_uint);
        cuMemHostUnregister(*mut c_void);
        cuMemHostGetDevicePointer_v2(*mut CUdeviceptr, *mut c_void, c_uint);

        cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, usize, CUstream);
        cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
        cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
        cuMemcpyPeerAsync(CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, usize, CUstream);
        cuMemcpy2DAsync_v2(*const CUDA_MEMCPY2D, CUstream);
        cuMemsetD8Async(CUdeviceptr, c_uchar, usize, CUstream);

        cuMemGetAllocationGranularity(*mut usize, *const CUmemAllocationProp, CUmemAllocationGranularity_flags);
        cuMemGetAllocationPropertiesFromHandle(*mut CUmemAllocationProp, CUmemGenericAllocationHandle);
        cuMemCreate(*mut CUmemGenericAllocationHandle, usize, *const CUmemAllocationProp, c_ulonglong);
        cuMemRelease(CUmemGenericAllocationHandle);
        cuMemExportToShareableHandle(*mut c_void, CUmemGenericAllocationHandle, CUmemAllocationHandleType, c_ulonglong);
        cuMemImportFromShareableHandle(*mut CUmemGenericAllocationHandle, *mut c_void, CUmemAllocationHandleType);
        cuMemAddressReserve(*mut CUdeviceptr, usize, usize, CUdeviceptr, c_ulonglong);
        cuMemAddressFree(CUdeviceptr, usize);
        cuMemMap(CUdeviceptr, usize, usize, CUmemGenericAllocationHandle, c_ulonglong);
        cuMemUnmap(CUdeviceptr, usize);
        cuMemSetAccess(CUdeviceptr, usize, *const CUmemAccessDesc, usize);

        cuIpcGetMemHandle(*mut CUipcMemHandle, CUdeviceptr);
        cuIpcOpenMemHandle_v2(*mut CUdeviceptr, CUipcMemHandle, c_uint);
        cuIpcCloseMemHandle(CUdeviceptr);
        cuIpcGetEventHandle(*mut CUipcEventHandle, CUevent);
        cuIpcOpenEventHandle(*mut CUevent, CUipcEventHandle);
    }
    optional {
        // Since driver 515 (CUDA 11.7). Its predecessor has to be enabled in the kernel module.
        cuStreamWriteValue64_v2(CUstream, CUdeviceptr, u64, c_uint);
    }
}

// The signatures above use CUdeviceptr where the header says "long long".
const _: () = assert!(size_of::<c_longlong>() == size_of::<CUdeviceptr>());

/// Calls a function of the driver and converts its return value to a `Result`.
macro_rules! cu {
    ($driver:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let driver: &$crate::cuda::driver::Driver = $driver;
        driver.check(stringify!($function), (driver.$function)($($argument),*))
    }};
}
pub(super) use cu;

/// As [`cu!`], with a context current on this thread during the call.
macro_rules! cu_in {
    ($context:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let context: &$crate::cuda::Context = $context;
        context.with(|| $crate::cuda::driver::cu!(context.driver(), $function($($argument),*)))
    }};
}
pub(super) use cu_in;

impl Driver {
    /// Returns the driver of this system. After a failure the next call tries again, because a driver
    /// may be installed, and a GPU plugged in, while a process runs.
    pub(super) fn get() -> Result<&'static Self> {
        static DRIVER: OnceCell<Driver> = OnceCell::new();
        DRIVER.get_or_try_init(|| Self::load(LIBRARY))
    }

    /// Opens the library, checks its version and initializes the driver.
    pub(super) fn load(name: &str) -> Result<Self> {
        let missing = |function: &'static str| Error::NoFunction {
            library: name.to_owned(),
            function: function.to_owned(),
        };
        // SAFETY: any thread may open the driver's library at any time.
        let library =
            unsafe { Library::open(name) }.map_err(|problem| Error::NoDriver { problem })?;
        // SAFETY: the signature is that of the driver's header. The library is still open, and the
        // function may be called before cuInit.
        let version = unsafe {
            let get: unsafe extern "C" fn(*mut c_int) -> u32 =
                library.find("cuDriverGetVersion").ok_or(missing("cuDriverGetVersion"))?;
            let mut version = 0;
            if get(&mut version) == SUCCESS { version } else { 0 }
        };
        if version < MIN_VERSION {
            return Err(Error::OldDriver { version });
        }
        // SAFETY: the library has the driver's name and functions. It is leaked below; an early return
        // drops the table together with it.
        let driver = unsafe { Self::look_up(&library, version) }.map_err(missing)?;
        // SAFETY: cuInit may be called at any time and more than once.
        unsafe { cu!(&driver, cuInit(0)) }?;
        // The driver starts threads and registers exit handlers, so it must stay loaded.
        library.leak();
        Ok(driver)
    }

    /// Converts the return value of `function` to a `Result`.
    pub(super) fn check(&self, function: &'static str, code: u32) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        let mut name = std::ptr::null();
        // SAFETY: the driver writes a pointer to a constant text, or null for a number it doesn't know.
        let known = unsafe { (self.cuGetErrorName)(code, &mut name) } == SUCCESS && !name.is_null();
        let name = match known {
            // SAFETY: the driver wrote a pointer to a constant text.
            true => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
            false => "an unknown error".to_owned(),
        };
        Err(Error::Call { function, code, name })
    }

    /// As [`Driver::check`], for functions that query completion: "not ready" is `Ok(false)`.
    pub(super) fn check_done(&self, function: &'static str, code: u32) -> Result<bool> {
        match code {
            NOT_READY => Ok(false),
            code => self.check(function, code).map(|()| true),
        }
    }
}
