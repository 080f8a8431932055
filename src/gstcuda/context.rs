// SPDX-License-Identifier: LGPL-2.1-or-later
//! CUDA contexts, which the elements of a pipeline share.

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;

use cuframes::cuda::{Context, Device};
use gst::glib::ffi::{
    GFALSE, GRecMutex, g_rec_mutex_clear, g_rec_mutex_init, g_rec_mutex_lock, g_rec_mutex_unlock,
};
use gst::glib::gobject_ffi::g_object_unref;
use gst::glib::translate::*;
use gst::prelude::*;

use super::error::{Error, Result, failed};
use super::library::{GstCuda, RawContext};

/// Type of the GstContext that carries a GstCudaContext from one element to another.
const CONTEXT_TYPE: &str = "gst.cuda.context";

/// A GstCudaContext.
#[derive(Clone, Debug)]
pub(crate) struct CudaContext {
    pub(super) lib: &'static GstCuda,
    object: gst::Object,
}

impl CudaContext {
    /// Takes a new reference to the context.
    ///
    /// # Safety
    /// `raw` must be a GstCudaContext that is valid during the call.
    pub(super) unsafe fn from_none(lib: &'static GstCuda, raw: *mut RawContext) -> Self {
        // SAFETY: a GstCudaContext is a GstObject, and valid by the caller's contract.
        Self { lib, object: unsafe { from_glib_none(raw.cast::<gst::ffi::GstObject>()) } }
    }

    pub(super) fn raw(&self) -> *mut RawContext {
        self.object.as_ptr().cast()
    }

    /// Returns the driver's context.
    pub(crate) fn driver_context(&self) -> Result<Context> {
        // SAFETY: the object is a GstCudaContext. The driver's context is valid while the object exists,
        // and the result holds a reference to the object.
        unsafe {
            let handle = (self.lib.gst_cuda_context_get_handle)(self.raw());
            Ok(Context::from_raw(handle.cast(), self.object.clone())?)
        }
    }
}

/// The context of an element, shared with its neighbours.
///
/// While an element asks its neighbours for a context, a neighbour may answer with one. GStreamer then
/// calls the element's `set_context` on the same thread, and reads the result from the same pointer
/// variable. Therefore the variable has a fixed address, and its lock is recursive.
pub(crate) struct ContextSlot {
    /// Boxed, because it must not move while it is locked.
    lock: Box<UnsafeCell<GRecMutex>>,
    /// A reference, or null. Accessed under the lock only.
    context: Box<UnsafeCell<*mut RawContext>>,
}

// SAFETY: the pointer is accessed under the lock only, and any thread may use the context itself.
unsafe impl Send for ContextSlot {}
// SAFETY: as above.
unsafe impl Sync for ContextSlot {}

impl Default for ContextSlot {
    fn default() -> Self {
        let lock = Box::new(UnsafeCell::new(GRecMutex { p: std::ptr::null_mut(), i: [0; 2] }));
        // SAFETY: initialized once, at its final address.
        unsafe { g_rec_mutex_init(lock.get()) };
        Self { lock, context: Box::new(UnsafeCell::new(std::ptr::null_mut())) }
    }
}

impl Drop for ContextSlot {
    fn drop(&mut self) {
        self.clear();
        // SAFETY: no other reference to the slot exists, so the lock is free.
        unsafe { g_rec_mutex_clear(self.lock.get()) };
    }
}

impl fmt::Debug for ContextSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ContextSlot").field(&self.get()).finish()
    }
}

/// Unlocks the slot on drop. The raw pointer makes it `!Send`: the locking thread must unlock.
struct Guard<'a>(&'a ContextSlot, PhantomData<*const ()>);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // SAFETY: locked by `ContextSlot::lock` on this thread.
        unsafe { g_rec_mutex_unlock(self.0.lock.get()) };
    }
}

