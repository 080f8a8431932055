//! GStreamer's CUDA library, `libgstcuda`, looked up at run time: one plugin serves hosts with and
//! without it. What is used here exists since GStreamer 1.24.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_uint, c_void};
use std::fmt;
use std::marker::PhantomData;

use cudarc::driver::sys::{CUcontext, CUdevice, CUdeviceptr, CUstream};
use gst::ffi::{
    GstContext, GstElement, GstMapFlags, GstMapInfo, GstMemory, GstQuery, GstStructure,
};
use gst::glib::ffi::{GDestroyNotify, gboolean, gpointer};
use gst::glib::{self, translate::*};
use gst::prelude::*;
use gst_video::ffi::GstVideoInfo;
use libloading::Library;
use once_cell::sync::OnceCell;

use super::error::{Error, Result};
use cuframes::cuda::driver::{find, reason};
use cuframes::cuda::{Context, Device, Stream};

const LIBRARY: &str = "libgstcuda-1.0.so.0";

/// The caps feature of buffers in device memory.
pub const CAPS_FEATURE: &str = "memory:CUDAMemory";

/// The type of the GstContext that elements share a GstCudaContext by.
pub const CONTEXT_TYPE: &str = "gst.cuda.context";

/// `GST_MAP_CUDA`: asks a GstCudaMemory for its device address.
const MAP_CUDA: GstMapFlags = gst::ffi::GST_MAP_FLAG_LAST << 1;

/// `GST_CUDA_MEMORY_TRANSFER_…`: the CPU has no copy of the content, or a newer one; who works on another
/// stream has to wait for the memory's.
pub(super) const NEED_DOWNLOAD: u32 = gst::ffi::GST_MEMORY_FLAG_LAST;
pub(super) const NEED_UPLOAD: u32 = gst::ffi::GST_MEMORY_FLAG_LAST << 1;
pub(super) const NEED_SYNC: u32 = gst::ffi::GST_MEMORY_FLAG_LAST << 2;

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

/// The public head of a GstCudaMemory, the same from 1.24 to 1.28. Its private rest is behind it.
#[repr(C)]
pub(super) struct RawMemory {
    pub memory: GstMemory,
    pub context: *mut RawContext,
    pub info: GstVideoInfo,
}

macro_rules! table {
    ($($name:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions in use, by their names.
        pub struct GstCuda {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl GstCuda {
            /// # Safety
            /// The library has to be libgstcuda, and must never be closed.
            unsafe fn look_up(library: &Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the types are those of the library's headers.
                    $($name: unsafe { find(library, stringify!($name)) }.ok_or(stringify!($name))?,)*
                })
            }
        }
    };
}

// As in the headers of 1.24, 1.26 and 1.28.
table! {
    gst_cuda_load_library() -> gboolean;
    gst_cuda_memory_init_once();
    gst_cuda_context_new(c_uint) -> *mut RawContext;
    gst_cuda_context_new_wrapped(CUcontext, CUdevice) -> *mut RawContext;
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
    gst_cuda_allocator_alloc_wrapped(*mut c_void, *mut RawContext, *mut RawStream, *const GstVideoInfo, CUdeviceptr, gpointer, GDestroyNotify) -> *mut GstMemory;
    gst_cuda_buffer_pool_get_type() -> glib::ffi::GType;
    gst_buffer_pool_config_get_cuda_stream(*mut GstStructure) -> *mut RawStream;
}

impl fmt::Debug for GstCuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(LIBRARY)
    }
}

