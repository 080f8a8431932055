//! GstCudaMemory of places that come again, such as the slots of a pool.
//!
//! Elements keep with a memory what they need to use it: textures, an encoder's registration. When GStreamer frees
//! a memory, it waits for the work that writes it, and destroys its textures even if work is enqueued that
//! still reads by them. So memory is made once for a place and kept when its last reference is dropped, as
//! buffer pools do; and it goes before the place does, which is why each allocation has its own [`MemoryCache`].

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Weak};

use gst::ffi::{GST_MEMORY_FLAG_READONLY, GstMemory, GstMiniObject};
use gst::glib::ffi::{GFALSE, GTRUE, gboolean, gpointer};
use gst::glib::translate::*;
use gst_video::VideoInfo;

use super::library::{
    CudaContext, CudaStream, GstCuda, NEED_DOWNLOAD, NEED_SYNC, NEED_UPLOAD, RawMemory, failed,
};
use super::{Error, Result};
use cuframes::sync::lock;

/// What wrapped memory may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferAccess {
    /// It is complete, and not to be written: who asks for that is refused, or gets a copy.
    Read,
    /// What writes it is enqueued on its stream, for others to wait for.
    AfterStream,
    /// It is there to be written.
    Write,
}

/// Device memory to be wrapped.
pub struct DeviceRegion<'a> {
    pub address: u64,
    /// Where the planes lie in it: offsets, strides and size have to be the memory's.
    pub layout: &'a VideoInfo,
    pub context: &'a CudaContext,
    /// What elements enqueue their work on; `None` is the default stream.
    pub stream: Option<&'a CudaStream>,
}

/// Makes GstCudaMemory of places in one allocation, which holds a `T` while anybody uses it.
///
/// The last of its clones frees what is not in use.
pub struct MemoryCache<T>(Arc<Mutex<Vec<Kept<T>>>>);

impl<T> Clone for MemoryCache<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for MemoryCache<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> fmt::Debug for MemoryCache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCache").field("kept", &lock(&self.0).len()).finish()
    }
}

/// What belongs to a memory: its user data.
struct Own<T> {
    home: Weak<Mutex<Vec<Kept<T>>>>,
    address: u64,
    /// There while the memory is in use.
    held: Option<T>,
}

/// The only reference to a memory, which is not in use.
struct Kept<T> {
    memory: *mut RawMemory,
    own: *mut Own<T>,
}

// SAFETY: nobody else refers to the memory, whose own locks make it fit for any thread. What is its own
// moves with it, and holds no `T`.
unsafe impl<T> Send for Kept<T> {}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        // SAFETY: the reference is ours, and is given up once.
        unsafe {
            (*self.memory).memory.mini_object.dispose = None;
            wait_when_freed(self.memory);
            gst::ffi::gst_mini_object_unref(self.memory.cast());
        }
    }
}

/// GStreamer waits for the stream of such a memory, if it has one, before it destroys its textures.
///
/// # Safety
/// The memory has to be valid, and nobody else may use it.
unsafe fn wait_when_freed(memory: *mut RawMemory) {
    // SAFETY: by the caller's promise.
    unsafe { (*memory).memory.mini_object.flags |= NEED_SYNC };
}

