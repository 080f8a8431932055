//! Streams, events, and the work that is enqueued on them.

use std::any::Any;
use std::fmt;

use cudarc::driver::sys::{
    CU_IPC_HANDLE_SIZE, CUDA_MEMCPY2D, CUevent, CUevent_flags, CUipcEventHandle, CUmemorytype,
    CUstream, CUstream_flags,
};

use super::driver::cu;
use super::{Context, Error, IpcHandle, RegisteredHost, Result};

const _: () = assert!(CU_IPC_HANDLE_SIZE as usize == size_of::<IpcHandle>());

enum Owner {
    /// This object made it.
    Own,
    /// Keeps the stream alive that somebody else made.
    Other { _keep: Box<dyn Any + Send + Sync> },
}

/// A queue of work for the GPU, which is done in order.
pub struct Stream {
    handle: CUstream,
    context: Context,
    owner: Owner,
}

// SAFETY: streams may be used from any thread, and from several at a time.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({:?} in {:?})", self.handle, self.context)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Owner::Own = self.owner {
            let driver = self.context.driver();
            // SAFETY: made in `new`. The driver finishes the work that is still enqueued.
            let _ = self.context.with(|| unsafe { cu!(driver, cuStreamDestroy_v2(self.handle)) });
        }
    }
}

/// An end of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    Device(u64),
    Host(*mut u8),
}

