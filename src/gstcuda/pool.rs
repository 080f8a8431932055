// SPDX-License-Identifier: LGPL-2.1-or-later
//! A buffer pool that GStreamer's CUDA elements accept, with memory from elsewhere.
//!
//! The elements accept a GstCudaBufferPool of their own context only. Therefore the pool's class is
//! derived from GstCudaBufferPool. It is created at run time, because the library is opened at run time,
//! and overrides every method that deals with memory.

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use cuframes::sync::lock;
use gst::ffi::{
    GstBuffer, GstBufferPool, GstBufferPoolAcquireParams, GstBufferPoolClass, GstFlowReturn,
    GstStructure,
};
use gst::glib::ffi::{GFALSE, GTRUE, gboolean, gpointer};
use gst::glib::{self, gobject_ffi, translate::*};
use gst::prelude::*;

use super::context::CudaContext;
use super::error::{Error, Result, failed};
use super::library::{GstCuda, RawContext};
use super::stream::CudaStream;

/// The public head of a GstCudaBufferPool, the same from 1.22 to 1.28.
#[repr(C)]
struct RawPool {
    pool: GstBufferPool,
    context: *mut RawContext,
}

/// Buffers that upstream asks for, from the configuration of the pool.
#[derive(Clone)]
pub(crate) struct BufferSpec {
    pub(crate) video: gst_video::VideoInfo,
    /// The stream on which upstream enqueues its work; `None` is the default stream.
    pub(crate) stream: Option<Arc<CudaStream>>,
}

/// Returns a buffer. The closure passed to it returns whether a wait for a buffer is cancelled.
type AcquireFn =
    dyn Fn(&BufferSpec, &dyn Fn() -> bool) -> Result<gst::Buffer, gst::FlowError> + Send + Sync;

struct State {
    acquire: Box<AcquireFn>,
    spec: Mutex<Option<BufferSpec>>,
    flushing: AtomicBool,
}

/// Returns a pool for elements in this context. `acquire` creates its buffers. The pool keeps none of them:
/// the memory of a buffer is reused by its owner, when the last reference to it is dropped.
///
/// Fails if the class can't be registered.
pub(crate) fn new_pool(
    context: &CudaContext,
    acquire: impl Fn(&BufferSpec, &dyn Fn() -> bool) -> Result<gst::Buffer, gst::FlowError>
    + Send
    + Sync
    + 'static,
) -> Result<gst::BufferPool> {
    let class = class(context.lib)?;
    let state = State {
        acquire: Box::new(acquire),
        spec: Mutex::default(),
        flushing: AtomicBool::new(false),
    };
    // SAFETY: the class is derived from GstCudaBufferPool, whose first fields are those of `RawPool`. The
    // parent class drops the reference to the context. The state is freed with the object.
    unsafe {
        let raw = gobject_ffi::g_object_new(class, std::ptr::null());
        if raw.is_null() {
            return failed("g_object_new");
        }
        gobject_ffi::g_object_ref_sink(raw);
        (*raw.cast::<RawPool>()).context =
            gobject_ffi::g_object_ref(context.raw().cast()).cast::<RawContext>();
        let state = Box::into_raw(Box::new(state));
        gobject_ffi::g_object_set_qdata_full(raw, quark(), state.cast(), Some(free_state));
        Ok(from_glib_full(raw.cast::<GstBufferPool>()))
    }
}

/// Returns the stream named in the configuration of a CUDA pool of this context. The element that offers
/// the pool enqueues its work there.
pub(crate) fn stream_of(context: &CudaContext, pool: &gst::BufferPool) -> Option<CudaStream> {
    let lib = context.lib;
    // SAFETY: the library returns a registered type.
    let class: glib::Type = unsafe { from_glib((lib.gst_cuda_buffer_pool_get_type)()) };
    if !pool.type_().is_a(class) {
        return None;
    }
    let raw: *mut GstBufferPool = pool.as_ptr();
    // SAFETY: the pool is of that class, whose context is set once. The configuration is a copy, which is
    // freed here. The stream is null or a new reference.
    unsafe {
        if (*raw.cast::<RawPool>()).context != context.raw() {
            return None;
        }
        let config = gst::ffi::gst_buffer_pool_get_config(raw);
        let stream = (lib.gst_buffer_pool_config_get_cuda_stream)(config);
        gst::ffi::gst_structure_free(config);
        (!stream.is_null()).then(|| CudaStream::from_full(lib, stream))
    }
}

