//! The driver's functions, looked up once at run time.

#![allow(non_snake_case)]

use std::ffi::{CStr, c_char, c_int, c_longlong, c_uchar, c_uint, c_ulonglong, c_void};

use cudarc::driver::sys::{
    self, CUDA_MEMCPY2D, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent,
    CUipcEventHandle, CUipcMemHandle, CUmemAccessDesc, CUmemAllocationGranularity_flags,
    CUmemAllocationHandleType, CUmemAllocationProp, CUmemGenericAllocationHandle, CUstream, CUuuid,
};
use libloading::Library;
use once_cell::sync::OnceCell;

use super::{Error, Result};

/// The oldest driver for which all functions of the table exist: 470, which is also the first that
/// tells apart the UUIDs of the parts of a GPU (MIG).
pub const MIN_VERSION: i32 = 11040;

const LIBRARY: &str = "libcuda.so.1";

const SUCCESS: u32 = 0;
const NOT_READY: u32 = 600;

/// Looks up what a library has under a name.
///
/// # Safety
/// `F` has to be the function's type, and must not be used after the library was closed.
pub unsafe fn find<F: Copy>(library: &Library, name: &str) -> Option<F> {
    // SAFETY: the caller's promise.
    unsafe { library.get::<F>(name.as_bytes()) }.ok().map(|symbol| *symbol)
}

macro_rules! table {
    (required { $($name:ident($($argument:ty),*);)* } optional { $($opt:ident($($opt_argument:ty),*);)* }) => {
        /// The functions in use, by the names of their symbols.
        ///
        /// They return a plain number: the enum of the bindings has no value for errors that newer
        /// drivers know, and would be undefined behaviour with one.
        pub struct Driver {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> u32,)*
            $(pub $opt: Option<unsafe extern "C" fn($($opt_argument),*) -> u32>,)*
            cuGetErrorName: unsafe extern "C" fn(u32, *mut *const c_char) -> u32,
            pub version: i32,
        }

        // The bindings, which are generated from NVIDIA's header, have the same arguments.
        $(const _: unsafe fn($($argument),*) -> sys::CUresult = sys::$name;)*
        $(const _: unsafe fn($($opt_argument),*) -> sys::CUresult = sys::$opt;)*

        impl Driver {
            /// # Safety
            /// The library has to be the driver's, and must never be closed.
            unsafe fn look_up(library: &Library, version: i32) -> Result<Self, &'static str> {
                // SAFETY: the types are those of the bindings, by the assertions above; the library
                // is the driver's and stays open, by the caller's promise.
                unsafe {
                    Ok(Self {
                        $($name: find(library, stringify!($name)).ok_or(stringify!($name))?,)*
                        $($opt: find(library, stringify!($opt)),)*
                        cuGetErrorName: find(library, "cuGetErrorName").ok_or("cuGetErrorName")?,
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
        cuCtxEnablePeerAccess(CUcontext, c_uint);

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
        // Of driver 515 (CUDA 11.7) and later. Its predecessor had to be switched on in the kernel module.
        cuStreamWriteValue64_v2(CUstream, CUdeviceptr, u64, c_uint);
    }
}

// What the signatures above take for granted where C says "long long".
const _: () = assert!(size_of::<c_longlong>() == size_of::<CUdeviceptr>());

/// Calls a function of the table and turns what it returns into a `Result`.
macro_rules! cu {
    ($driver:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let driver: &$crate::cuda::driver::Driver = $driver;
        driver.check(stringify!($function), (driver.$function)($($argument),*))
    }};
}
pub(super) use cu;

impl Driver {
    /// The driver of this system. What fails is tried again by the next caller: a driver may be
    /// installed, and a GPU plugged in, while a process runs.
    pub fn get() -> Result<&'static Self> {
        static DRIVER: OnceCell<Driver> = OnceCell::new();
        DRIVER.get_or_try_init(|| Self::load(LIBRARY))
    }

    pub(super) fn load(name: &str) -> Result<Self> {
        let missing = |function: &'static str| Error::NoFunction {
            library: name.to_owned(),
            function: function.to_owned(),
        };
        // SAFETY: the driver's library may be opened at any time by any thread.
        let library = unsafe { Library::new(name) }
            .map_err(|e| Error::NoDriver { problem: reason(name, &e) })?;
        // SAFETY: the signature is that of the driver's header. It is called before the library could
        // be closed, and may be called before cuInit.
        let version = unsafe {
            let get: unsafe extern "C" fn(*mut c_int) -> u32 =
                find(&library, "cuDriverGetVersion").ok_or(missing("cuDriverGetVersion"))?;
            let mut version = 0;
            if get(&mut version) == SUCCESS { version } else { 0 }
        };
        if version < MIN_VERSION {
            return Err(Error::OldDriver { version });
        }
        // SAFETY: it has the functions of the driver's name; it is forgotten below or, where that is
        // not reached, so is the table.
        let driver = unsafe { Self::look_up(&library, version) }.map_err(missing)?;
        // SAFETY: cuInit may be called at any time, and again.
        unsafe { cu!(&driver, cuInit(0)) }?;
        // The driver has threads and exit handlers of its own: it is never closed.
        std::mem::forget(library);
        Ok(driver)
    }

    pub fn check(&self, function: &'static str, code: u32) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        let mut name = std::ptr::null();
        // SAFETY: the driver writes a pointer to a constant text, or null for a number it doesn't know.
        let known = unsafe { (self.cuGetErrorName)(code, &mut name) } == SUCCESS && !name.is_null();
        let name = match known {
            // SAFETY: as above.
            true => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
            false => "an unknown error".to_owned(),
        };
        Err(Error::Call { function, code, name })
    }

    /// As [`Driver::check`], for the functions that ask whether something is done.
    pub fn check_done(&self, function: &'static str, code: u32) -> Result<bool> {
        match code {
            NOT_READY => Ok(false),
            code => self.check(function, code).map(|()| true),
        }
    }
}

/// What the loader says, and on the file's account in any case.
pub fn reason(name: &str, e: &libloading::Error) -> String {
    use std::error::Error;
    let text = e.source().map_or_else(|| e.to_string(), |source| source.to_string());
    if text.contains(name) { text } else { format!("{name}: {text}") }
}