impl ContextSlot {
    fn lock(&self) -> Guard<'_> {
        // SAFETY: initialized in `default`.
        unsafe { g_rec_mutex_lock(self.lock.get()) };
        Guard(self, PhantomData)
    }

    /// Returns the context, if there is one.
    pub(crate) fn get(&self) -> Option<CudaContext> {
        let _guard = self.lock();
        // SAFETY: under the lock.
        let raw = unsafe { *self.context.get() };
        if raw.is_null() {
            return None;
        }
        // Succeeds, because the context was created by the library.
        let lib = GstCuda::get().ok()?;
        // SAFETY: the slot's reference keeps the context valid, and the lock keeps the reference.
        Some(unsafe { CudaContext::from_none(lib, raw) })
    }

    /// Drops the context. Elements call this when they stop.
    pub(crate) fn clear(&self) {
        let _guard = self.lock();
        // SAFETY: under the lock; the slot's reference is dropped once.
        unsafe {
            let raw = std::mem::replace(&mut *self.context.get(), std::ptr::null_mut());
            if !raw.is_null() {
                g_object_unref(raw.cast());
            }
        }
    }

    /// Returns the context of the element's neighbours or of its application, otherwise a new one, which
    /// is announced to them. `device_id` is -1 for any GPU.
    ///
    /// Fails if the library can't be used or no context can be created.
    pub(crate) fn ensure(
        &self,
        element: &impl IsA<gst::Element>,
        device_id: i32,
    ) -> Result<CudaContext> {
        let lib = GstCuda::get()?;
        let element = element.upcast_ref::<gst::Element>().as_ptr();
        let guard = self.lock();
        // SAFETY: element and slot are valid. No Rust reference to the slot's content exists while
        // callbacks on this thread write it through the same pointer.
        let found = unsafe {
            (lib.gst_cuda_ensure_element_context)(element, device_id, self.context.get())
        };
        drop(guard);
        match self.get() {
            Some(context) if found != GFALSE => Ok(context),
            // The library only logs the reason. Creating a context here gets it from the driver.
            _ => Device::by_ordinal(device_id.max(0) as u32)
                .and_then(|device| Context::primary(&device))
                .map_err(Error::from)
                .and(failed("gst_cuda_ensure_element_context")),
        }
    }

    /// Stores the context if it is a CUDA context that fits `device_id`, and returns whether it did. For
    /// the element's `set_context`.
    pub(crate) fn set_context(
        &self,
        element: &impl IsA<gst::Element>,
        context: &gst::Context,
        device_id: i32,
    ) -> bool {
        // Checked first: contexts of other types are no reason to open the library.
        if context.context_type() != CONTEXT_TYPE {
            return false;
        }
        let Ok(lib) = GstCuda::get() else { return false };
        let element = element.upcast_ref::<gst::Element>().as_ptr();
        let context = context.as_ptr().cast_mut();
        let _guard = self.lock();
        // SAFETY: as in `ensure`; the context is only read.
        let stored = unsafe {
            (lib.gst_cuda_handle_set_context)(element, context, device_id, self.context.get())
        };
        stored != GFALSE
    }

    /// Answers a CONTEXT query for a CUDA context, and returns whether it did. For the queries of the
    /// element and its pads.
    pub(crate) fn answer_query(
        &self,
        element: &impl IsA<gst::Element>,
        query: &mut gst::QueryRef,
    ) -> bool {
        // Checked first: the lock is held while a context is created, which takes long.
        if query.type_() != gst::QueryType::Context {
            return false;
        }
        let Some(context) = self.get() else { return false };
        let element = element.upcast_ref::<gst::Element>().as_ptr();
        // SAFETY: all three are valid, and the query is writable.
        let answered = unsafe {
            (context.lib.gst_cuda_handle_context_query)(element, query.as_mut_ptr(), context.raw())
        };
        answered != GFALSE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs a GPU"]
    fn slot_keeps_its_context() {
        gst::init().unwrap();
        let element = gst::ElementFactory::make("fakesink").build().unwrap();
        let slot = ContextSlot::default();
        let first = slot.ensure(&element, -1).unwrap().driver_context().unwrap();
        let second = slot.ensure(&element, -1).unwrap().driver_context().unwrap();
        assert_eq!(first, second);
        slot.clear();
        assert!(slot.get().is_none());
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn neighbours_share_a_context() {
        gst::init().unwrap();
        let element = gst::ElementFactory::make("fakesink").build().unwrap();
        let slot = ContextSlot::default();
        let own = slot.ensure(&element, -1).unwrap().driver_context().unwrap();
        let shared = element.context(CONTEXT_TYPE).expect("the element has the context");
        let neighbour = ContextSlot::default();
        assert!(neighbour.set_context(&element, &shared, -1));
        assert_eq!(neighbour.get().unwrap().driver_context().unwrap(), own);
        let mut query = gst::query::Context::new(CONTEXT_TYPE);
        assert!(neighbour.answer_query(&element, query.query_mut()));
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn context_differs_from_the_primary_one() {
        gst::init().unwrap();
        let element = gst::ElementFactory::make("fakesink").build().unwrap();
        let own = ContextSlot::default().ensure(&element, 0).unwrap().driver_context().unwrap();
        let primary = Context::primary(&Device::by_ordinal(0).unwrap()).unwrap();
        assert_eq!(own.device(), primary.device());
        assert_ne!(own, primary);
    }
}
