// SPDX-License-Identifier: LGPL-2.1-or-later
//! GPUs, and the contexts that a process has on them.

use std::any::Any;
use std::ffi::{c_char, c_int};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute, CUdevice_attribute as A};

use super::driver::{Driver, cu, cu_in};
use super::{Error, Result};

/// Identifies a GPU, or a part of one (MIG), in every process and container of a host.
///
/// Its text has the form that nvidia-smi prints.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// Stands for "no GPU", as for host memory.
    pub const NONE: Self = Self([0; 16]);
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GPU")?;
        for (i, byte) in self.0.iter().enumerate() {
            f.write_str(if matches!(i, 0 | 4 | 6 | 8 | 10) { "-" } else { "" })?;
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A GPU.
///
/// Its text has the name and the number, as errors and messages use it.
#[derive(Clone, Copy)]
pub struct Device {
    pub(super) driver: &'static Driver,
    pub(super) handle: CUdevice,
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        self.handle == other.handle
    }
}

impl Eq for Device {}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.handle)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name().unwrap_or_else(|_| "a GPU".into());
        write!(f, "{name} (cuda-device-id {})", self.handle)
    }
}

impl Device {
    /// Returns all GPUs that this process sees, in the driver's order.
    ///
    /// # Errors
    /// The driver is missing, too old, or can't be initialized.
    pub fn all() -> Result<Vec<Self>> {
        let driver = Driver::get()?;
        let mut count = 0;
        // SAFETY: the driver writes an int.
        unsafe { cu!(driver, cuDeviceGetCount(&mut count)) }?;
        (0..count)
            .map(|ordinal| {
                let mut handle = 0;
                // SAFETY: the driver writes a device.
                unsafe { cu!(driver, cuDeviceGet(&mut handle, ordinal)) }?;
                Ok(Self { driver, handle })
            })
            .collect()
    }

    fn find(wanted: impl fmt::Display, matches: impl Fn(&Self) -> bool) -> Result<Self> {
        let all = Self::all()?;
        all.iter().copied().find(matches).ok_or_else(|| Error::NoDevice {
            wanted: wanted.to_string(),
            present: all
                .iter()
                .map(|d| format!("{d}, {}", d.uuid().unwrap_or(Uuid::NONE)))
                .collect(),
        })
    }

    /// Returns the GPU with this number in the driver's order. GStreamer calls the number
    /// `cuda-device-id`.
    ///
    /// # Errors
    /// As for [`Device::all`], or [`Error::NoDevice`].
    pub fn by_ordinal(ordinal: u32) -> Result<Self> {
        let wanted = format!("GPU with cuda-device-id {ordinal}");
        Self::find(wanted, |d| u32::try_from(d.handle) == Ok(ordinal))
    }

    /// Returns the GPU with this UUID. Another process may know the same GPU by another number.
    ///
    /// # Errors
    /// As for [`Device::all`], or [`Error::NoDevice`].
    pub fn by_uuid(uuid: Uuid) -> Result<Self> {
        Self::find(uuid, |d| d.uuid() == Ok(uuid))
    }

    /// Returns the GPU's number in this process. GStreamer calls it `cuda-device-id`.
    pub fn ordinal(&self) -> i32 {
        self.handle
    }

    /// Returns the GPU's UUID.
    ///
    /// # Errors
    /// The driver refused the call.
    pub fn uuid(&self) -> Result<Uuid> {
        let mut uuid = cudarc::driver::sys::CUuuid { bytes: [0; 16] };
        // SAFETY: the driver writes 16 bytes.
        unsafe { cu!(self.driver, cuDeviceGetUuid_v2(&mut uuid, self.handle)) }?;
        Ok(Uuid(uuid.bytes.map(|b| b as u8)))
    }