fn quark() -> glib::ffi::GQuark {
    static QUARK: OnceLock<glib::Quark> = OnceLock::new();
    QUARK.get_or_init(|| glib::Quark::from_str("cuframes-cuda-pool")).into_glib()
}

unsafe extern "C" fn free_state(state: gpointer) {
    // SAFETY: boxed in `new_pool`; GObject calls this once.
    drop(unsafe { Box::from_raw(state.cast::<State>()) });
}

/// Returns the class, which the first call registers.
fn class(lib: &'static GstCuda) -> Result<glib::ffi::GType> {
    static CLASS: OnceLock<Option<usize>> = OnceLock::new();
    let class = CLASS.get_or_init(|| {
        // SAFETY: the parent is a class of the library. The sizes are the parent's, because no field is
        // added. Neither the type nor this code is ever unloaded.
        unsafe {
            let parent = (lib.gst_cuda_buffer_pool_get_type)();
            let mut sizes: gobject_ffi::GTypeQuery = std::mem::zeroed();
            gobject_ffi::g_type_query(parent, &mut sizes);
            let fits = sizes.instance_size as usize >= size_of::<RawPool>()
                && sizes.class_size as usize >= size_of::<GstBufferPoolClass>();
            let info = gobject_ffi::GTypeInfo {
                class_size: u16::try_from(sizes.class_size).ok().filter(|_| fits)?,
                base_init: None,
                base_finalize: None,
                class_init: Some(class_init),
                class_finalize: None,
                class_data: std::ptr::null(),
                instance_size: u16::try_from(sizes.instance_size).ok()?,
                n_preallocs: 0,
                instance_init: None,
                value_table: std::ptr::null(),
            };
            let name = c"GstCuframesCudaPool".as_ptr();
            let class = gobject_ffi::g_type_register_static(parent, name, &info, 0);
            (class != gobject_ffi::G_TYPE_INVALID).then_some(class)
        }
    });
    class.ok_or(Error::Call { function: "g_type_register_static" })
}

unsafe extern "C" fn class_init(class: gpointer, _data: gpointer) {
    // SAFETY: GObject passes the new class, which begins with those of its parents.
    let class = unsafe { &mut *class.cast::<GstBufferPoolClass>() };
    class.set_config = Some(set_config);
    class.start = Some(succeed);
    class.stop = Some(succeed);
    class.acquire_buffer = Some(acquire_buffer);
    class.release_buffer = Some(release_buffer);
    class.flush_start = Some(flush_start);
    class.flush_stop = Some(flush_stop);
}

/// # Safety
/// `pool` must be created by `new_pool`, and stay valid while the result is in use.
unsafe fn state<'a>(pool: *mut GstBufferPool) -> Option<&'a State> {
    // SAFETY: the caller's contract; the state is freed with the object.
    unsafe { gobject_ffi::g_object_get_qdata(pool.cast(), quark()).cast::<State>().as_ref() }
}

unsafe extern "C" fn set_config(pool: *mut GstBufferPool, config: *mut GstStructure) -> gboolean {
    let accept = || {
        // SAFETY: GStreamer passes a pool of this class and a configuration. The stream is null or a new
        // reference; the caps are borrowed. The base class implements the method.
        unsafe {
            let state = state(pool)?;
            let (mut caps, mut size, mut min, mut max) = (std::ptr::null_mut(), 0, 0, 0);
            let known = gst::ffi::gst_buffer_pool_config_get_params(
                config, &mut caps, &mut size, &mut min, &mut max,
            );
            if known == GFALSE || caps.is_null() {
                return None;
            }
            let video = gst_video::VideoInfo::from_caps(gst::CapsRef::from_ptr(caps)).ok()?;
            let lib = GstCuda::get().ok()?;
            let stream = (lib.gst_buffer_pool_config_get_cuda_stream)(config);
            let stream = (!stream.is_null()).then(|| Arc::new(CudaStream::from_full(lib, stream)));
            let size = size.max(video.size() as u32);
            gst::ffi::gst_buffer_pool_config_set_params(config, caps, size, min, max);
            *lock(&state.spec) = Some(BufferSpec { video, stream });
            // The base class's method, because the parent's allocates memory.
            let base = gobject_ffi::g_type_class_peek(gst::ffi::gst_buffer_pool_get_type());
            let set_config = (*base.cast::<GstBufferPoolClass>()).set_config?;
            Some(set_config(pool, config))
        }
    };
    catch_unwind(AssertUnwindSafe(accept)).ok().flatten().unwrap_or(GFALSE)
}

