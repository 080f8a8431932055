// SPDX-License-Identifier: LGPL-2.1-or-later
//! Cache of GstCudaMemory for regions that are used again, such as the slots of a pool.
//!
//! Elements attach data of their own to a memory, for example textures or the registration with an
//! encoder. When GStreamer frees a memory, it waits for the work that writes it, but destroys the
//! textures even if enqueued work still reads through them. Therefore a memory is created once for a
//! region and kept when its last reference is dropped, as buffer pools do. It must be freed before the
//! region, so each allocation has a [`MemoryCache`] of its own.

use std::any::TypeId;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use cuframes::sync::lock;
use gst::ffi::{GST_MEMORY_FLAG_READONLY, GstMemory, GstMiniObject};
use gst::glib::Quark;
use gst::glib::ffi::{GFALSE, GQuark, GTRUE, gboolean, gpointer};
use gst::glib::translate::*;
use gst_video::VideoInfo;

use super::context::CudaContext;
use super::error::{Error, Result, failed};
use super::library::{GstCuda, RawMemory};
use super::memory::{NEED_DOWNLOAD, NEED_SYNC, NEED_UPLOAD};
use super::stream::CudaStream;

/// Access that users of wrapped memory have to its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BufferAccess {
    /// The content is complete and read-only. Mapping for writing fails, or makes a copy.
    Read,
    /// The content is complete after the work on the memory's stream, for which users must wait.
    AfterStream,
    /// The user writes the content.
    Write,
}

/// A region of device memory to wrap.
pub(crate) struct DeviceRegion<'a> {
    /// Address on the device.
    pub(crate) address: u64,
    /// Offsets, strides and size of the planes in the region.
    pub(crate) layout: &'a VideoInfo,
    pub(crate) context: &'a CudaContext,
    /// The stream on which elements enqueue their work; `None` is the default stream.
    pub(crate) stream: Option<&'a CudaStream>,
}

/// Wraps regions of one allocation as GstCudaMemory, which holds a `T` while it is in use.
///
/// Clones share the cache. The last clone frees the memories that are not in use.
pub(crate) struct MemoryCache<T>(Arc<Mutex<Vec<Idle<T>>>>);

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
        f.debug_struct("MemoryCache").field("idle", &lock(&self.0).len()).finish()
    }
}

/// User data of a memory. The memory owns it.
#[repr(C)]
struct UserData<T> {
    /// Identifies `T`. First field, so that it can be read before `T` is known.
    type_id: TypeId,
    cache: Weak<Mutex<Vec<Idle<T>>>>,
    address: u64,
    /// `Some` while the memory is in use.
    held: Option<T>,
}

/// The only reference to a memory that is not in use.
struct Idle<T> {
    memory: *mut RawMemory,
    data: *mut UserData<T>,
}

// SAFETY: this is the only reference to the memory, which has no affinity to a thread. The user data moves
// with it, and contains no `T` while the memory is idle.
unsafe impl<T> Send for Idle<T> {}

impl<T> Drop for Idle<T> {
    fn drop(&mut self) {
        // SAFETY: the reference is owned by this object and dropped once. Without `dispose` the memory is
        // freed.
        unsafe {
            (*self.memory).memory.mini_object.dispose = None;
            wait_on_free(self.memory);
            gst::ffi::gst_mini_object_unref(self.memory.cast());
        }
    }
}

/// Makes GStreamer wait for the memory's stream, if it has one, before it destroys the textures.
///
/// # Safety
/// The memory must be valid, and the caller must have the only reference to it.
unsafe fn wait_on_free(memory: *mut RawMemory) {
    // SAFETY: the caller's contract.
    unsafe { (*memory).memory.mini_object.flags |= NEED_SYNC };
}