impl<T: Send + 'static> MemoryCache<T> {
    /// The place as memory. `held` is dropped with the last reference to the memory, on any thread. Work
    /// that downstream has enqueued may not be done by then: what that drop enqueues on the stream comes after it.
    ///
    /// Errors: an impossible layout, or the library can't be used.
    ///
    /// # Safety
    /// `layout.size()` bytes from the address on have to be device memory that is accessible in the
    /// context, until `held` is dropped and the stream is past what was enqueued by then.
    pub unsafe fn wrap(
        &self,
        place: DeviceRegion<'_>,
        content: BufferAccess,
        held: T,
    ) -> Result<gst::Memory> {
        let strides = place.layout.stride();
        // GStreamer divides by it.
        if place.address == 0 || strides.first().is_none_or(|stride| *stride <= 0) {
            let problem = format!(
                "A picture at {:#x} with strides {strides:?}: run the same version of cuframes on both sides",
                place.address,
            );
            return Err(Error::Mismatch { problem });
        }
        let kept = match self.take(&place) {
            Some(kept) => kept,
            None => self.make(&place)?,
        };
        let (raw, own) = (kept.memory, kept.own);
        std::mem::forget(kept);
        // SAFETY: nobody else refers to the memory, which owns what is its own.
        unsafe {
            (*own).held = Some(held);
            let memory = &mut (*raw).memory;
            // Somebody may have made it shorter.
            (memory.offset, memory.size) = (0, memory.maxsize);
            let flags = &mut memory.mini_object.flags;
            *flags &= !(NEED_DOWNLOAD | NEED_UPLOAD | NEED_SYNC | GST_MEMORY_FLAG_READONLY);
            // What was downloaded of the last content is of no use.
            *flags |= match content {
                BufferAccess::Read => NEED_DOWNLOAD | GST_MEMORY_FLAG_READONLY,
                BufferAccess::AfterStream => NEED_DOWNLOAD | NEED_SYNC,
                BufferAccess::Write => NEED_DOWNLOAD,
            };
            Ok(from_glib_full(raw.cast::<GstMemory>()))
        }
    }

    /// The memory that was made for this place, if there is one.
    fn take(&self, place: &DeviceRegion<'_>) -> Option<Kept<T>> {
        let mut all = lock(&self.0);
        // SAFETY: valid while it is kept.
        let at = all.iter().position(|kept| unsafe { (*kept.own).address } == place.address)?;
        let kept = all.swap_remove(at);
        drop(all);
        kept.fits(place).then_some(kept)
    }

    fn make(&self, place: &DeviceRegion<'_>) -> Result<Kept<T>> {
        let lib = place.context.lib;
        let own = Box::into_raw(Box::new(Own {
            home: Arc::downgrade(&self.0),
            address: place.address,
            held: None::<T>,
        }));
        // SAFETY: all objects are valid, and GStreamer takes references of its own; the layout is copied. No
        // allocator means the default one. The address is valid by the promise of `wrap`'s caller.
        unsafe {
            let memory: *mut RawMemory = (lib.gst_cuda_allocator_alloc_wrapped)(
                std::ptr::null_mut(),
                place.context.raw(),
                place.stream.map_or(std::ptr::null_mut(), CudaStream::raw),
                place.layout.to_glib_none().0,
                place.address,
                own.cast(),
                Some(free::<T>),
            )
            .cast();
            if memory.is_null() {
                // Nothing took it.
                drop(Box::from_raw(own));
                return failed("gst_cuda_allocator_alloc_wrapped");
            }
            (*memory).memory.mini_object.dispose = Some(dispose::<T>);
            Ok(Kept { memory, own })
        }
    }
}

impl<T> Kept<T> {
    fn fits(&self, place: &DeviceRegion<'_>) -> bool {
        let lib = place.context.lib;
        let stream = place.stream.map_or(std::ptr::null_mut(), CudaStream::raw);
        // SAFETY: the memory is valid, and its public fields do not change.
        unsafe {
            (*self.memory).context == place.context.raw()
                && (lib.gst_cuda_memory_get_stream)(self.memory) == stream
                && gst_video::ffi::gst_video_info_is_equal(
                    &raw const (*self.memory).info,
                    place.layout.to_glib_none().0,
                ) != GFALSE
        }
    }
}

/// Keeps a memory to which nobody refers any more, and gives back what it held.
unsafe extern "C" fn dispose<T>(object: *mut GstMiniObject) -> gboolean {
    let memory = object.cast::<RawMemory>();
    // A memory of `make` came through the library.
    let Ok(lib) = GstCuda::get() else { return GTRUE };
    // SAFETY: the memory and what is its own are ours until it is among those that are kept. GStreamer does not
    // look at it behind this function if it was given a reference.
    unsafe {
        let own = (lib.gst_cuda_memory_get_user_data)(memory).cast::<Own<T>>();
        let Some(home) = (*own).home.upgrade() else {
            wait_when_freed(memory);
            return GTRUE;
        };
        let held = (*own).held.take();
        gst::ffi::gst_mini_object_ref(object);
        lock(&home).push(Kept { memory, own });
        // With what it held the allocation may go, and what is kept has to go before.
        drop(home);
        give_back(held);
    }
    GFALSE
}

/// A memory is freed, and what is its own with it.
unsafe extern "C" fn free<T>(own: gpointer) {
    // SAFETY: boxed in `make`; GStreamer calls this once.
    give_back(unsafe { Box::from_raw(own.cast::<Own<T>>()) });
}

/// A panic must not run into C.
fn give_back<T>(held: T) {
    if catch_unwind(AssertUnwindSafe(|| drop(held))).is_err() {
        tracing::error!("a panic while memory was given back");
    }
}