impl GstCuda {
    /// The library of this system. GStreamer has to be initialised. What fails is tried again by the
    /// next caller.
    ///
    /// Errors: no library, one of GStreamer 1.22, or no driver.
    pub fn get() -> Result<&'static Self> {
        static GST_CUDA: OnceCell<GstCuda> = OnceCell::new();
        GST_CUDA.get_or_try_init(Self::load)
    }

    fn load() -> Result<Self> {
        // SAFETY: opening it runs nothing but what GLib's own libraries run.
        let library = unsafe { Library::new(LIBRARY) }
            .map_err(|e| Error::NoLibrary { problem: reason(LIBRARY, &e) })?;
        // SAFETY: it has the name of libgstcuda; it is forgotten below or, where that is not reached,
        // so is the table.
        let gst_cuda = unsafe { Self::look_up(&library) }.map_err(|function| Error::NoLibrary {
            problem: format!("{LIBRARY} has no function {function}, so it is of an older version"),
        })?;
        // Types that were registered with GLib can't be taken back: it is never closed.
        std::mem::forget(library);
        // Says better than the library why there is no driver.
        Device::all()?;
        // SAFETY: may be called at any time, and again. It opens the driver's library.
        if unsafe { (gst_cuda.gst_cuda_load_library)() } == glib::ffi::GFALSE {
            let problem = "it finds no driver that it can use".into();
            return Err(Error::NoLibrary { problem });
        }
        // SAFETY: GStreamer is initialised, by what `get` asks for. Makes the allocator that wraps.
        unsafe { (gst_cuda.gst_cuda_memory_init_once)() };
        Ok(gst_cuda)
    }

    /// The memory, if it is a GstCudaMemory.
    fn cuda(&self, memory: &gst::MemoryRef) -> Option<*mut RawMemory> {
        let memory = memory.as_ptr().cast_mut();
        // SAFETY: a valid GstMemory, which is only looked at.
        let is_cuda = unsafe { (self.gst_is_cuda_memory)(memory) } != glib::ffi::GFALSE;
        is_cuda.then_some(memory.cast())
    }
}

pub(super) fn failed<T>(function: &'static str) -> Result<T> {
    Err(Error::Call { function })
}

/// A GstCudaContext.
#[derive(Clone, Debug)]
pub struct CudaContext {
    pub(super) lib: &'static GstCuda,
    object: gst::Object,
}

impl CudaContext {
    /// # Safety
    /// `raw` has to be a reference to a GstCudaContext that the caller gives away.
    unsafe fn from_full(lib: &'static GstCuda, raw: *mut RawContext) -> Self {
        // SAFETY: a GstCudaContext is a GstObject; the reference is ours.
        Self { lib, object: unsafe { from_glib_full(raw.cast::<gst::ffi::GstObject>()) } }
    }

    /// # Safety
    /// `raw` has to be a GstCudaContext that is valid during the call.
    unsafe fn from_none(lib: &'static GstCuda, raw: *mut RawContext) -> Self {
        // SAFETY: a GstCudaContext is a GstObject, which is valid.
        Self { lib, object: unsafe { from_glib_none(raw.cast::<gst::ffi::GstObject>()) } }
    }

    pub(super) fn raw(&self) -> *mut RawContext {
        self.object.as_ptr().cast()
    }

    /// A new context on the GPU of that number. Elements share theirs: see [`ContextSlot`].
    pub fn new(device_id: u32) -> Result<Self> {
        let lib = GstCuda::get()?;
        // SAFETY: any number may be asked for; what comes is null or ours.
        unsafe {
            let raw = (lib.gst_cuda_context_new)(device_id);
            if raw.is_null() {
                return failed("gst_cuda_context_new");
            }
            Ok(Self::from_full(lib, raw))
        }
    }

    /// The same context as `context`, for GStreamer.
    pub fn wrap(context: &Context) -> Result<Self> {
        let lib = GstCuda::get()?;
        // SAFETY: the context is valid; it stays so while the object lives, which holds it from here on
        // under a name that nobody else uses.
        unsafe {
            let raw =
                (lib.gst_cuda_context_new_wrapped)(context.handle(), context.device().ordinal());
            if raw.is_null() {
                return failed("gst_cuda_context_new_wrapped");
            }
            let this = Self::from_full(lib, raw);
            this.object.set_data("cuframes-context", context.clone());
            Ok(this)
        }
    }

