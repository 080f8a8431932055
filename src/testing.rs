// SPDX-License-Identifier: LGPL-2.1-or-later
//! Access to CUDA memory in buffers, for the tests and tools of this repository.
//!
//! Not part of the plugin's interface. All functions return `None`, or do nothing, if the memory is not
//! CUDA memory.

use cuframes::cuda::{Context, Stream};

use crate::gstcuda::{self, CudaStream};

/// Returns the driver's context of the memory.
pub fn memory_context(memory: &gst::MemoryRef) -> Option<Context> {
    gstcuda::memory_context(memory)?.driver_context().ok()
}

/// Returns the stream on which the work with the memory is enqueued.
pub fn memory_stream(memory: &gst::MemoryRef) -> Option<Stream> {
    Some(gstcuda::memory_stream(memory)?.driver_stream(&memory_context(memory)?))
}

/// Creates a stream in the memory's context, as an element does.
pub fn new_stream(memory: &gst::MemoryRef) -> Option<Stream> {
    let context = gstcuda::memory_context(memory)?;
    let stream = CudaStream::new(&context).ok()?;
    Some(stream.driver_stream(&context.driver_context().ok()?))
}

/// Returns the device address and the length in bytes.
pub fn device_range(memory: &gst::MemoryRef) -> Option<(u64, usize)> {
    let map = gstcuda::map_device(memory).ok()?;
    Some((map.address(), map.len()))
}

/// Waits until the work that writes the memory is done.
pub fn sync(memory: &gst::MemoryRef) {
    gstcuda::memory::sync(memory);
}
