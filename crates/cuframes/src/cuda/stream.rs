// SPDX-License-Identifier: LGPL-2.1-or-later
//! Streams, events, and the work enqueued on them.

use std::any::Any;
use std::ffi::c_char;
use std::fmt;

use cudarc::driver::sys::{
    CU_IPC_HANDLE_SIZE, CUDA_MEMCPY2D, CUevent, CUevent_flags, CUipcEventHandle, CUmemorytype,
    CUstream, CUstream_flags,
};

use super::driver::cu_in;
use super::{Context, Error, IpcHandle, RegisteredHost, Result};

const _: () = assert!(CU_IPC_HANDLE_SIZE as usize == size_of::<IpcHandle>());

/// A queue of GPU work, which is executed in order.
///
/// All methods that enqueue work return before it is done, except where they say that they wait.
pub struct Stream {
    handle: CUstream,
    context: Context,
    /// Keeps a foreign stream alive. `None` for a stream that this object created, and destroys.
    foreign: Option<Box<dyn Any + Send + Sync>>,
}

// SAFETY: streams may be used from any thread, and from several at the same time.
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
        if self.foreign.is_none() {
            // SAFETY: created in `new`. The driver finishes the work that is still enqueued.
            let _ = unsafe { cu_in!(&self.context, cuStreamDestroy_v2(self.handle)) };
        }
    }
}

/// Source or destination of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// An address on the device.
    Device(u64),
    /// An address of this process.
    Host(*mut u8),
}

/// A copy of rows from one pitched area to another. All numbers but `height` are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy2d {
    /// First row of the source.
    pub from: Address,
    /// Distance from one row of the source to the next.
    pub from_pitch: usize,
    /// First row of the destination.
    pub to: Address,
    /// Distance from one row of the destination to the next.
    pub to_pitch: usize,
    /// Length of a row.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
}

