// SPDX-License-Identifier: LGPL-2.1-or-later
//! GstMemory that owns the loan of a slot in host memory.
//!
//! The sink reads the loan back from a buffer that arrives ([`loan_of`]) and publishes that slot: no search by address
//! is necessary. The memory comes from an allocator of its own, which only this module uses. So foreign memory
//! is never mistaken for a slot, wherever it is. Whether the loan is of this publisher, and was not published
//! before, is checked by [`Publisher::publish_in_place`](cuframes::Publisher::publish_in_place).
//!
//! A part of a slot (`gst_memory_share`) has the slot's memory as its parent and leads to the same loan.

use std::ptr;
use std::sync::OnceLock;

use gst::ffi::{GstAllocator, GstMapFlags, GstMemory};
use gst::glib::ffi::{gboolean, gpointer};
use gst::glib::{self, translate::*};
use gst::prelude::*;
use gst::subclass::prelude::*;

use cuframes::Loan;

/// Memory of [`SlotAllocator`].
#[repr(C)]
struct SlotMemory {
    memory: GstMemory,
    /// Start of the slot.
    data: *mut u8,
    /// `None` in a part of other memory, which is then the parent.
    loan: Option<Loan>,
}

/// The buffers' owners share `&Loan` across threads.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Loan>();
};

mod imp {
    use super::*;

    #[derive(Debug, Default)]
    pub struct SlotAllocator;

    #[glib::object_subclass]
    impl ObjectSubclass for SlotAllocator {
        const NAME: &'static str = "GstCuframesSlotAllocator";
        type Type = super::SlotAllocator;
        type ParentType = gst::Allocator;
    }

    impl ObjectImpl for SlotAllocator {
        fn constructed(&self) {
            self.parent_constructed();
            let allocator: *mut GstAllocator =
                self.obj().upcast_ref::<gst::Allocator>().as_ptr().cast();
            // SAFETY: the object is under construction, so no other thread uses it.
            let allocator = unsafe { &mut *allocator };
            allocator.mem_type = c"CuframesSlot".as_ptr();
            allocator.mem_map = Some(map);
            allocator.mem_unmap = Some(unmap);
            allocator.mem_share = Some(share);
            allocator.mem_is_span = Some(is_span);
            // Copies of the memory are created with the default allocator.
            allocator.object.flags |= gst::ffi::GST_ALLOCATOR_FLAG_CUSTOM_ALLOC;
            allocator.object.flags |= gst::ffi::GST_OBJECT_FLAG_MAY_BE_LEAKED;
        }
    }

    impl GstObjectImpl for SlotAllocator {}

    // SAFETY: `free` frees what `new_memory` has allocated, and `alloc` allocates nothing.
    unsafe impl AllocatorImpl for SlotAllocator {
        unsafe fn alloc(&self, _size: usize, _params: &gst::AllocationParams) -> *mut GstMemory {
            // A slot comes from a publisher.
            ptr::null_mut()
        }

        unsafe fn free(&self, memory: *mut GstMemory) {
            // SAFETY: GStreamer frees memory of this allocator once, and `new_memory` has boxed it.
            drop(unsafe { Box::from_raw(memory.cast::<SlotMemory>()) });
        }
    }
}

glib::wrapper! {
    /// Allocator whose memory is a [`SlotMemory`].
    pub struct SlotAllocator(ObjectSubclass<imp::SlotAllocator>)
        @extends gst::Allocator, gst::Object;
}

fn allocator() -> *mut GstAllocator {
    static ALLOCATOR: OnceLock<SlotAllocator> = OnceLock::new();
    let allocator = ALLOCATOR.get_or_init(glib::Object::new);
    allocator.upcast_ref::<gst::Allocator>().as_ptr().cast()
}

/// The fields that `gst_memory_init` sets, apart from the allocator.
struct Extent {
    flags: u32,
    parent: *mut GstMemory,
    maxsize: usize,
    align: usize,
    offset: usize,
    size: usize,
}

/// Allocates a memory, with one reference that the caller owns.
///
/// # Safety
/// `extent.maxsize` bytes from `data` on have to be valid until the memory is freed, which drops `loan`. The parent is
/// null or a valid memory.
unsafe fn new_memory(data: *mut u8, loan: Option<Loan>, extent: Extent) -> *mut GstMemory {
    // SAFETY: all zeros are a valid GstMemory, which is initialised below.
    let memory = unsafe { std::mem::zeroed() };
    let raw = Box::into_raw(Box::new(SlotMemory { memory, data, loan })).cast::<GstMemory>();
    let Extent { flags, parent, maxsize, align, offset, size } = extent;
    // SAFETY: the first field of the box is a GstMemory. GStreamer takes references to allocator and parent.
    unsafe {
        gst::ffi::gst_memory_init(raw, flags, allocator(), parent, maxsize, align, offset, size);
    }
    raw
}

