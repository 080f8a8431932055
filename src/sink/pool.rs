// SPDX-License-Identifier: LGPL-2.1-or-later
//! Buffer pool over the publisher's slots: a frame that upstream writes into such a buffer is published without a copy.

use std::sync::{Arc, Mutex, Weak};

use gst::glib;
use gst::subclass::prelude::*;

use super::slot_memory;
use crate::log::CAT;
use cuframes::Error;
use cuframes::Publisher;
use cuframes::memory::Backend;
use cuframes::sync::lock;

/// Returns whether the sink is flushing.
pub(super) type Flushing = Arc<dyn Fn() -> bool + Send + Sync>;

/// Returns a buffer on a free slot; `None` if all slots are in use, or the wait for one was cancelled. The slot returns
/// to the publisher with the last reference to the buffer's memory.
pub(super) fn slot_buffer(
    publisher: &Publisher,
    backend: &Arc<dyn Backend>,
    size: usize,
    cancelled: &dyn Fn() -> bool,
) -> Result<Option<gst::Buffer>, Error> {
    let loan = publisher.loan_in(backend, size, cancelled)?;
    let Some(loan) = loan else { return Ok(None) };
    let mut buffer = gst::Buffer::new();
    let unshared = buffer.make_mut();
    unshared.append_memory(slot_memory::wrap(loan, size));
    // Appending has set the flag, which says that the memory of a pooled buffer was replaced.
    unshared.unset_flags(gst::BufferFlags::TAG_MEMORY);
    Ok(Some(buffer))
}

#[derive(Default)]
struct State {
    publisher: Weak<Publisher>,
    /// Allocates slots in host memory.
    backend: Option<Arc<dyn Backend>>,
    size: Option<usize>,
    flushing: bool,
    sink: Option<Flushing>,
}

#[derive(Default)]
pub(crate) struct SlotPool {
    state: Mutex<State>,
}

impl super::SlotPool {
    pub(super) fn new(
        publisher: Weak<Publisher>,
        backend: Arc<dyn Backend>,
        sink: Flushing,
    ) -> Self {
        let pool: Self = glib::Object::new();
        let mut state = lock(&pool.imp().state);
        (state.publisher, state.backend) = (publisher, Some(backend));
        state.sink = Some(sink);
        drop(state);
        pool
    }
}

#[glib::object_subclass]
impl ObjectSubclass for SlotPool {
    const NAME: &'static str = "GstCuframesSlotPool";
    type Type = super::SlotPool;
    type ParentType = gst::BufferPool;
}

impl ObjectImpl for SlotPool {}
impl GstObjectImpl for SlotPool {}

impl BufferPoolImpl for SlotPool {
    fn set_config(&self, config: &mut gst::BufferPoolConfigRef) -> bool {
        let Some((Some(caps), size, min, max)) = config.params() else {
            gst::warning!(CAT, imp = self, "A pool without caps: set them in its configuration");
            return false;
        };
        let Ok(info) = gst_video::VideoInfo::from_caps(&caps) else {
            gst::warning!(
                CAT,
                imp = self,
                "The caps of the pool are not raw video ({caps}): set others in its configuration"
            );
            return false;
        };
        let size = size.max(info.size() as u32);
        config.set_params(Some(&caps), size, min, max);
        lock(&self.state).size = Some(size as usize);
        self.parent_set_config(config)
    }

    // The publisher keeps the slots, so nothing is allocated in advance or queued here.
    fn start(&self) -> bool {
        true
    }

    fn stop(&self) -> bool {
        true
    }

    fn acquire_buffer(
        &self,
        _params: Option<&gst::BufferPoolAcquireParams>,
    ) -> Result<gst::Buffer, gst::FlowError> {
        let state = lock(&self.state);
        if state.flushing {
            return Err(gst::FlowError::Flushing);
        }
        let (publisher, size) = (state.publisher.upgrade(), state.size);
        let ours = publisher.zip(state.backend.clone());
        let sink = state.sink.clone();
        drop(state);
        let size = size.ok_or(gst::FlowError::NotNegotiated)?;
        let flushing = || lock(&self.state).flushing || sink.as_ref().is_some_and(|sink| sink());
        let slot = match ours.map(|(p, backend)| slot_buffer(&p, &backend, size, &flushing)) {
            None => return Err(gst::FlowError::Flushing),
            Some(Ok(slot)) => slot,
            Some(Err(e)) => {
                gst::error!(CAT, imp = self, "{e}");
                return Err(gst::FlowError::Error);
            }
        };
        if slot.is_none() && flushing() {
            return Err(gst::FlowError::Flushing);
        }
        // Upstream cannot be made to skip a frame, so it gets other memory to write to. By the time the buffer arrives
        // there may be a free slot to copy it into.
        slot.map_or_else(|| gst::Buffer::with_size(size), Ok).map_err(|_| gst::FlowError::Error)
    }

    fn release_buffer(&self, buffer: gst::Buffer) {
        // The slot returns to the publisher with the last reference to the memory.
        drop(buffer);
    }

    fn flush_start(&self) {
        lock(&self.state).flushing = true;
    }

    fn flush_stop(&self) {
        lock(&self.state).flushing = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::testing::TestDir;
    use cuframes::PublisherConfig;
    use cuframes::memory::host::HostBackend;
    use cuframes::memory::{Chunk, Kind};

    /// A backend that claims to allocate device memory.
    struct Device;

    impl Backend for Device {
        fn kind(&self) -> Kind {
            Kind::CudaVmm
        }

        fn allocate(&self, slots: u32, size: usize) -> std::io::Result<Arc<dyn Chunk>> {
            HostBackend.allocate(slots, size)
        }
    }

    #[test]
    fn host_upstream_gets_no_device_slots() {
        gst::init().unwrap();
        let dir = TestDir::new("pool");
        let runtime_dir = Some(dir.dir.clone());
        let config = PublisherConfig { runtime_dir, ..PublisherConfig::new("a") };
        let publisher = Publisher::open(config, Arc::new(Device), |_| {}).unwrap();
        publisher.set_format("video/x-raw", 4096).unwrap();
        let host: Arc<dyn Backend> = Arc::new(HostBackend);
        // Upstream asks for a buffer before the first frame of its format comes.
        let lent = slot_buffer(&publisher, &host, 4096, &|| false).unwrap().unwrap();
        assert_eq!(lent.into_mapped_buffer_writable().unwrap().size(), 4096);
        assert_eq!(publisher.stats().pool.memory, Kind::Host);
    }
}
