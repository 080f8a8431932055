//! Devices and contexts.

use std::any::Any;
use std::ffi::{c_char, c_int};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute, CUdevice_attribute as A};

use super::driver::{Driver, cu};
use super::{Error, Result};

/// What identifies a GPU, or a part of one (MIG), in every process and container of a host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// No GPU.
    pub const NONE: Self = Self([0; 16]);
}

/// As nvidia-smi writes it.
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

/// With its name and number, as errors and messages call it.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name().unwrap_or_else(|_| "a GPU".into());
        write!(f, "{name} (cuda-device-id {})", self.handle)
    }
}

impl Device {
    /// All that are visible to this process, in the driver's order.
    ///
    /// Errors: no driver, an old one, or one that can't be initialised.
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

    fn find(wanted: impl fmt::Display, is_it: impl Fn(&Self) -> bool) -> Result<Self> {
        let all = Self::all()?;
        all.iter().copied().find(is_it).ok_or_else(|| Error::NoDevice {
            wanted: wanted.to_string(),
            present: all
                .iter()
                .map(|d| format!("{d}, {}", d.uuid().unwrap_or(Uuid::NONE)))
                .collect(),
        })
    }

    /// The GPU of a number: what GStreamer calls `cuda-device-id`.
    pub fn by_ordinal(ordinal: u32) -> Result<Self> {
        let wanted = format!("GPU with cuda-device-id {ordinal}");
        Self::find(wanted, |d| u32::try_from(d.handle) == Ok(ordinal))
    }

    /// The GPU that another process may know under another number.
    pub fn by_uuid(uuid: Uuid) -> Result<Self> {
        Self::find(uuid, |d| d.uuid() == Ok(uuid))
    }

    /// What GStreamer calls `cuda-device-id`.
    pub fn ordinal(&self) -> i32 {
        self.handle
    }

    pub fn uuid(&self) -> Result<Uuid> {
        let mut uuid = cudarc::driver::sys::CUuuid { bytes: [0; 16] };
        // SAFETY: the driver writes 16 bytes.
        unsafe { cu!(self.driver, cuDeviceGetUuid_v2(&mut uuid, self.handle)) }?;
        Ok(Uuid(uuid.bytes.map(|b| b as u8)))
    }

    pub fn name(&self) -> Result<String> {
        let mut name = [0; 256];
        let len = name.len() as c_int;
        let text: *mut c_char = name.as_mut_ptr();
        // SAFETY: the driver writes at most `len` bytes.
        unsafe { cu!(self.driver, cuDeviceGetName(text, len, self.handle)) }?;
        let bytes: Vec<u8> = name.iter().map(|b| *b as u8).take_while(|b| *b != 0).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What the driver says about itself: 12040 is CUDA 12.4.
    pub fn driver_version(&self) -> i32 {
        self.driver.version
    }

    /// Whether it has the property. One that the driver has never heard of, it does not have.
    fn has(&self, attribute: CUdevice_attribute) -> bool {
        let mut value = 0;
        // SAFETY: the driver writes an int.
        let asked =
            unsafe { cu!(self.driver, cuDeviceGetAttribute(&mut value, attribute, self.handle)) };
        asked.is_ok() && value != 0
    }

    /// Memory can be exported as a POSIX file descriptor. Not so under WSL, and on some vGPUs.
    pub fn can_export_fds(&self) -> bool {
        self.has(A::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED)
            && self.has(A::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED)
    }

    /// A stream can write a 64-bit number to memory: [`super::Stream::write_value`].
    pub fn can_write_values(&self) -> bool {
        self.driver.cuStreamWriteValue64_v2.is_some()
            && self.has(A::CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS)
    }

    /// Host memory can be registered while it is mapped read-only.
    pub fn can_register_read_only(&self) -> bool {
        self.has(A::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED)
    }

    /// It can read the other's memory over NVLink or PCIe.
    pub fn can_access(&self, peer: &Self) -> bool {
        let mut can = 0;
        // SAFETY: the driver writes an int.
        let asked =
            unsafe { cu!(self.driver, cuDeviceCanAccessPeer(&mut can, self.handle, peer.handle)) };
        self == peer || (asked.is_ok() && can != 0)
    }
}

enum Owner {
    Primary,
    /// Keeps the context alive that somebody else made.
    Other {
        _keep: Box<dyn Any + Send + Sync>,
    },
}

struct Inner {
    device: Device,
    handle: CUcontext,
    owner: Owner,
}

// SAFETY: a context may be made current on any thread, and on several at a time.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Owner::Primary = self.owner {
            // SAFETY: retained once in `primary`. What was made in the context holds a `Context`.
            let _ =
                unsafe { (self.device.driver.cuDevicePrimaryCtxRelease_v2)(self.device.handle) };
        }
    }
}