    /// The driver's context behind it.
    pub fn driver_context(&self) -> Result<Context> {
        // SAFETY: the object is a GstCudaContext; its context is valid while the object lives, which
        // the new owner holds.
        unsafe {
            let handle = (self.lib.gst_cuda_context_get_handle)(self.raw());
            Ok(Context::from_raw(handle.cast(), self.object.clone())?)
        }
    }

    /// The GPU's number, as elements call it.
    pub fn device_id(&self) -> u32 {
        self.object.property("cuda-device-id")
    }
}

/// Where an element keeps the context that it shares with its neighbours.
///
/// While an element asks its neighbours for a context, they may hand it one: GStreamer then calls the
/// element's `set_context`, on the same thread, and looks into the same place for the result. So the
/// place has a fixed address and a lock that its holder may take again.
pub struct ContextSlot {
    /// In a box: it must not move once it was locked.
    lock: Box<UnsafeCell<glib::ffi::GRecMutex>>,
    /// A reference, or null.
    context: Box<UnsafeCell<*mut RawContext>>,
}

// SAFETY: the context is touched under the lock only, and may itself be used from any thread.
unsafe impl Send for ContextSlot {}
// SAFETY: as above.
unsafe impl Sync for ContextSlot {}

impl Default for ContextSlot {
    fn default() -> Self {
        let lock =
            Box::new(UnsafeCell::new(glib::ffi::GRecMutex { p: std::ptr::null_mut(), i: [0; 2] }));
        // SAFETY: initialised once, at the address where it stays.
        unsafe { glib::ffi::g_rec_mutex_init(lock.get()) };
        Self { lock, context: Box::new(UnsafeCell::new(std::ptr::null_mut())) }
    }
}

impl Drop for ContextSlot {
    fn drop(&mut self) {
        self.clear();
        // SAFETY: nobody holds or takes the lock any more.
        unsafe { glib::ffi::g_rec_mutex_clear(self.lock.get()) };
    }
}

impl fmt::Debug for ContextSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ContextSlot").field(&self.get()).finish()
    }
}

struct Locked<'a>(&'a ContextSlot);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // SAFETY: locked by `ContextSlot::lock`, on this thread, which the raw pointer within keeps it on.
        unsafe { glib::ffi::g_rec_mutex_unlock(self.0.lock.get()) };
    }
}

impl ContextSlot {
    fn lock(&self) -> (Locked<'_>, PhantomData<*const ()>) {
        // SAFETY: initialised in `default`.
        unsafe { glib::ffi::g_rec_mutex_lock(self.lock.get()) };
        (Locked(self), PhantomData)
    }

    /// The context, if there is one.
    pub fn get(&self) -> Option<CudaContext> {
        let _locked = self.lock();
        // SAFETY: under the lock; the slot's reference keeps the context valid.
        unsafe {
            let raw = *self.context.get();
            // A context came through the library.
            (!raw.is_null())
                .then(|| GstCuda::get().ok().map(|lib| CudaContext::from_none(lib, raw)))?
        }
    }

    /// Forgets the context, as elements do when they stop.
    pub fn clear(&self) {
        let _locked = self.lock();
        // SAFETY: under the lock; the reference is the slot's, and is given up once.
        unsafe {
            let raw = std::mem::replace(&mut *self.context.get(), std::ptr::null_mut());
            if !raw.is_null() {
                glib::gobject_ffi::g_object_unref(raw.cast());
            }
        }
    }

    /// The context of the element's neighbours, of its application, or else a new one, which the
    /// others are told of. `device_id` is -1 where any GPU will do.
    pub fn ensure(&self, element: &impl IsA<gst::Element>, device_id: i32) -> Result<CudaContext> {
        let lib = GstCuda::get()?;
        let element = element.upcast_ref::<gst::Element>().as_ptr();
        let locked = self.lock();
        // SAFETY: element and slot are valid; no reference to the slot's content exists while others
        // write it through the same pointer, further up this thread's stack.
        let found = unsafe {
            (lib.gst_cuda_ensure_element_context)(element, device_id, self.context.get())
        };
        drop(locked);
        match self.get() {
            Some(context) if found != glib::ffi::GFALSE => Ok(context),
            // The library only logs what kept the driver from making one, and the driver says it again.
            _ => Device::by_ordinal(device_id.max(0) as u32)
                .and_then(|device| Context::primary(&device))
                .map_err(Error::from)
                .and(failed("gst_cuda_ensure_element_context")),
        }
    }