/// A copy of rows, which lie apart by more than they are long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy2d {
    pub from: Address,
    /// Bytes from one row to the next.
    pub from_pitch: usize,
    pub to: Address,
    pub to_pitch: usize,
    /// Bytes of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Stream {
    /// A stream that waits for no other.
    pub fn new(context: &Context) -> Result<Self> {
        let driver = context.driver();
        let mut handle = std::ptr::null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the driver writes a stream of the context that is current.
        context.with(|| unsafe { cu!(driver, cuStreamCreate(&mut handle, flags)) })?;
        Ok(Self { handle, context: context.clone(), owner: Owner::Own })
    }

    /// The context's default stream, where everything goes that names no stream.
    pub fn default_of(context: &Context) -> Self {
        let owner = Owner::Other { _keep: Box::new(()) };
        Self { handle: std::ptr::null_mut(), context: context.clone(), owner }
    }

    /// A stream that somebody else made.
    ///
    /// # Safety
    /// `handle` has to be a stream of the context, or null for its default stream, and to stay valid
    /// until `keep` is dropped.
    pub unsafe fn from_raw(
        context: &Context,
        handle: CUstream,
        keep: impl Any + Send + Sync + 'static,
    ) -> Self {
        Self { handle, context: context.clone(), owner: Owner::Other { _keep: Box::new(keep) } }
    }

    pub fn context(&self) -> &Context {
        &self.context
    }

    /// For functions of other libraries. Valid while this stream lives.
    pub fn handle(&self) -> CUstream {
        self.handle
    }

    /// Waits until all that was enqueued is done.
    pub fn synchronize(&self) -> Result<()> {
        let driver = self.context.driver();
        // SAFETY: the stream is valid while `self` lives.
        self.context.with(|| unsafe { cu!(driver, cuStreamSynchronize(self.handle)) })
    }

    /// Whether all that was enqueued is done.
    pub fn is_done(&self) -> Result<bool> {
        self.context.with(|| self.query(self.handle))
    }

    /// Whether what would be enqueued now would have nothing to wait for: neither on this stream nor on the default
    /// one, which waits for others, as others do for it.
    pub fn is_idle(&self) -> Result<bool> {
        let default = std::ptr::null_mut();
        self.context.with(|| Ok(self.query(self.handle)? && self.query(default)?))
    }

    /// In the context that is current, which is this stream's.
    fn query(&self, stream: CUstream) -> Result<bool> {
        let driver = self.context.driver();
        // SAFETY: both streams that this is asked about are valid while `self` lives.
        driver.check_done("cuStreamQuery", unsafe { (driver.cuStreamQuery)(stream) })
    }

    /// What is enqueued from now on comes after the event's last recording.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        let driver = self.context.driver();
        // SAFETY: both are valid while they are borrowed; the driver takes what it needs of the event.
        self.context
            .with(|| unsafe { cu!(driver, cuStreamWaitEvent(self.handle, event.handle, 0)) })
    }

    /// Writes a number to registered host memory once all that was enqueued before is done and
    /// visible to everybody.
    ///
    /// Errors: the device has no such operation ([`super::Device::can_write_values`]), `offset` is
    /// outside the memory or not a multiple of 8, or the memory was registered in another context.
    pub fn write_value(&self, to: &RegisteredHost, offset: usize, value: u64) -> Result<()> {
        let driver = self.context.driver();
        let write = driver.cuStreamWriteValue64_v2.ok_or_else(|| Error::Unsupported {
            device: self.context.device().to_string(),
            what: "write numbers in stream order: update the driver to version 515 or later",
        })?;
        // Only so does the memory wait for this stream before it is unregistered.
        if to.context() != &self.context {
            let problem = "The memory is registered in another context than the stream's".into();
            return Err(Error::Value { problem });
        }
        let address = to.writable(offset)?;
        // SAFETY: 8 bytes at the address are registered and writable until `to` is dropped, which
        // waits for the work of the context.
        self.context.with(|| unsafe {
            driver.check("cuStreamWriteValue64", write(self.handle, address, value, 0))
        })
    }

    /// Copies bytes of device memory.
    ///
    /// # Safety
    /// Both ranges have to be device memory that is accessible in the stream's context, and to stay so
    /// until the stream is past the copy.
    pub unsafe fn copy(&self, from: u64, to: u64, len: usize) -> Result<()> {
        let driver = self.context.driver();
        // SAFETY: the caller's promise.
        self.context
            .with(|| unsafe { cu!(driver, cuMemcpyDtoDAsync_v2(to, from, len, self.handle)) })
    }

    /// Copies bytes of device memory from another GPU, also where neither can access the other.
    ///
    /// # Safety
    /// As for [`Stream::copy`], with `from` in the context `from_context`.
    pub unsafe fn copy_from_peer(
        &self,
        (from, from_context): (u64, &Context),
        to: u64,
        len: usize,
    ) -> Result<()> {
        let driver = self.context.driver();
        let (own, peer) = (self.context.handle(), from_context.handle());
        // SAFETY: the caller's promise.
        self.context.with(|| unsafe {
            cu!(driver, cuMemcpyPeerAsync(to, own, from, peer, len, self.handle))
        })
    }

    /// Copies rows.
    ///
    /// # Safety
    /// As for [`Stream::copy`]; an end in host memory has to be valid for the process.
    pub unsafe fn copy_2d(&self, copy: &Copy2d) -> Result<()> {
        use CUmemorytype::{CU_MEMORYTYPE_DEVICE as DEVICE, CU_MEMORYTYPE_HOST as HOST};
        let end = |address| match address {
            Address::Device(at) => (DEVICE, at, std::ptr::null_mut()),
            Address::Host(at) => (HOST, 0, at.cast()),
        };
        let ((from_type, from_device, from_host), (to_type, to_device, to_host)) =
            (end(copy.from), end(copy.to));
        let copy = CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: from_type,
            srcHost: from_host,
            srcDevice: from_device,
            srcArray: std::ptr::null_mut(),
            srcPitch: copy.from_pitch,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: to_type,
            dstHost: to_host,
            dstDevice: to_device,
            dstArray: std::ptr::null_mut(),
            dstPitch: copy.to_pitch,
            WidthInBytes: copy.width,
            Height: copy.height,
        };
        let driver = self.context.driver();
        // SAFETY: the caller's promise; the driver reads the description before it returns.
        self.context.with(|| unsafe { cu!(driver, cuMemcpy2DAsync_v2(&copy, self.handle)) })
    }

    /// Reads device memory, and waits for it.
    ///
    /// # Safety
    /// `from` has to be as many bytes of device memory, accessible in the stream's context.
    pub unsafe fn read(&self, from: u64, to: &mut [u8]) -> Result<()> {
        let driver = self.context.driver();
        let (ptr, len) = (to.as_mut_ptr().cast(), to.len());
        // SAFETY: `to` is borrowed until the copy is done, since the stream is waited for below.
        self.context
            .with(|| unsafe { cu!(driver, cuMemcpyDtoHAsync_v2(ptr, from, len, self.handle)) })?;
        self.synchronize()
    }

    /// Writes device memory, and waits for it.
    ///
    /// # Safety
    /// `to` has to be as many bytes of device memory, writable in the stream's context.
    pub unsafe fn write(&self, to: u64, from: &[u8]) -> Result<()> {
        let driver = self.context.driver();
        let (ptr, len) = (from.as_ptr().cast(), from.len());
        // SAFETY: `from` is borrowed until the copy is done, since the stream is waited for below.
        self.context
            .with(|| unsafe { cu!(driver, cuMemcpyHtoDAsync_v2(to, ptr, len, self.handle)) })?;
        self.synchronize()
    }

    /// Fills device memory with a byte.
    ///
    /// # Safety
    /// As for [`Stream::copy`].
    pub unsafe fn fill(&self, to: u64, byte: u8, len: usize) -> Result<()> {
        let driver = self.context.driver();
        // SAFETY: the caller's promise.
        self.context.with(|| unsafe { cu!(driver, cuMemsetD8Async(to, byte, len, self.handle)) })
    }
}

