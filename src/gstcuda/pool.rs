//! A buffer pool that GStreamer's CUDA elements take for one of their own, with memory from elsewhere.
//!
//! They accept no other than a GstCudaBufferPool, and ask that for an exact context. So this is a class
//! derived from it, made at run time as the library is, which overrides all that has to do with memory.

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use gst::ffi::{
    GstBuffer, GstBufferPool, GstBufferPoolAcquireParams, GstBufferPoolClass, GstFlowReturn,
    GstStructure,
};
use gst::glib::ffi::{GFALSE, GTRUE, gboolean, gpointer};
use gst::glib::{self, gobject_ffi, translate::*};
use gst::prelude::*;

use super::library::{CudaContext, CudaStream, GstCuda, RawContext, failed};
use super::{Error, Result};

/// The public head of a GstCudaBufferPool, the same from 1.22 to 1.28.
#[repr(C)]
struct RawPool {
    pool: GstBufferPool,
    context: *mut RawContext,
}

/// What upstream wants its buffers to be.
#[derive(Clone)]
pub struct Wanted {
    pub video: gst_video::VideoInfo,
    /// What upstream enqueues its work on; `None` is the default stream.
    pub stream: Option<std::sync::Arc<CudaStream>>,
}

/// Gives a buffer. The closure that it is handed says whether to give up waiting for one.
type Lend = dyn Fn(&Wanted, &dyn Fn() -> bool) -> Result<gst::Buffer, gst::FlowError> + Send + Sync;

struct State {
    lend: Box<Lend>,
    wanted: Mutex<Option<Wanted>>,
    flushing: AtomicBool,
}

/// A pool for elements in this context. `lend` makes the buffers, and has them back when nobody has a
/// reference to their memory any more.
///
/// Errors: the library can't be used.
pub fn lending_pool(
    context: &CudaContext,
    lend: impl Fn(&Wanted, &dyn Fn() -> bool) -> Result<gst::Buffer, gst::FlowError>
    + Send
    + Sync
    + 'static,
) -> Result<gst::BufferPool> {
    let class = class(context.lib)?;
    let state =
        State { lend: Box::new(lend), wanted: Mutex::default(), flushing: AtomicBool::new(false) };
    // SAFETY: the class is derived from GstBufferPool, and its first fields are those of `RawPool`; the
    // context is a reference that the parent class gives up. The state is freed with the object.
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

/// The stream that whoever offers this pool enqueues its work on, if it is one of this context and says so.
pub fn stream_of(context: &CudaContext, pool: &gst::BufferPool) -> Option<CudaStream> {
    let lib = context.lib;
    // SAFETY: what the library gives is a type.
    let class: glib::Type = unsafe { from_glib((lib.gst_cuda_buffer_pool_get_type)()) };
    if !pool.type_().is_a(class) {
        return None;
    }
    let raw: *mut GstBufferPool = pool.as_ptr();
    // SAFETY: the pool is of that class, whose context is set once. The configuration is a copy of ours,
    // and what comes out of it is null or a reference of ours.
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
    QUARK.get_or_init(|| glib::Quark::from_str("cuframes-lending-pool")).into_glib()
}

unsafe extern "C" fn free_state(state: gpointer) {
    // SAFETY: boxed in `lending_pool`; GObject calls this once.
    drop(unsafe { Box::from_raw(state.cast::<State>()) });
}

/// The class, registered with the first call.
fn class(lib: &'static GstCuda) -> Result<glib::ffi::GType> {
    static CLASS: OnceLock<Option<usize>> = OnceLock::new();
    let class = CLASS.get_or_init(|| {
        // SAFETY: the parent is a class that the library registers; sizes are its own, since nothing is
        // added to it. Types are never taken back, nor is this code.
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
            let name = c"GstCuframesLendingPool".as_ptr();
            let class = gobject_ffi::g_type_register_static(parent, name, &info, 0);
            (class != gobject_ffi::G_TYPE_INVALID).then_some(class)
        }
    });
    class.ok_or(Error::Call { function: "g_type_register_static" })
}

