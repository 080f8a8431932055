// SPDX-License-Identifier: LGPL-2.1-or-later
//! CUDA streams of GStreamer.

use std::fmt;

use cuframes::cuda::{CUstream, Context, Stream};

use super::context::CudaContext;
use super::error::{Result, failed};
use super::library::{GstCuda, RawStream};

/// A GstCudaStream. Two values are equal if they refer to the same stream of the driver.
pub(crate) struct CudaStream {
    lib: &'static GstCuda,
    raw: *mut RawStream,
}

// SAFETY: the reference count is atomic, and nothing else of the stream changes.
unsafe impl Send for CudaStream {}
// SAFETY: as above.
unsafe impl Sync for CudaStream {}

impl fmt::Debug for CudaStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaStream({:?})", self.raw)
    }
}

impl Clone for CudaStream {
    fn clone(&self) -> Self {
        // SAFETY: valid while `self` exists; returns a new reference.
        Self { lib: self.lib, raw: unsafe { (self.lib.gst_cuda_stream_ref)(self.raw) } }
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        // SAFETY: drops the reference that this object owns.
        unsafe { (self.lib.gst_cuda_stream_unref)(self.raw) };
    }
}

impl PartialEq for CudaStream {
    fn eq(&self, other: &Self) -> bool {
        self.handle() == other.handle()
    }
}

impl Eq for CudaStream {}

impl CudaStream {
    /// Creates a stream. Unlike [`Stream::new`], it synchronizes with the context's default stream.
    pub(crate) fn new(context: &CudaContext) -> Result<Self> {
        let lib = context.lib;
        // SAFETY: the context is valid; the result is null or a new reference.
        let raw = unsafe { (lib.gst_cuda_stream_new)(context.raw()) };
        if raw.is_null() {
            return failed("gst_cuda_stream_new");
        }
        Ok(Self { lib, raw })
    }

    /// Takes over a reference to a stream.
    ///
    /// # Safety
    /// `raw` must be a reference to a GstCudaStream that the caller owns and gives up.
    pub(super) unsafe fn from_full(lib: &'static GstCuda, raw: *mut RawStream) -> Self {
        Self { lib, raw }
    }

    /// Takes a new reference to a stream.
    ///
    /// # Safety
    /// `raw` must be a GstCudaStream that is valid during the call.
    pub(super) unsafe fn from_none(lib: &'static GstCuda, raw: *mut RawStream) -> Self {
        // SAFETY: valid by the caller's contract.
        Self { lib, raw: unsafe { (lib.gst_cuda_stream_ref)(raw) } }
    }

    pub(super) fn raw(&self) -> *mut RawStream {
        self.raw
    }

    /// Returns the driver's handle. It is valid while this stream exists.
    pub(crate) fn handle(&self) -> CUstream {
        // SAFETY: valid while `self` exists.
        unsafe { (self.lib.gst_cuda_stream_get_handle)(self.raw) }
    }

    /// Returns the driver's stream. `context` must be the [driver's context](CudaContext::driver_context)
    /// of the GstCudaContext in which the stream was created.
    pub(crate) fn driver_stream(&self, context: &Context) -> Stream {
        // SAFETY: the driver's stream is valid while the GstCudaStream exists, and the result holds a
        // reference to that.
        unsafe { Stream::from_raw(context, self.handle(), self.clone()) }
    }
}