impl<T: Send + 'static> MemoryCache<T> {
    /// Wraps a region. `held` is dropped with the last reference to the result, on any thread. Work
    /// enqueued by downstream may still run at that time; work that the drop enqueues on the same stream
    /// runs after it.
    ///
    /// Fails if the layout is impossible or the library refuses the call.
    ///
    /// # Safety
    /// `layout.size()` bytes from the address on must be device memory that is accessible in the context,
    /// until `held` is dropped and the stream has executed the work enqueued by then.
    pub(crate) unsafe fn wrap(
        &self,
        region: DeviceRegion<'_>,
        access: BufferAccess,
        held: T,
    ) -> Result<gst::Memory> {
        let strides = region.layout.stride();
        // GStreamer divides by the first stride.
        if region.address == 0 || strides.first().is_none_or(|stride| *stride <= 0) {
            let problem = format!(
                "A frame at {:#x} with strides {strides:?}: run the same version of cuframes on both sides",
                region.address,
            );
            return Err(Error::Mismatch { problem });
        }
        let idle = match self.take(&region) {
            Some(idle) => idle,
            None => self.make(&region)?,
        };
        let (raw, data) = (idle.memory, idle.data);
        // The reference moves to the result.
        std::mem::forget(idle);
        // SAFETY: this is the only reference to the memory, which owns the user data.
        unsafe {
            (*data).held = Some(held);
            let memory = &mut (*raw).memory;
            // The last user may have resized it.
            (memory.offset, memory.size) = (0, memory.maxsize);
            let flags = &mut memory.mini_object.flags;
            *flags &= !(NEED_DOWNLOAD | NEED_UPLOAD | NEED_SYNC | GST_MEMORY_FLAG_READONLY);
            // NEED_DOWNLOAD in each case: the CPU's copy is of the previous content.
            *flags |= match access {
                BufferAccess::Read => NEED_DOWNLOAD | GST_MEMORY_FLAG_READONLY,
                BufferAccess::AfterStream => NEED_DOWNLOAD | NEED_SYNC,
                BufferAccess::Write => NEED_DOWNLOAD,
            };
            Ok(from_glib_full(raw.cast::<GstMemory>()))
        }
    }

    /// Takes the idle memory of the region out of the cache. A memory of the same address that does not
    /// match in other respects is freed.
    fn take(&self, region: &DeviceRegion<'_>) -> Option<Idle<T>> {
        let mut all = lock(&self.0);
        // SAFETY: the user data is valid while its memory is.
        let at = all.iter().position(|idle| unsafe { (*idle.data).address } == region.address)?;
        let idle = all.swap_remove(at);
        // A memory that does not match is freed outside the lock.
        drop(all);
        idle.matches(region).then_some(idle)
    }

    fn make(&self, region: &DeviceRegion<'_>) -> Result<Idle<T>> {
        let lib = region.context.lib;
        let data = Box::into_raw(Box::new(UserData {
            type_id: TypeId::of::<T>(),
            cache: Arc::downgrade(&self.0),
            address: region.address,
            held: None::<T>,
        }));
        // SAFETY: all objects are valid, and the library takes references of its own; the layout is
        // copied. A null allocator is the default one. The address is valid by the contract of `wrap`.
        unsafe {
            let memory: *mut RawMemory = (lib.gst_cuda_allocator_alloc_wrapped)(
                std::ptr::null_mut(),
                region.context.raw(),
                region.stream.map_or(std::ptr::null_mut(), CudaStream::raw),
                region.layout.to_glib_none().0,
                region.address,
                data.cast(),
                Some(free::<T>),
            )
            .cast();
            if memory.is_null() {
                // The library did not take the user data.
                drop(Box::from_raw(data));
                return failed("gst_cuda_allocator_alloc_wrapped");
            }
            (*memory).memory.mini_object.dispose = Some(dispose::<T>);
            gst::ffi::gst_mini_object_set_qdata(memory.cast(), quark(), data.cast(), None);
            Ok(Idle { memory, data })
        }
    }
}

impl<T: Sync + 'static> MemoryCache<T> {
    /// Returns the `T` that the memory holds, if it was created by a cache of `T`. Any other memory returns `None`.
    pub(crate) fn held_by(memory: &gst::MemoryRef) -> Option<&T> {
        // SAFETY: the memory is valid during the borrow. Only `make` uses the quark, and its `UserData` lives as long as
        // the memory; `held` changes only while there is no other reference to the memory. A part of a memory has the whole one
        // as its parent.
        unsafe {
            let memory = memory.as_ptr().cast_mut();
            let whole = if (*memory).parent.is_null() { memory } else { (*memory).parent };
            let data = gst::ffi::gst_mini_object_get_qdata(whole.cast(), quark());
            let type_id = data.cast::<TypeId>();
            if type_id.is_null() || *type_id != TypeId::of::<T>() {
                return None;
            }
            (*data.cast::<UserData<T>>()).held.as_ref()
        }
    }
}

fn quark() -> GQuark {
    static QUARK: OnceLock<Quark> = OnceLock::new();
    QUARK.get_or_init(|| Quark::from_str("cuframes-memory-cache")).into_glib()
}

impl<T> Idle<T> {
    /// Returns whether context, stream and layout are those of the region.
    fn matches(&self, region: &DeviceRegion<'_>) -> bool {
        let lib = region.context.lib;
        let stream = region.stream.map_or(std::ptr::null_mut(), CudaStream::raw);
        // SAFETY: the memory is valid; its public fields never change.
        unsafe {
            (*self.memory).context == region.context.raw()
                && (lib.gst_cuda_memory_get_stream)(self.memory) == stream
                && gst_video::ffi::gst_video_info_is_equal(
                    &raw const (*self.memory).info,
                    region.layout.to_glib_none().0,
                ) != GFALSE
        }
    }
}