/// Returns memory for the first `size` bytes of a slot in host memory. The last reference to it drops the loan.
///
/// # Panics
/// If the slot is in device memory, was published, or has fewer bytes.
pub(super) fn wrap(mut loan: Loan, size: usize) -> gst::Memory {
    let data = loan.bytes_mut()[..size].as_mut_ptr();
    let parent = ptr::null_mut();
    let extent = Extent { flags: 0, parent, maxsize: size, align: 0, offset: 0, size };
    // SAFETY: the loan keeps these bytes valid, and moves into the memory. The only reference is passed on.
    unsafe { from_glib_full(new_memory(data, Some(loan), extent)) }
}

/// Returns the loan of the slot that the memory is on; `None` for memory that is not on a slot.
pub(super) fn loan_of(memory: &gst::MemoryRef) -> Option<&Loan> {
    let raw = memory.as_ptr();
    // SAFETY: the memory and its parent, to which it has a reference, are valid during the borrow. Memory of this
    // allocator is a `SlotMemory`, and the loan in it stays until the memory is freed.
    unsafe {
        if (*raw).allocator != allocator() {
            return None;
        }
        let whole = if (*raw).parent.is_null() { raw } else { (*raw).parent };
        (*whole.cast::<SlotMemory>()).loan.as_ref()
    }
}

unsafe extern "C" fn map(memory: *mut GstMemory, _maxsize: usize, _flags: GstMapFlags) -> gpointer {
    // SAFETY: GStreamer passes memory of this allocator. It adds the offset to the result.
    unsafe { (*memory.cast::<SlotMemory>()).data.cast() }
}

unsafe extern "C" fn unmap(_memory: *mut GstMemory) {}

unsafe extern "C" fn share(memory: *mut GstMemory, offset: isize, size: isize) -> *mut GstMemory {
    // SAFETY: GStreamer passes memory of this allocator, and owns the result. The bytes are valid as long as the
    // parent, to which the new memory has a reference.
    unsafe {
        let whole = &*memory;
        let parent = if whole.parent.is_null() { memory } else { whole.parent };
        // As in GStreamer's allocator for system memory, a size of -1 means the rest.
        let offset = offset as usize;
        let size = if size == -1 { whole.size.wrapping_sub(offset) } else { size as usize };
        let extent = Extent {
            flags: whole.mini_object.flags | gst::ffi::GST_MINI_OBJECT_FLAG_LOCK_READONLY,
            parent,
            maxsize: whole.maxsize,
            align: whole.align,
            offset: whole.offset.wrapping_add(offset),
            size,
        };
        new_memory((*memory.cast::<SlotMemory>()).data, None, extent)
    }
}

unsafe extern "C" fn is_span(
    first: *mut GstMemory,
    second: *mut GstMemory,
    offset: *mut usize,
) -> gboolean {
    // SAFETY: GStreamer passes two memories of this allocator with the same parent, and an offset that is null or
    // valid.
    unsafe {
        if let Some(offset) = offset.as_mut() {
            *offset = (*first).offset.wrapping_sub((*(*first).parent).offset);
        }
        ((*first).offset + (*first).size == (*second).offset).into_glib()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use ::testing::TestDir;
    use cuframes::memory::host::HostBackend;
    use cuframes::{Publisher, PublisherConfig};

    #[test]
    fn memory_leads_to_its_loan_and_returns_it() {
        gst::init().unwrap();
        let dir = TestDir::new("slot");
        let runtime_dir = Some(dir.dir.clone());
        let config = PublisherConfig { runtime_dir, ..PublisherConfig::new("a") };
        let publisher = Publisher::open(config, Arc::new(HostBackend), |_| {}).unwrap();
        let loan = publisher.loan(100).unwrap().unwrap();
        let address = loan.address();
        let mut memory = wrap(loan, 80);
        memory.get_mut().unwrap().map_writable().unwrap().copy_from_slice(&[9; 80]);

        let part = memory.share(10..30);
        let nested = part.share(10..);
        assert_eq!(nested.parent().map(|p| p.as_ptr()), Some(memory.as_ptr()));
        assert_eq!(part.is_span(&memory.share(30..40)), Some(10));
        assert_eq!(part.is_span(&memory.share(31..40)), None);
        // A copy is system memory.
        let copy = memory.copy();
        assert!(loan_of(&copy).is_none());
        assert_eq!(copy.map_readable().unwrap().as_slice(), [9; 80]);

        for (memory, start, size) in [(&memory, 0, 80), (&part, 10, 20), (&nested, 20, 10)] {
            assert_eq!(loan_of(memory).unwrap().address(), address);
            let map = memory.map_readable().unwrap();
            assert_eq!((map.as_ptr() as u64 - address, map.size()), (start, size));
        }
        // The last part keeps the loan.
        drop((memory, part));
        assert_ne!(publisher.loan(100).unwrap().unwrap().address(), address);
        drop(nested);
        assert_eq!(publisher.loan(100).unwrap().unwrap().address(), address);
    }
}