impl Stream {
    /// Creates a stream that does not synchronize with the context's default stream.
    ///
    /// # Errors
    /// The driver refused the call.
    pub fn new(context: &Context) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the driver writes a stream of the current context.
        unsafe { cu_in!(context, cuStreamCreate(&mut handle, flags)) }?;
        Ok(Self { handle, context: context.clone(), foreign: None })
    }

    /// Returns the context's default stream, which carries all work enqueued without naming a stream.
    pub fn default_of(context: &Context) -> Self {
        let foreign: Option<Box<dyn Any + Send + Sync>> = Some(Box::new(()));
        Self { handle: std::ptr::null_mut(), context: context.clone(), foreign }
    }

    /// Wraps a stream that another library created. `keep` is dropped with the result.
    ///
    /// # Safety
    /// `handle` must be a stream of the context, or null for its default stream, and stay valid until
    /// `keep` is dropped.
    pub unsafe fn from_raw(
        context: &Context,
        handle: CUstream,
        keep: impl Any + Send + Sync + 'static,
    ) -> Self {
        Self { handle, context: context.clone(), foreign: Some(Box::new(keep)) }
    }

    /// Returns the context of the stream.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Returns the driver's handle, for calls to other libraries. It is valid while this stream exists.
    pub fn handle(&self) -> CUstream {
        self.handle
    }

    /// Waits until all enqueued work is done.
    ///
    /// # Errors
    /// Enqueued work failed, or the driver refused the call.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is valid while `self` exists.
        unsafe { cu_in!(&self.context, cuStreamSynchronize(self.handle)) }
    }

    /// Returns whether all enqueued work is done.
    ///
    /// # Errors
    /// Enqueued work failed, or the driver refused the call.
    pub fn is_done(&self) -> Result<bool> {
        self.context.with(|| self.query(self.handle))
    }

    /// Returns whether work enqueued now would start at once. The default stream has to be done as well,
    /// because it and the other streams wait for each other.
    ///
    /// # Errors
    /// Enqueued work failed, or the driver refused the call.
    pub fn is_idle(&self) -> Result<bool> {
        let default = std::ptr::null_mut();
        self.context.with(|| Ok(self.query(self.handle)? && self.query(default)?))
    }

    /// Queries a stream of this stream's context, which must be current.
    fn query(&self, stream: CUstream) -> Result<bool> {
        let driver = self.context.driver();
        // SAFETY: the callers pass `self.handle` or the default stream; both are valid while `self` exists.
        driver.check_done("cuStreamQuery", unsafe { (driver.cuStreamQuery)(stream) })
    }

    /// Makes work enqueued from now on wait for the last recording of the event.
    ///
    /// # Errors
    /// The driver refused the call.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        // SAFETY: both are valid while they are borrowed. The event may be dropped before the wait ends.
        unsafe { cu_in!(&self.context, cuStreamWaitEvent(self.handle, event.handle, 0)) }
    }

    /// Enqueues the write of a number to registered host memory. The number becomes visible after all
    /// work enqueued before is done and visible to every process and device.
    ///
    /// # Errors
    /// The device lacks the operation ([`super::Device::can_write_values`]), `offset` is outside the
    /// memory or not a multiple of 8, or the memory was registered in another context.
    pub fn write_value(&self, to: &RegisteredHost, offset: usize, value: u64) -> Result<()> {
        let driver = self.context.driver();
        let write = driver.cuStreamWriteValue64_v2.ok_or_else(|| Error::Unsupported {
            device: self.context.device().to_string(),
            what: "write numbers in stream order: update the driver to version 515 or later",
        })?;
        // On drop, the memory waits for the streams of its own context only.
        if to.context() != &self.context {
            let problem = "The memory is registered in another context than the stream's".into();
            return Err(Error::InvalidArgument { problem });
        }
        let address = to.word_address(offset)?;
        // SAFETY: 8 bytes at the address are registered and writable until `to` is dropped, which
        // waits for the work of the context.
        self.context.with(|| unsafe {
            driver.check("cuStreamWriteValue64", write(self.handle, address, value, 0))
        })
    }

    /// Enqueues a copy of `len` bytes of device memory.
    ///
    /// # Errors
    /// The driver refused the call.
    ///
    /// # Safety
    /// Both ranges must be device memory that is accessible in the stream's context, and stay so until
    /// the stream has executed the copy.
    pub unsafe fn copy(&self, from: u64, to: u64, len: usize) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { cu_in!(&self.context, cuMemcpyDtoDAsync_v2(to, from, len, self.handle)) }
    }

    /// Enqueues a copy of `len` bytes from the memory of another GPU. Works also where neither GPU can
    /// access the other's memory.
    ///
    /// # Errors
    /// The driver refused the call.
    ///
    /// # Safety
    /// As for [`Stream::copy`], with `from` valid in `from_context`.
    pub unsafe fn copy_from_peer(
        &self,
        from: u64,
        from_context: &Context,
        to: u64,
        len: usize,
    ) -> Result<()> {
        let (own, peer) = (self.context.handle(), from_context.handle());
        // SAFETY: the caller's contract.
        unsafe { cu_in!(&self.context, cuMemcpyPeerAsync(to, own, from, peer, len, self.handle)) }
    }

    /// Enqueues a copy of rows.
    ///
    /// # Errors
    /// A pitch is shorter than the width, or the driver refused the call.
    ///
    /// # Safety
    /// As for [`Stream::copy`]. A host address must be valid for all rows until the stream has executed
    /// the copy.
    pub unsafe fn copy_2d(&self, copy: &Copy2d) -> Result<()> {
        use CUmemorytype::{CU_MEMORYTYPE_DEVICE as DEVICE, CU_MEMORYTYPE_HOST as HOST};
        let side = |address| match address {
            Address::Device(at) => (DEVICE, at, std::ptr::null_mut()),
            Address::Host(at) => (HOST, 0, at.cast()),
        };
        let (from_type, from_device, from_host) = side(copy.from);
        let (to_type, to_device, to_host) = side(copy.to);
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
        // SAFETY: the caller's contract; the driver reads the description before it returns.
        unsafe { cu_in!(&self.context, cuMemcpy2DAsync_v2(&copy, self.handle)) }
    }

    /// Reads device memory into `to`, and waits for it.
    ///
    /// # Errors
    /// Enqueued work failed, or the driver refused the call.
    ///
    /// # Safety
    /// `to.len()` bytes from `from` on must be device memory that is accessible in the stream's context.
    pub unsafe fn read(&self, from: u64, to: &mut [u8]) -> Result<()> {
        let (ptr, len) = (to.as_mut_ptr().cast(), to.len());
        // SAFETY: the caller's contract; `to` is borrowed until `synchronize` returns.
        unsafe { cu_in!(&self.context, cuMemcpyDtoHAsync_v2(ptr, from, len, self.handle)) }?;
        self.synchronize()
    }

    /// Writes `from` to device memory, and waits for it.
    ///
    /// # Errors
    /// Enqueued work failed, or the driver refused the call.
    ///
    /// # Safety
    /// `from.len()` bytes from `to` on must be device memory that is writable in the stream's context.
    pub unsafe fn write(&self, to: u64, from: &[u8]) -> Result<()> {
        let (ptr, len) = (from.as_ptr().cast(), from.len());
        // SAFETY: the caller's contract; `from` is borrowed until `synchronize` returns.
        unsafe { cu_in!(&self.context, cuMemcpyHtoDAsync_v2(to, ptr, len, self.handle)) }?;
        self.synchronize()
    }

    /// Enqueues filling `len` bytes of device memory with a byte.
    ///
    /// # Errors
    /// The driver refused the call.
    ///
    /// # Safety
    /// As for [`Stream::copy`].
    pub unsafe fn fill(&self, to: u64, byte: u8, len: usize) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { cu_in!(&self.context, cuMemsetD8Async(to, byte, len, self.handle)) }
    }
}