/// A context of the driver. Everything that is made in it keeps it alive.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({:?} of {:?})", self.0.handle, self.0.device)
    }
}

/// The same context of the driver.
impl PartialEq for Context {
    fn eq(&self, other: &Self) -> bool {
        self.0.handle == other.0.handle
    }
}

impl Eq for Context {}

/// A context is current on this thread while this lives.
struct Entered<'a> {
    driver: &'static Driver,
    /// Bound to the thread that it was pushed on.
    _thread: PhantomData<(&'a Context, *const ())>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: the driver writes the context that this guard has pushed on this thread.
        let _ = unsafe { (self.driver.cuCtxPopCurrent_v2)(&mut popped) };
    }
}

impl Context {
    /// The context that the process shares with the CUDA runtime (PyTorch, CuPy and others).
    pub fn primary(device: &Device) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the driver writes a context.
        unsafe { cu!(device.driver, cuDevicePrimaryCtxRetain(&mut handle, device.handle)) }?;
        Ok(Self(Arc::new(Inner { device: *device, handle, owner: Owner::Primary })))
    }

    /// A context that somebody else made.
    ///
    /// # Safety
    /// `handle` has to be a valid context, and to stay one until `keep` is dropped.
    pub unsafe fn from_raw(
        handle: CUcontext,
        keep: impl Any + Send + Sync + 'static,
    ) -> Result<Self> {
        let driver = Driver::get()?;
        let device = Device { driver, handle: 0 };
        let context = |device| {
            Self(Arc::new(Inner { device, handle, owner: Owner::Other { _keep: Box::new(keep) } }))
        };
        let mut current = 0;
        {
            // SAFETY: the handle is valid, by the caller's promise; the guard pops what is pushed.
            unsafe { cu!(driver, cuCtxPushCurrent_v2(handle)) }?;
            let _entered = Entered { driver, _thread: PhantomData };
            // SAFETY: the driver writes the device of the context that is current.
            unsafe { cu!(driver, cuCtxGetDevice(&mut current)) }?;
        }
        Ok(context(Device { handle: current, ..device }))
    }

    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// For functions of other libraries. Valid while this context lives.
    pub fn handle(&self) -> CUcontext {
        self.0.handle
    }

    pub(super) fn driver(&self) -> &'static Driver {
        self.0.device.driver
    }

    /// Runs `f` while the context is current on this thread.
    pub fn with<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let driver = self.driver();
        // SAFETY: the context is valid while `self` lives; the guard pops it on this thread, after
        // whatever `f` pushes, since that is popped when `f` ends.
        unsafe { cu!(driver, cuCtxPushCurrent_v2(self.0.handle)) }?;
        let _entered = Entered { driver, _thread: PhantomData };
        f()
    }

    /// Waits until all work that was enqueued in the context is done.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: it acts on the context that `with` made current.
        self.with(|| unsafe { cu!(self.driver(), cuCtxSynchronize()) })
    }

    /// Lets work in this context use memory that was allocated in the other (not VMM memory, whose
    /// access is part of its mapping).
    pub fn enable_peer_access(&self, peer: &Self) -> Result<()> {
        const ALREADY_ENABLED: u32 = 704;
        if self.device() == peer.device() {
            return Ok(());
        }
        // SAFETY: both contexts are valid.
        let enabled =
            self.with(|| unsafe { cu!(self.driver(), cuCtxEnablePeerAccess(peer.handle(), 0)) });
        match enabled {
            Err(e) if e.code() == Some(ALREADY_ENABLED) => Ok(()),
            other => other,
        }
    }
}