    /// Returns the GPU's product name.
    ///
    /// # Errors
    /// The driver refused the call.
    pub fn name(&self) -> Result<String> {
        let mut name = [0; 256];
        let len = name.len() as c_int;
        let text: *mut c_char = name.as_mut_ptr();
        // SAFETY: the driver writes at most `len` bytes.
        unsafe { cu!(self.driver, cuDeviceGetName(text, len, self.handle)) }?;
        let bytes: Vec<u8> = name.iter().map(|b| *b as u8).take_while(|b| *b != 0).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Returns the CUDA version of the driver: 12040 is CUDA 12.4.
    pub fn driver_version(&self) -> i32 {
        self.driver.version
    }

    /// Returns whether the GPU has the property. An attribute that the driver does not know counts as
    /// absent.
    fn has(&self, attribute: CUdevice_attribute) -> bool {
        let mut value = 0;
        // SAFETY: the driver writes an int.
        let queried =
            unsafe { cu!(self.driver, cuDeviceGetAttribute(&mut value, attribute, self.handle)) };
        queried.is_ok() && value != 0
    }

    /// Returns whether memory can be exported as a POSIX file descriptor. WSL and some vGPUs lack this.
    pub fn can_export_fds(&self) -> bool {
        self.has(A::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED)
            && self.has(A::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED)
    }

    /// Returns whether a stream can write a 64-bit number to memory ([`super::Stream::write_value`]).
    pub fn can_write_values(&self) -> bool {
        self.driver.cuStreamWriteValue64_v2.is_some()
            && self.has(A::CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS)
    }

    /// Returns whether host memory that is mapped read-only can be registered
    /// ([`super::HostAccess::ReadOnly`]).
    pub fn can_register_read_only(&self) -> bool {
        self.has(A::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED)
    }

    /// Returns whether this GPU can read the other's memory over NVLink or PCIe. A GPU can always read
    /// its own.
    pub fn can_access(&self, peer: &Self) -> bool {
        let mut can = 0;
        // SAFETY: the driver writes an int.
        let queried =
            unsafe { cu!(self.driver, cuDeviceCanAccessPeer(&mut can, self.handle, peer.handle)) };
        self == peer || (queried.is_ok() && can != 0)
    }
}

struct Inner {
    device: Device,
    handle: CUcontext,
    /// Keeps a foreign context alive. `None` for the primary context, which `drop` releases.
    foreign: Option<Box<dyn Any + Send + Sync>>,
}

// SAFETY: a context may be current on any thread, and on several at the same time.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.foreign.is_none() {
            // SAFETY: retained once in `primary`. Objects created in the context hold a `Context`, so none
            // is left.
            let _ =
                unsafe { (self.device.driver.cuDevicePrimaryCtxRelease_v2)(self.device.handle) };
        }
    }
}

/// A CUDA context: the state that a process has on a GPU.
///
/// Clones refer to the same context. Streams, events and memory created in it keep it alive. Two values
/// are equal if they refer to the same context of the driver.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({:?} of {:?})", self.0.handle, self.0.device)
    }
}

impl PartialEq for Context {
    fn eq(&self, other: &Self) -> bool {
        self.0.handle == other.0.handle
    }
}

impl Eq for Context {}

/// Pops the current context of this thread on drop.
struct Entered<'a> {
    driver: &'static Driver,
    /// The raw pointer makes this `!Send`: it must be dropped on the thread that pushed the context.
    _thread: PhantomData<(&'a Context, *const ())>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: the driver writes the context that was pushed on this thread for this guard.
        let _ = unsafe { (self.driver.cuCtxPopCurrent_v2)(&mut popped) };
    }
}

impl Context {
    /// Returns the device's primary context, which the process shares with the CUDA runtime (PyTorch,
    /// CuPy and others).
    ///
    /// # Errors
    /// The driver can't create the context, for example because the GPU's memory is exhausted.
    pub fn primary(device: &Device) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the driver writes a context.
        unsafe { cu!(device.driver, cuDevicePrimaryCtxRetain(&mut handle, device.handle)) }?;
        Ok(Self(Arc::new(Inner { device: *device, handle, foreign: None })))
    }

    /// Wraps a context that another library created. `keep` is dropped with the last clone.
    ///
    /// # Errors
    /// The driver can't be used, or refuses the context.
    ///
    /// # Safety
    /// `handle` must be a valid context, and stay valid until `keep` is dropped.
    pub unsafe fn from_raw(
        handle: CUcontext,
        keep: impl Any + Send + Sync + 'static,
    ) -> Result<Self> {
        let driver = Driver::get()?;
        let device = {
            // SAFETY: the handle is valid, by the caller's contract. The guard pops it again.
            unsafe { cu!(driver, cuCtxPushCurrent_v2(handle)) }?;
            let _entered = Entered { driver, _thread: PhantomData };
            let mut device = 0;
            // SAFETY: the driver writes the device of the current context.
            unsafe { cu!(driver, cuCtxGetDevice(&mut device)) }?;
            Device { driver, handle: device }
        };
        Ok(Self(Arc::new(Inner { device, handle, foreign: Some(Box::new(keep)) })))
    }

    /// Returns the GPU of the context.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Returns the driver's handle, for calls to other libraries. It is valid while a clone of this
    /// context exists.
    pub fn handle(&self) -> CUcontext {
        self.0.handle
    }

    pub(super) fn driver(&self) -> &'static Driver {
        self.0.device.driver
    }

    /// Runs `f` with this context current on the calling thread, and restores the previous one.
    ///
    /// # Errors
    /// The driver refused to make the context current, or `f` returned an error.
    pub fn with<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let driver = self.driver();
        // SAFETY: the context is valid while `self` exists. The guard pops it on this thread after `f`,
        // whose own pushes are popped by then.
        unsafe { cu!(driver, cuCtxPushCurrent_v2(self.0.handle)) }?;
        let _entered = Entered { driver, _thread: PhantomData };
        f()
    }

    /// Waits until all work enqueued in the context is done.
    ///
    /// # Errors
    /// Enqueued work failed, or the driver refused the call.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: acts on the context that `with` made current.
        unsafe { cu_in!(self, cuCtxSynchronize()) }
    }
}