/// A mark in a stream, for which other streams, threads and processes can wait.
pub struct Event {
    handle: CUevent,
    context: Context,
}

// SAFETY: events may be used from any thread, and from several at the same time.
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
        // SAFETY: created by this object. The driver frees it after the recorded work is done.
        let _ = unsafe { cu_in!(&self.context, cuEventDestroy_v2(self.handle)) };
    }
}

impl Event {
    fn create(context: &Context, flags: u32) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the driver writes an event of the current context.
        unsafe { cu_in!(context, cuEventCreate(&mut handle, flags)) }?;
        Ok(Self { handle, context: context.clone() })
    }

    /// Makes an event for use inside this process.
    ///
    /// # Errors
    /// The driver refused the call.
    pub fn new(context: &Context) -> Result<Self> {
        Self::create(context, CUevent_flags::CU_EVENT_DISABLE_TIMING as u32)
    }

    /// Makes an event that other processes can open by its [handle](Self::ipc_handle).
    ///
    /// # Errors
    /// The driver refused the call.
    pub fn interprocess(context: &Context) -> Result<Self> {
        use CUevent_flags::{CU_EVENT_DISABLE_TIMING, CU_EVENT_INTERPROCESS};
        Self::create(context, CU_EVENT_DISABLE_TIMING as u32 | CU_EVENT_INTERPROCESS as u32)
    }

    /// Returns a handle that lets another process open an [interprocess](Self::interprocess) event. It is
    /// valid while `self` exists.
    ///
    /// # Errors
    /// The event is not an interprocess event, or the driver on this system does not support CUDA IPC.
    pub fn ipc_handle(&self) -> Result<IpcHandle> {
        let mut handle = CUipcEventHandle { reserved: [0; 64] };
        // SAFETY: the driver writes a handle; the event is valid while `self` exists.
        unsafe { cu_in!(&self.context, cuIpcGetEventHandle(&mut handle, self.handle)) }?;
        Ok(handle.reserved.map(|b| b as u8))
    }

    /// Opens an interprocess event of another process. The handle may come from an untrusted peer: the
    /// driver rejects bytes that are not a handle.
    ///
    /// # Errors
    /// The handle is invalid, or the processes are in different PID or IPC namespaces.
    pub fn open(context: &Context, handle: &IpcHandle) -> Result<Self> {
        let handle = CUipcEventHandle { reserved: handle.map(|b| b as c_char) };
        let mut event = std::ptr::null_mut();
        // SAFETY: the driver writes an event.
        unsafe { cu_in!(context, cuIpcOpenEventHandle(&mut event, handle)) }?;
        Ok(Self { handle: event, context: context.clone() })
    }

    /// Marks the work enqueued on the stream so far. Replaces the previous mark.
    ///
    /// # Errors
    /// The stream and the event are in different contexts, or the driver refused the call.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are valid while they are borrowed.
        unsafe { cu_in!(&stream.context, cuEventRecord(self.handle, stream.handle)) }
    }

    /// Returns whether the marked work is done. True for an event that was never recorded.
    ///
    /// # Errors
    /// Enqueued work failed, or the driver refused the call.
    pub fn is_done(&self) -> Result<bool> {
        let driver = self.context.driver();
        // SAFETY: the event is valid while `self` exists.
        self.context.with(|| unsafe {
            driver.check_done("cuEventQuery", (driver.cuEventQuery)(self.handle))
        })
    }

    /// Waits until the marked work is done.
    ///
    /// # Errors
    /// Enqueued work failed, or the driver refused the call.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the event is valid while `self` exists.
        unsafe { cu_in!(&self.context, cuEventSynchronize(self.handle)) }
    }
}