/// Called when the last reference to a memory is dropped: moves the memory to its cache and drops `held`.
/// If the cache is gone, returns true, which makes GStreamer free the memory.
unsafe extern "C" fn dispose<T>(object: *mut GstMiniObject) -> gboolean {
    let memory = object.cast::<RawMemory>();
    // Succeeds, because `make` used the library.
    let Ok(lib) = GstCuda::get() else { return GTRUE };
    // SAFETY: this function has the only reference to the memory and its user data until it pushes them to
    // the cache. GStreamer does not access the memory after the return if the reference count was raised.
    unsafe {
        let data = (lib.gst_cuda_memory_get_user_data)(memory).cast::<UserData<T>>();
        let Some(cache) = (*data).cache.upgrade() else {
            wait_on_free(memory);
            return GTRUE;
        };
        let held = (*data).held.take();
        gst::ffi::gst_mini_object_ref(object);
        lock(&cache).push(Idle { memory, data });
        // Dropping `held` may free the allocation and the cache with it. The cache must go first, so no
        // reference to it may be left here.
        drop(cache);
        drop_held(held);
    }
    GFALSE
}

/// Called when a memory is freed: frees its user data.
unsafe extern "C" fn free<T>(data: gpointer) {
    // SAFETY: boxed in `make`; the library calls this once.
    drop_held(unsafe { Box::from_raw(data.cast::<UserData<T>>()) });
}

/// Drops `held`. A panic ends here, because it must not unwind into C.
fn drop_held<T>(held: T) {
    if catch_unwind(AssertUnwindSafe(|| drop(held))).is_err() {
        tracing::error!("panic while the content of a buffer was released");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gstcuda::fixture::{FRAME, Gpu, pattern};
    use crate::gstcuda::{map_device, memory_context, memory_info, memory_stream};
    use cuframes::cuda::{Access, Stream, VmmAllocation, VmmMapping};

    /// A frame in memory that was mapped in another context than GStreamer's, as by a subscriber.
    struct Region {
        gpu: Gpu,
        work: Stream,
        info: VideoInfo,
        /// Before `map`: idle memory must be freed before its region.
        cache: MemoryCache<Arc<VmmMapping>>,
        map: Arc<VmmMapping>,
    }

    impl Region {
        fn new() -> Self {
            let gpu = Gpu::new();
            let len = FRAME.next_multiple_of(VmmAllocation::granularity(&gpu.primary).unwrap());
            let allocation = VmmAllocation::create(&gpu.primary, len).unwrap();
            let map = VmmMapping::new(&gpu.primary, &allocation, len, Access::ReadWrite).unwrap();
            let work = gpu.stream.driver_stream(&gpu.driver);
            let info = gpu.nv12();
            Self { gpu, work, info, cache: MemoryCache::default(), map: Arc::new(map) }
        }

        fn write(&self, pixels: &[u8]) {
            // SAFETY: the mapping is longer than a frame.
            unsafe { self.work.write(self.map.address(), pixels) }.unwrap();
        }

        fn wrap(&self) -> gst::Memory {
            let (context, stream) = (&self.gpu.context, Some(&self.gpu.stream));
            let address = self.map.address();
            let region = DeviceRegion { address, layout: &self.info, context, stream };
            // SAFETY: the memory holds the mapping, and no work is enqueued when it is dropped.
            unsafe { self.cache.wrap(region, BufferAccess::Read, self.map.clone()) }.unwrap()
        }

        /// Number of memories that hold the mapping.
        fn holders(&self) -> usize {
            Arc::strong_count(&self.map) - 1
        }
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn wrapped_memory_has_the_properties_of_its_region() {
        let region = Region::new();
        let memory = region.wrap();
        assert!(memory.is_type("gst.cuda.memory"));
        assert_eq!(memory_stream(&memory).as_ref(), Some(&region.gpu.stream));
        let context = memory_context(&memory).unwrap().driver_context().unwrap();
        assert_eq!(context, region.gpu.driver);
        let layout = memory_info(&memory).unwrap();
        assert_eq!(layout.stride(), region.info.stride());
        assert_eq!(layout.offset(), region.info.offset());
        let device = map_device(&memory).unwrap();
        assert_eq!((device.address(), device.len()), (region.map.address(), FRAME));
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn wrapped_memory_is_downloaded_for_the_cpu() {
        let region = Region::new();
        region.write(&pattern(3));
        assert!(region.wrap().map_readable().unwrap().as_slice() == pattern(3));
        // The memory is used again, and its content is not the one downloaded before.
        region.write(&pattern(4));
        assert!(region.wrap().map_readable().unwrap().as_slice() == pattern(4));
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn read_only_memory_refuses_writers() {
        let region = Region::new();
        assert!(region.wrap().into_mapped_memory_writable().is_err());
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn cache_returns_idle_memory_only() {
        let region = Region::new();
        let (first, second) = (region.wrap(), region.wrap());
        assert_ne!(first.as_ptr(), second.as_ptr());
        assert_eq!(region.holders(), 2);
        let one_of = [first.as_ptr(), second.as_ptr()];
        drop((first, second));
        assert_eq!(region.holders(), 0);
        assert!(one_of.contains(&region.wrap().as_ptr()));
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn memory_in_use_outlives_its_cache() {
        let mut region = Region::new();
        let memory = region.wrap();
        region.cache = MemoryCache::default();
        assert_eq!(region.holders(), 1);
        drop(memory);
        assert_eq!(region.holders(), 0);
    }
}