/// Start and stop of the pool: buffers are created on demand, so there is nothing to allocate or free.
unsafe extern "C" fn succeed(_pool: *mut GstBufferPool) -> gboolean {
    GTRUE
}

unsafe extern "C" fn acquire_buffer(
    pool: *mut GstBufferPool,
    buffer: *mut *mut GstBuffer,
    _params: *mut GstBufferPoolAcquireParams,
) -> GstFlowReturn {
    let acquire = || {
        // SAFETY: GStreamer passes a pool of this class, valid during the call.
        let state = unsafe { state(pool) }.ok_or(gst::FlowError::Error)?;
        // SYNC(flush/acquire): set by `flush_start`.
        let flushing = || state.flushing.load(Ordering::Acquire);
        if flushing() {
            return Err(gst::FlowError::Flushing);
        }
        let spec = lock(&state.spec).clone();
        (state.acquire)(&spec.ok_or(gst::FlowError::NotNegotiated)?, &flushing)
    };
    match catch_unwind(AssertUnwindSafe(acquire)).unwrap_or(Err(gst::FlowError::Error)) {
        Ok(acquired) => {
            // SAFETY: GStreamer passes the destination of the buffer, and owns it from here on.
            unsafe { *buffer = acquired.into_glib_ptr() };
            gst::ffi::GST_FLOW_OK
        }
        Err(e) => e.into_glib() as c_int,
    }
}

unsafe extern "C" fn release_buffer(_pool: *mut GstBufferPool, buffer: *mut GstBuffer) {
    // SAFETY: GStreamer gives up its reference.
    unsafe { gst::ffi::gst_mini_object_unref(buffer.cast()) };
}

unsafe extern "C" fn flush_start(pool: *mut GstBufferPool) {
    // SAFETY: a pool of this class, valid during the call.
    if let Some(state) = unsafe { state(pool) } {
        // SYNC(flush/acquire): read by `acquire_buffer`, also while it waits for a slot.
        state.flushing.store(true, Ordering::Release);
    }
}

unsafe extern "C" fn flush_stop(pool: *mut GstBufferPool) {
    // SAFETY: a pool of this class, valid during the call.
    if let Some(state) = unsafe { state(pool) } {
        // SYNC(flush/acquire): read by `acquire_buffer`.
        state.flushing.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caps::CUDA_MEMORY;
    use crate::gstcuda::allocate;
    use crate::gstcuda::fixture::{FRAME, Gpu};

    #[test]
    #[ignore = "needs a GPU"]
    fn pool_is_a_cuda_pool_and_calls_acquire() {
        let gpu = Gpu::new();
        let video = gpu.nv12();
        let mut caps = video.to_caps().unwrap();
        caps.make_mut().set_features_simple(Some(gst::CapsFeatures::new([CUDA_MEMORY])));
        let acquired = Arc::new(AtomicBool::new(false));
        let (called, context) = (acquired.clone(), gpu.context.clone());
        let pool = new_pool(&gpu.context, move |spec, _| {
            called.store(true, Ordering::Release);
            let memory = allocate(&context, spec.stream.as_deref(), &spec.video);
            let mut buffer = gst::Buffer::new();
            buffer.make_mut().append_memory(memory.map_err(|_| gst::FlowError::Error)?);
            Ok(buffer)
        });
        let pool = pool.unwrap();
        assert!(pool.type_().is_a(glib::Type::from_name("GstCudaBufferPool").unwrap()));
        let mut config = pool.config();
        config.set_params(Some(&caps), FRAME as u32, 0, 0);
        pool.set_config(config).unwrap();
        pool.set_active(true).unwrap();
        let buffer = pool.acquire_buffer(None).unwrap();
        assert!(acquired.load(Ordering::Acquire));
        assert!(buffer.peek_memory(0).is_type("gst.cuda.memory"));
        drop(buffer);
        pool.set_active(false).unwrap();
    }
}