/// A mark in a stream, to be waited for elsewhere.
pub struct Event {
    handle: CUevent,
    context: Context,
}

// SAFETY: events may be used from any thread, and from several at a time.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({:?} in {:?})", self.handle, self.context)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let driver = self.context.driver();
        // SAFETY: made by this object. The driver frees it when what was recorded is done.
        let _ = self.context.with(|| unsafe { cu!(driver, cuEventDestroy_v2(self.handle)) });
    }
}

impl Event {
    fn create(context: &Context, flags: u32) -> Result<Self> {
        let driver = context.driver();
        let mut handle = std::ptr::null_mut();
        // SAFETY: the driver writes an event of the context that is current.
        context.with(|| unsafe { cu!(driver, cuEventCreate(&mut handle, flags)) })?;
        Ok(Self { handle, context: context.clone() })
    }

    /// An event of this process.
    pub fn new(context: &Context) -> Result<Self> {
        Self::create(context, CUevent_flags::CU_EVENT_DISABLE_TIMING as u32)
    }

    /// An event that other processes can open.
    pub fn interprocess(context: &Context) -> Result<Self> {
        use CUevent_flags::{CU_EVENT_DISABLE_TIMING, CU_EVENT_INTERPROCESS};
        Self::create(context, CU_EVENT_DISABLE_TIMING as u32 | CU_EVENT_INTERPROCESS as u32)
    }

    /// What another process opens an interprocess event by.
    pub fn ipc_handle(&self) -> Result<IpcHandle> {
        let driver = self.context.driver();
        let mut handle = CUipcEventHandle { reserved: [0; 64] };
        // SAFETY: the driver writes a handle; the event is valid while `self` lives.
        self.context
            .with(|| unsafe { cu!(driver, cuIpcGetEventHandle(&mut handle, self.handle)) })?;
        Ok(handle.reserved.map(|b| b as u8))
    }

    /// Opens an interprocess event of another process. The bytes need not be trusted: the driver
    /// refuses those that are no handle.
    pub fn open(context: &Context, handle: &IpcHandle) -> Result<Self> {
        let driver = context.driver();
        let handle = CUipcEventHandle { reserved: handle.map(|b| b as std::ffi::c_char) };
        let mut event = std::ptr::null_mut();
        // SAFETY: the driver writes an event.
        context.with(|| unsafe { cu!(driver, cuIpcOpenEventHandle(&mut event, handle)) })?;
        Ok(Self { handle: event, context: context.clone() })
    }

    /// Marks what is enqueued on the stream by now.
    ///
    /// Errors: also where the stream is of another context than the event.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        let driver = self.context.driver();
        // SAFETY: both are valid while they are borrowed.
        stream.context.with(|| unsafe { cu!(driver, cuEventRecord(self.handle, stream.handle)) })
    }

    /// Whether what was marked is done.
    pub fn is_done(&self) -> Result<bool> {
        let driver = self.context.driver();
        // SAFETY: the event is valid while `self` lives.
        self.context.with(|| unsafe {
            driver.check_done("cuEventQuery", (driver.cuEventQuery)(self.handle))
        })
    }

    /// Waits until what was marked is done.
    pub fn synchronize(&self) -> Result<()> {
        let driver = self.context.driver();
        // SAFETY: the event is valid while `self` lives.
        self.context.with(|| unsafe { cu!(driver, cuEventSynchronize(self.handle)) })
    }
}