unsafe extern "C" fn class_init(class: gpointer, _data: gpointer) {
    // SAFETY: GObject hands over the new class, which begins with that of its parents.
    let class = unsafe { &mut *class.cast::<GstBufferPoolClass>() };
    class.set_config = Some(set_config);
    class.start = Some(nothing_to_do);
    class.stop = Some(nothing_to_do);
    class.acquire_buffer = Some(acquire_buffer);
    class.release_buffer = Some(release_buffer);
    class.flush_start = Some(flush_start);
    class.flush_stop = Some(flush_stop);
}

/// # Safety
/// `pool` has to be one of `lending_pool`, and valid for as long as the result is used.
unsafe fn state<'a>(pool: *mut GstBufferPool) -> Option<&'a State> {
    // SAFETY: by the caller's promise; the state lives as long as the object.
    unsafe { gobject_ffi::g_object_get_qdata(pool.cast(), quark()).cast::<State>().as_ref() }
}

unsafe extern "C" fn set_config(pool: *mut GstBufferPool, config: *mut GstStructure) -> gboolean {
    let accept = || {
        // SAFETY: GStreamer hands over a pool of this class and a configuration; the stream that comes
        // is ours, and caps are borrowed. The pool's base class has a function of that name.
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
            let stream = (!stream.is_null())
                .then(|| std::sync::Arc::new(CudaStream::from_full(lib, stream)));
            let size = size.max(video.size() as u32);
            gst::ffi::gst_buffer_pool_config_set_params(config, caps, size, min, max);
            *state.wanted.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(Wanted { video, stream });
            // Not the parent's, which allocates memory.
            let base = gobject_ffi::g_type_class_peek(gst::ffi::gst_buffer_pool_get_type());
            let set_config = (*base.cast::<GstBufferPoolClass>()).set_config?;
            Some(set_config(pool, config))
        }
    };
    catch_unwind(AssertUnwindSafe(accept)).ok().flatten().unwrap_or(GFALSE)
}

/// Buffers are made when they are asked for, and not kept.
unsafe extern "C" fn nothing_to_do(_pool: *mut GstBufferPool) -> gboolean {
    GTRUE
}

unsafe extern "C" fn acquire_buffer(
    pool: *mut GstBufferPool,
    buffer: *mut *mut GstBuffer,
    _params: *mut GstBufferPoolAcquireParams,
) -> GstFlowReturn {
    let acquire = || {
        // SAFETY: GStreamer hands over a pool of this class, valid during the call.
        let state = unsafe { state(pool) }.ok_or(gst::FlowError::Error)?;
        let flushing = || state.flushing.load(Ordering::Acquire);
        if flushing() {
            return Err(gst::FlowError::Flushing);
        }
        let wanted = state.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (state.lend)(&wanted.ok_or(gst::FlowError::NotNegotiated)?, &flushing)
    };
    let lent = catch_unwind(AssertUnwindSafe(acquire)).unwrap_or(Err(gst::FlowError::Error));
    match lent {
        Ok(lent) => {
            // SAFETY: GStreamer hands over where the buffer goes, and owns it from here on.
            unsafe { *buffer = lent.into_glib_ptr() };
            gst::ffi::GST_FLOW_OK
        }
        Err(e) => e.into_glib() as c_int,
    }
}

unsafe extern "C" fn release_buffer(_pool: *mut GstBufferPool, buffer: *mut GstBuffer) {
    // SAFETY: GStreamer gives the buffer away. Its memory says when nobody has it any more.
    unsafe { gst::ffi::gst_mini_object_unref(buffer.cast()) };
}

unsafe extern "C" fn flush_start(pool: *mut GstBufferPool) {
    // SAFETY: a pool of this class, valid during the call.
    if let Some(state) = unsafe { state(pool) } {
        state.flushing.store(true, Ordering::Release);
    }
}

unsafe extern "C" fn flush_stop(pool: *mut GstBufferPool) {
    // SAFETY: a pool of this class, valid during the call.
    if let Some(state) = unsafe { state(pool) } {
        state.flushing.store(false, Ordering::Release);
    }
}