    /// For the element's `set_context`: takes the context if it is one of CUDA and fits.
    pub fn set_context(
        &self,
        element: &impl IsA<gst::Element>,
        context: &gst::Context,
        device_id: i32,
    ) -> bool {
        // Other contexts are no reason to open the library.
        if context.context_type() != CONTEXT_TYPE {
            return false;
        }
        let Ok(lib) = GstCuda::get() else { return false };
        let element = element.upcast_ref::<gst::Element>().as_ptr();
        let context = context.as_ptr().cast_mut();
        let _locked = self.lock();
        // SAFETY: as in `ensure`; the context is only read.
        let taken = unsafe {
            (lib.gst_cuda_handle_set_context)(element, context, device_id, self.context.get())
        };
        taken != glib::ffi::GFALSE
    }

    /// For the element's and its pads' queries: answers a CONTEXT query for CUDA's.
    pub fn answer(&self, element: &impl IsA<gst::Element>, query: &mut gst::QueryRef) -> bool {
        // First, as the lock may be held for as long as a context takes to be made.
        if query.type_() != gst::QueryType::Context {
            return false;
        }
        let Some(context) = self.get() else { return false };
        let element = element.upcast_ref::<gst::Element>().as_ptr();
        // SAFETY: all three are valid, and the query is ours to write.
        let answered = unsafe {
            (context.lib.gst_cuda_handle_context_query)(element, query.as_mut_ptr(), context.raw())
        };
        answered != glib::ffi::GFALSE
    }
}

/// A GstCudaStream.
pub struct CudaStream {
    lib: &'static GstCuda,
    raw: *mut RawStream,
}

// SAFETY: its reference count is atomic, and it does not change otherwise.
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
        // SAFETY: valid while `self` lives; the reference that comes is ours.
        Self { lib: self.lib, raw: unsafe { (self.lib.gst_cuda_stream_ref)(self.raw) } }
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        // SAFETY: the reference is ours, and is given up once.
        unsafe { (self.lib.gst_cuda_stream_unref)(self.raw) };
    }
}

/// The same stream of the driver.
impl PartialEq for CudaStream {
    fn eq(&self, other: &Self) -> bool {
        self.handle() == other.handle()
    }
}

impl Eq for CudaStream {}

impl CudaStream {
    /// A new stream.
    pub fn new(context: &CudaContext) -> Result<Self> {
        let lib = context.lib;
        // SAFETY: the context is valid; what comes is null or ours.
        let raw = unsafe { (lib.gst_cuda_stream_new)(context.raw()) };
        if raw.is_null() {
            return failed("gst_cuda_stream_new");
        }
        Ok(Self { lib, raw })
    }

    /// # Safety
    /// `raw` has to be a reference to a GstCudaStream that the caller gives away.
    pub(super) unsafe fn from_full(lib: &'static GstCuda, raw: *mut RawStream) -> Self {
        Self { lib, raw }
    }

    pub(super) fn raw(&self) -> *mut RawStream {
        self.raw
    }

    /// For functions of other libraries. Valid while this stream lives.
    pub fn handle(&self) -> CUstream {
        // SAFETY: valid while `self` lives.
        unsafe { (self.lib.gst_cuda_stream_get_handle)(self.raw) }
    }

    /// The driver's stream behind it. `context` is the driver's context of the GstCudaContext that the
    /// stream was made in.
    pub fn driver_stream(&self, context: &Context) -> Stream {
        // SAFETY: the driver's stream is valid while the GstCudaStream lives, which the new owner holds.
        unsafe { Stream::from_raw(context, self.handle(), self.clone()) }
    }
}

