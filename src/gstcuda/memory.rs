// SPDX-License-Identifier: LGPL-2.1-or-later
//! GstCudaMemory: allocation, properties and device addresses.

use std::fmt;
use std::marker::PhantomData;

use gst::ffi::{GstMapFlags, GstMapInfo};
use gst::glib::ffi::GFALSE;
use gst::glib::translate::*;

use super::context::CudaContext;
use super::error::{Error, Result, failed};
use super::library::GstCuda;
use super::stream::CudaStream;

/// `GST_MAP_CUDA`: maps a GstCudaMemory for the device.
const MAP_CUDA: GstMapFlags = gst::ffi::GST_MAP_FLAG_LAST << 1;

/// `GST_CUDA_MEMORY_TRANSFER_NEED_DOWNLOAD`: the device has the current content, the CPU's copy is old.
pub(super) const NEED_DOWNLOAD: u32 = gst::ffi::GST_MEMORY_FLAG_LAST;
/// `GST_CUDA_MEMORY_TRANSFER_NEED_UPLOAD`: the CPU's copy has the current content.
pub(super) const NEED_UPLOAD: u32 = gst::ffi::GST_MEMORY_FLAG_LAST << 1;
/// `GST_CUDA_MEMORY_TRANSFER_NEED_SYNC`: work on another stream must wait for the memory's stream.
pub(super) const NEED_SYNC: u32 = gst::ffi::GST_MEMORY_FLAG_LAST << 2;

/// Allocates device memory for a frame, in the layout that GStreamer chooses. `None` is the default
/// stream.
pub(crate) fn allocate(
    context: &CudaContext,
    stream: Option<&CudaStream>,
    info: &gst_video::VideoInfo,
) -> Result<gst::Memory> {
    let lib = context.lib;
    let stream = stream.map_or(std::ptr::null_mut(), CudaStream::raw);
    // SAFETY: all objects are valid, and the library takes references of its own; `info` is copied. A
    // null allocator is the default one. The result is null or a new reference.
    unsafe {
        let allocator = std::ptr::null_mut();
        let memory =
            (lib.gst_cuda_allocator_alloc)(allocator, context.raw(), stream, info.to_glib_none().0);
        if memory.is_null() {
            return failed("gst_cuda_allocator_alloc");
        }
        Ok(from_glib_full(memory))
    }
}

/// Returns the context of device memory; `None` for other memory.
pub(crate) fn memory_context(memory: &gst::MemoryRef) -> Option<CudaContext> {
    let lib = GstCuda::get().ok()?;
    let raw = lib.downcast(memory)?;
    // SAFETY: a GstCudaMemory; its public fields never change.
    Some(unsafe { CudaContext::from_none(lib, (*raw).context) })
}

/// Returns the layout of the planes in device memory, padding included; `None` for other memory.
pub(crate) fn memory_info(memory: &gst::MemoryRef) -> Option<gst_video::VideoInfo> {
    let raw = GstCuda::get().ok()?.downcast(memory)?;
    // SAFETY: a GstCudaMemory; its public fields never change. The info is copied.
    Some(unsafe { from_glib_none(&raw const (*raw).info) })
}

/// Returns the stream on which the work with device memory is enqueued; `None` is the default stream.
pub(crate) fn memory_stream(memory: &gst::MemoryRef) -> Option<CudaStream> {
    let lib = GstCuda::get().ok()?;
    let raw = lib.downcast(memory)?;
    // SAFETY: a GstCudaMemory, which keeps its stream valid.
    unsafe {
        let stream = (lib.gst_cuda_memory_get_stream)(raw);
        (!stream.is_null()).then(|| CudaStream::from_none(lib, stream))
    }
}

/// Waits until the work that writes device memory is done.
pub(crate) fn sync(memory: &gst::MemoryRef) {
    if let Ok(lib) = GstCuda::get()
        && let Some(raw) = lib.downcast(memory)
    {
        // SAFETY: a GstCudaMemory.
        unsafe { (lib.gst_cuda_memory_sync)(raw) };
    }
}

/// Device memory mapped for reading by the device; unmapped on drop.
pub(crate) struct DeviceMap<'a> {
    info: GstMapInfo,
    _memory: PhantomData<&'a gst::MemoryRef>,
}

impl fmt::Debug for DeviceMap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceMap({:#x}, {})", self.address(), self.len())
    }
}

impl Drop for DeviceMap<'_> {
    fn drop(&mut self) {
        // SAFETY: mapped by `map_device`; the memory is borrowed until here.
        unsafe { gst::ffi::gst_memory_unmap(self.info.memory, &mut self.info) };
    }
}

impl DeviceMap<'_> {
    /// Returns the address on the device. It stays the memory's address after the unmap.
    pub(crate) fn address(&self) -> u64 {
        self.info.data as u64
    }

    /// Returns the length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.info.size
    }
}

/// Maps device memory for reading by the device. If the CPU has changed the content, its upload is
/// enqueued on the memory's stream.
///
/// Fails if the memory is not device memory.
pub(crate) fn map_device(memory: &gst::MemoryRef) -> Result<DeviceMap<'_>> {
    let lib = GstCuda::get()?;
    let raw = lib.downcast(memory).ok_or_else(|| Error::Mismatch {
        problem: "The buffer is not in device memory: put cudaupload before it".into(),
    })?;
    // SAFETY: all-zero is a valid GstMapInfo, which the library overwrites.
    let mut info: GstMapInfo = unsafe { std::mem::zeroed() };
    // SAFETY: a valid memory, which stays locked for reading until the map is dropped.
    let mapped = unsafe {
        gst::ffi::gst_memory_map(raw.cast(), &mut info, gst::ffi::GST_MAP_READ | MAP_CUDA)
    };
    if mapped == GFALSE {
        return failed("gst_memory_map with GST_MAP_CUDA");
    }
    Ok(DeviceMap { info, _memory: PhantomData })
}
