// SPDX-License-Identifier: LGPL-2.1-or-later
//! The functions of `libgstcuda`, looked up at run time.

use std::ffi::{c_int, c_void};
use std::fmt;

use cuframes::cuda::library::Library;
use cuframes::cuda::{CUstream, Device};
use gst::ffi::{GstContext, GstElement, GstMemory, GstQuery, GstStructure};
use gst::glib::ffi::{GDestroyNotify, GFALSE, GType, gboolean, gpointer};
use gst_video::ffi::GstVideoInfo;
use once_cell::sync::OnceCell;

use super::error::{Error, Result};

const LIBRARY: &str = "libgstcuda-1.0.so.0";

/// A GstCudaContext, which is a GstObject.
#[repr(C)]
pub(super) struct RawContext {
    _opaque: [u8; 0],
}

/// A GstCudaStream, which is a GstMiniObject.
#[repr(C)]
pub(super) struct RawStream {
    _opaque: [u8; 0],
}

/// The public head of a GstCudaMemory, the same from 1.24 to 1.28. Private fields follow it.
#[repr(C)]
pub(super) struct RawMemory {
    pub(super) memory: GstMemory,
    pub(super) context: *mut RawContext,
    pub(super) info: GstVideoInfo,
}

macro_rules! table {
    ($($name:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions in use, by the names of their symbols.
        pub(crate) struct GstCuda {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl GstCuda {
            /// Looks up all functions. Fails with the name of the first one that is missing.
            ///
            /// # Safety
            /// The library must be libgstcuda, and must stay open while the result is in use.
            unsafe fn look_up(library: &Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the types are those of the library's headers. The library stays open, by
                    // the caller's contract.
                    $($name: unsafe { library.find(stringify!($name)) }.ok_or(stringify!($name))?,)*
                })
            }
        }
    };
}

// As in the headers of 1.24, 1.26 and 1.28. CUdeviceptr is written as u64.
table! {
    gst_cuda_load_library() -> gboolean;
    gst_cuda_memory_init_once();
    gst_cuda_context_get_handle(*mut RawContext) -> gpointer;
    gst_cuda_ensure_element_context(*mut GstElement, c_int, *mut *mut RawContext) -> gboolean;
    gst_cuda_handle_set_context(*mut GstElement, *mut GstContext, c_int, *mut *mut RawContext) -> gboolean;
    gst_cuda_handle_context_query(*mut GstElement, *mut GstQuery, *mut RawContext) -> gboolean;
    gst_cuda_stream_new(*mut RawContext) -> *mut RawStream;
    gst_cuda_stream_get_handle(*mut RawStream) -> CUstream;
    gst_cuda_stream_ref(*mut RawStream) -> *mut RawStream;
    gst_cuda_stream_unref(*mut RawStream);
    gst_is_cuda_memory(*mut GstMemory) -> gboolean;
    gst_cuda_memory_get_stream(*mut RawMemory) -> *mut RawStream;
    gst_cuda_memory_get_user_data(*mut RawMemory) -> gpointer;
    gst_cuda_memory_sync(*mut RawMemory);
    gst_cuda_allocator_alloc(*mut c_void, *mut RawContext, *mut RawStream, *const GstVideoInfo) -> *mut GstMemory;
    gst_cuda_allocator_alloc_wrapped(*mut c_void, *mut RawContext, *mut RawStream, *const GstVideoInfo, u64, gpointer, GDestroyNotify) -> *mut GstMemory;
    gst_cuda_buffer_pool_get_type() -> GType;
    gst_buffer_pool_config_get_cuda_stream(*mut GstStructure) -> *mut RawStream;
}

impl fmt::Debug for GstCuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(LIBRARY)
    }
}

impl GstCuda {
    /// Returns the library of this system. GStreamer must be initialized. After a failure the next call
    /// tries again.
    ///
    /// Fails if the library is missing or older than 1.24, or if there is no usable driver.
    pub(crate) fn get() -> Result<&'static Self> {
        static GST_CUDA: OnceCell<GstCuda> = OnceCell::new();
        GST_CUDA.get_or_try_init(Self::load)
    }

    fn load() -> Result<Self> {
        // SAFETY: its initializers are those of GLib's own libraries.
        let library =
            unsafe { Library::open(LIBRARY) }.map_err(|problem| Error::NoLibrary { problem })?;
        // SAFETY: the library has the name of libgstcuda. It is leaked below; an early return drops the
        // table together with it.
        let gst_cuda = unsafe { Self::look_up(&library) }.map_err(|function| Error::NoLibrary {
            problem: format!("{LIBRARY} has no function {function}, so it is of an older version"),
        })?;
        // GLib types can't be unregistered, so the library must stay loaded.
        library.leak();
        // Reports a missing driver with a better reason than libgstcuda does.
        Device::all()?;
        // SAFETY: may be called at any time and more than once. It opens the driver's library.
        if unsafe { (gst_cuda.gst_cuda_load_library)() } == GFALSE {
            let problem = "it finds no driver that it can use".into();
            return Err(Error::NoLibrary { problem });
        }
        // SAFETY: GStreamer is initialized, as `get` requires. Makes the allocator that wraps memory.
        unsafe { (gst_cuda.gst_cuda_memory_init_once)() };
        Ok(gst_cuda)
    }

    /// Returns the memory as a GstCudaMemory if it is one.
    pub(super) fn downcast(&self, memory: &gst::MemoryRef) -> Option<*mut RawMemory> {
        let memory = memory.as_ptr().cast_mut();
        // SAFETY: a valid GstMemory; the function only reads its type.
        let is_cuda = unsafe { (self.gst_is_cuda_memory)(memory) } != GFALSE;
        is_cuda.then_some(memory.cast())
    }
}