/// New device memory for a picture, laid out as GStreamer likes it.
pub fn allocate(
    context: &CudaContext,
    stream: Option<&CudaStream>,
    info: &gst_video::VideoInfo,
) -> Result<gst::Memory> {
    let lib = context.lib;
    let stream = stream.map_or(std::ptr::null_mut(), |s| s.raw);
    // SAFETY: all objects are valid, and GStreamer takes references of its own; `info` is copied. No
    // allocator means the default one. What comes is null or ours.
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

/// Whether it is device memory. False also where the library is missing.
pub fn is_cuda(memory: &gst::MemoryRef) -> bool {
    GstCuda::get().is_ok_and(|lib| lib.cuda(memory).is_some())
}

/// The context that device memory belongs to.
pub fn memory_context(memory: &gst::MemoryRef) -> Option<CudaContext> {
    let lib = GstCuda::get().ok()?;
    let raw = lib.cuda(memory)?;
    // SAFETY: a GstCudaMemory, whose public fields are set once.
    Some(unsafe { CudaContext::from_none(lib, (*raw).context) })
}

/// Where the planes lie in device memory, padding included.
pub fn memory_info(memory: &gst::MemoryRef) -> Option<gst_video::VideoInfo> {
    let raw = GstCuda::get().ok()?.cuda(memory)?;
    // SAFETY: a GstCudaMemory, whose public fields are set once; the info is copied.
    Some(unsafe { from_glib_none(&raw const (*raw).info) })
}

/// The stream on which the work with device memory is enqueued; `None` is the default stream.
pub fn memory_stream(memory: &gst::MemoryRef) -> Option<CudaStream> {
    let lib = GstCuda::get().ok()?;
    let raw = lib.cuda(memory)?;
    // SAFETY: a GstCudaMemory; its stream is valid while it lives, and gets a reference of our own.
    unsafe {
        let stream = (lib.gst_cuda_memory_get_stream)(raw);
        (!stream.is_null()).then(|| CudaStream { lib, raw: (lib.gst_cuda_stream_ref)(stream) })
    }
}

/// Waits until what was enqueued with device memory is done.
pub fn sync(memory: &gst::MemoryRef) {
    if let Ok(lib) = GstCuda::get()
        && let Some(raw) = lib.cuda(memory)
    {
        // SAFETY: a GstCudaMemory.
        unsafe { (lib.gst_cuda_memory_sync)(raw) };
    }
}

/// Device memory that is mapped for the device. What the CPU had changed is being uploaded, on the
/// memory's stream.
pub struct DeviceMap<'a> {
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
        // SAFETY: mapped in `map_device`; the memory lives as long as this borrows it.
        unsafe { gst::ffi::gst_memory_unmap(self.info.memory, &mut self.info) };
    }
}

impl DeviceMap<'_> {
    pub fn address(&self) -> u64 {
        self.info.data as u64
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.info.size
    }

    pub fn is_empty(&self) -> bool {
        self.info.size == 0
    }
}

/// The device address of device memory, to be read there. The address stays the memory's when it is
/// not mapped any more.
pub fn map_device(memory: &gst::MemoryRef) -> Result<DeviceMap<'_>> {
    let lib = GstCuda::get()?;
    let raw = lib.cuda(memory).ok_or_else(|| Error::Mismatch {
        problem: "The buffer is not in device memory: put cudaupload before it".into(),
    })?;
    // SAFETY: zeros are a valid GstMapInfo; GStreamer overwrites it.
    let mut info: GstMapInfo = unsafe { std::mem::zeroed() };
    // SAFETY: a valid memory, which stays locked for reading until the map is dropped.
    let mapped = unsafe {
        gst::ffi::gst_memory_map(raw.cast(), &mut info, gst::ffi::GST_MAP_READ | MAP_CUDA)
    };
    if mapped == glib::ffi::GFALSE {
        return failed("gst_memory_map with GST_MAP_CUDA");
    }
    Ok(DeviceMap { info, _memory: PhantomData })
}
