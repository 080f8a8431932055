//! The sink for frames inside `cuframessink`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use gst::glib;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::video_frame::VideoBufferExt;

use super::cuda::{DeviceSink, DeviceSlots};
use super::pool::{Flushing, slot_buffer};
use super::publication::Publication;
use super::settings::{Memory, SyncMode};
use crate::caps::{CUDA_MEMORY, is_cuda};
use crate::gstcuda::{self, ContextSlot, CudaContext};
use crate::log::CAT;
use crate::messages::post_error;
use crate::meta;
use crate::time::{self, MonotonicOffset};
use cuframes::Publisher;
use cuframes::sync::clock::now_ns;
use cuframes::sync::lock;
use cuframes::{FrameInfo, Planes};

const FRAMES_BETWEEN_QUERIES: u64 = 100;

#[derive(Default)]
struct State {
    format: Option<(gst::Caps, gst_video::VideoInfo)>,
    /// Subscribers have been told of it.
    announced: bool,
    /// What upstream was offered, if that is in device memory.
    slots: Option<Arc<DeviceSlots>>,
    /// For frames in device memory.
    device: Option<DeviceSink>,
    origin: MonotonicOffset,
    frames: u64,
}

#[derive(Default)]
pub(crate) struct FrameSink {
    published: OnceLock<Arc<Publication>>,
    state: Mutex<State>,
    /// Render is to return.
    unlocked: AtomicBool,
    /// The CUDA context that this pipeline shares.
    context: ContextSlot,
}

impl super::FrameSink {
    pub(super) fn new(published: Arc<Publication>) -> Self {
        // Under a name that GStreamer makes up: gst-launch looks for names in bins, too, and would find
        // this sink for an element that a user calls the same.
        let sink: Self = glib::Object::new();
        let _ = sink.imp().published.set(published);
        sink
    }
}

impl FrameSink {
    fn published(&self) -> &Publication {
        self.published.get().expect("set by new")
    }

    fn publisher(&self) -> Option<Arc<Publisher>> {
        self.published().get()
    }

    /// Forgets the publisher. It goes with PAUSED, but a base sink stops with READY.
    pub fn reset(&self) {
        let state = std::mem::take(&mut *lock(&self.state));
        drop(state);
    }

    /// Tells subscribers of a new format, and prepares for the memory that its frames are in.
    fn announce(
        &self,
        state: &mut State,
        publisher: &Publisher,
        first: &gst::BufferRef,
    ) -> Result<(), cuframes::Error> {
        let Some((caps, info)) = state.format.as_ref().filter(|_| !state.announced) else {
            return Ok(());
        };
        // What is still under way on the old device is done before anything comes after it.
        state.device = None;
        let published = self.published();
        let mut sync = SyncMode::Host;
        if is_cuda(caps) {
            let memory = first.peek_memory(0);
            let context = context_of(memory)?;
            let slots = match state.slots.take().filter(|slots| slots.are_in(&context)) {
                Some(slots) => slots,
                None => DeviceSlots::new(&context, published.memory())?,
            };
            sync = slots.sync();
            state.device = Some(DeviceSink::new(publisher, slots.clone(), caps, memory)?);
            state.slots = Some(slots);
        } else {
            state.slots = None;
            publisher.set_format_in(published.host.clone(), &caps.to_string(), info.size())?;
        }
        gst::info!(CAT, imp = self, "Publishing {caps}, sync-mode {sync:?}");
        *lock(&published.sync_mode) = sync;
        state.announced = true;
        Ok(())
    }

    fn fail(&self, error: &cuframes::Error) -> gst::FlowError {
        post_error(self, error);
        gst::FlowError::Error
    }

    /// False where no slot is free.
    fn publish_on_device(
        &self,
        device: &mut DeviceSink,
        publisher: &Publisher,
        buffer: &gst::BufferRef,
        info: &FrameInfo,
    ) -> Result<bool, gst::FlowError> {
        let unlocked = || self.unlocked.load(Ordering::Acquire);
        let published = device.publish(publisher, buffer, info, &unlocked);
        let published = published.map_err(|e| self.fail(&e))?;
        self.published().copied.fetch_add(u64::from(published == Some(true)), Ordering::Relaxed);
        Ok(published.is_some())
    }

    /// False where no slot is free.
    fn publish_on_host(
        &self,
        publisher: &Publisher,
        buffer: &gst::BufferRef,
        video: &gst_video::VideoInfo,
        info: &FrameInfo,
    ) -> Result<bool, gst::FlowError> {
        if self.publish_in_place(publisher, buffer, info) {
            return Ok(true);
        }
        let Some(copy) = self.copy(publisher, buffer, video)? else { return Ok(false) };
        let (size, planes) = (copy.size(), planes(&copy, video));
        self.publish_in_place(publisher, &copy, &FrameInfo { size, planes, ..info.clone() });
        self.published().copied.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Says whether there is a flush, for those upstream who wait for a slot. A sink that is asked to unlock
    /// would be asked to go on before they look.
    fn flushing(&self) -> Flushing {
        let pad = self.obj().sink_pad().downgrade();
        Arc::new(move || {
            pad.upgrade().is_none_or(|pad| pad.pad_flags().contains(gst::PadFlags::FLUSHING))
        })
    }

    /// Offers slots in the context of upstream.
    fn propose_slots(
        &self,
        publisher: &Arc<Publisher>,
        caps: &gst::Caps,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gstcuda::Error> {
        self.context.clear();
        let context = self.context.ensure(&*self.obj(), -1)?;
        let known = lock(&self.state).slots.clone().filter(|slots| slots.are_in(&context));
        // The same for all that upstream asks for: all slots move when their backend is another.
        let slots = match known {
            Some(slots) => slots,
            None => DeviceSlots::new(&context, self.published().memory())?,
        };
        slots.propose(publisher, (&context, self.flushing()), caps, query)?;
        lock(&self.state).slots = Some(slots);
        Ok(())
    }

    /// How far behind its timestamps upstream delivers, if it is live. The base class knows it only where
    /// it synchronises. Asked in no lock, as upstream may ask something back.
    fn note_latency(&self, publisher: &Publisher) {
        let mut query = gst::query::Latency::new();
        if self.obj().sink_pad().peer_query(&mut query)
            && let (true, min, _) = query.result()
        {
            publisher.set_latency(min.into());
        }
    }

    /// Publishes a buffer that may be on a slot. False if it is not, or was published before.
    fn publish_in_place(
        &self,
        publisher: &Publisher,
        buffer: &gst::BufferRef,
        info: &FrameInfo,
    ) -> bool {
        // A frame in several memories is in several allocations.
        if buffer.n_memory() != 1 {
            return false;
        }
        let Ok(map) = buffer.peek_memory(0).map_readable() else { return false };
        let published = publisher.publish_at(map.as_ptr() as u64, true, |start| FrameInfo {
            planes: info.planes.moved(start as u32),
            size: info.size + start as usize,
            ..info.clone()
        });
        published.is_some()
    }

    /// A copy of the frame on a slot, `None` where all are in use.
    fn copy(
        &self,
        publisher: &Publisher,
        buffer: &gst::BufferRef,
        info: &gst_video::VideoInfo,
    ) -> Result<Option<gst::Buffer>, gst::FlowError> {
        let unlocked = || self.unlocked.load(Ordering::Acquire);
        let host = &self.published().host;
        let slot = slot_buffer(publisher, host, info.size(), &unlocked);
        let slot = slot.map_err(|e| self.fail(&e))?;
        let Some(slot) = slot else { return Ok(None) };
        let from = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, info);
        let to = gst_video::VideoFrame::from_buffer_writable(slot, info);
        let (Ok(from), Ok(mut to)) = (from, to) else {
            gst::element_imp_error!(
                self,
                gst::StreamError::Format,
                ("A frame is smaller than its caps say, or can't be mapped: put videoconvert in front of cuframessink")
            );
            return Err(gst::FlowError::Error);
        };
        from.copy(&mut to.as_mut_video_frame_ref()).map_err(|_| gst::FlowError::Error)?;
        Ok(Some(to.into_buffer()))
    }
}

fn context_of(memory: &gst::MemoryRef) -> Result<CudaContext, gstcuda::Error> {
    gstcuda::memory_context(memory).ok_or_else(|| gstcuda::Error::Mismatch {
        problem:
            "Frames with CUDA caps came in other memory: put cudadownload in front of cuframessink"
                .into(),
    })
}

/// Where the planes of a buffer begin, and how long their rows are.
fn planes(buffer: &gst::BufferRef, info: &gst_video::VideoInfo) -> Planes {
    match buffer.meta::<gst_video::VideoMeta>() {
        Some(meta) => Planes::new(meta.offset(), meta.stride()),
        None => Planes::new(info.offset(), info.stride()),
    }
}

#[glib::object_subclass]
impl ObjectSubclass for FrameSink {
    const NAME: &'static str = "GstCuframesFrameSink";
    type Type = super::FrameSink;
    type ParentType = gst_base::BaseSink;
}

impl ObjectImpl for FrameSink {
    fn constructed(&self) {
        self.parent_constructed();
        // It would keep a slot for nothing.
        self.obj().set_enable_last_sample(false);
    }
}

impl GstObjectImpl for FrameSink {}

impl ElementImpl for FrameSink {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "cuframes frame sink",
                "Sink/Video",
                "Publishes frames; part of cuframessink",
                "The cuframes authors <https://github.com/cuframes/gst-plugin-cuframes>",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let (sink, always) = (gst::PadDirection::Sink, gst::PadPresence::Always);
            let caps = crate::caps::frame_caps();
            vec![gst::PadTemplate::new("sink", sink, always, &caps).expect("a valid template")]
        });
        &TEMPLATES
    }

    fn set_context(&self, context: &gst::Context) {
        self.context.set_context(&*self.obj(), context, -1);
        self.parent_set_context(context);
    }
}

impl BaseSinkImpl for FrameSink {
    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        self.reset();
        self.context.clear();
        Ok(())
    }

    fn caps(&self, filter: Option<&gst::Caps>) -> Option<gst::Caps> {
        let all = self.obj().sink_pad().pad_template_caps();
        let memory = self.published().memory().0;
        let fits = |features: &gst::CapsFeaturesRef| match memory {
            Memory::Auto => true,
            Memory::Vmm | Memory::Ipc => features.contains(CUDA_MEMORY),
            Memory::Host => !features.contains(CUDA_MEMORY),
        };
        let fitting = all.iter_with_features().filter(|(_, features)| fits(features));
        let caps: gst::Caps =
            fitting.map(|(s, features)| (s.to_owned(), features.to_owned())).collect();
        Some(match filter {
            Some(filter) => filter.intersect_with_mode(&caps, gst::CapsIntersectMode::First),
            None => caps,
        })
    }

    fn query(&self, query: &mut gst::QueryRef) -> bool {
        self.context.answer(&*self.obj(), query) || BaseSinkImplExt::parent_query(self, query)
    }

    fn set_caps(&self, caps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let info = gst_video::VideoInfo::from_caps(caps)
            .map_err(|_| gst::loggable_error!(CAT, "Not a raw video format ({caps}): put a decoder or videoconvert in front of cuframessink"))?;
        // Where the frames are is known when the first of them comes.
        let mut state = lock(&self.state);
        state.format = Some((caps.clone(), info));
        state.announced = false;
        Ok(())
    }

    fn propose_allocation(
        &self,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        let (caps, need_pool) = query.get_owned();
        // GstVideoMeta is understood but not asked for. A decoder of libav that is free to choose its
        // strides hands out its own pictures, which GStreamer copies because the decoder goes on reading
        // them, and which we would have to copy again. Without it the decoder puts the finished
        // picture into the slot: one copy instead of two.
        let (Some(caps), Some(publisher), true) = (caps, self.publisher(), need_pool) else {
            return Ok(());
        };
        if is_cuda(&caps) {
            query.add_allocation_meta::<gst_video::VideoMeta>(None);
            // Without the pool, frames are copied.
            if let Err(e) = self.propose_slots(&publisher, &caps, query) {
                gst::warning!(
                    CAT,
                    imp = self,
                    "Upstream writes no frames into slots ({e}): each is copied"
                );
            }
            return Ok(());
        }
        let info = gst_video::VideoInfo::from_caps(&caps)
            .map_err(|_| gst::loggable_error!(CAT, "Not a raw video format ({caps}): put a decoder or videoconvert in front of cuframessink"))?;
        let host = self.published().host.clone();
        let pool = super::SlotPool::new(Arc::downgrade(&publisher), host, self.flushing());
        let size = info.size() as u32;
        let mut config = pool.config();
        config.set_params(Some(&caps), size, 0, 0);
        pool.set_config(config).map_err(|e| gst::loggable_error!(CAT, "{e}"))?;
        query.add_allocation_pool(Some(&pool), size, 0, 0);
        Ok(())
    }

    fn render(&self, buffer: &gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let captured = now_ns();
        let publisher = self.publisher().ok_or(gst::FlowError::Flushing)?;
        let obj = self.obj();
        let segment = obj.segment();
        let mut state = lock(&self.state);
        if buffer.n_memory() == 0 {
            return Ok(gst::FlowSuccess::Ok);
        }
        if let Err(e) = self.announce(&mut state, &publisher, buffer) {
            drop(state);
            return Err(self.fail(&e));
        }
        let (_, video) = state.format.clone().ok_or(gst::FlowError::NotNegotiated)?;
        let origin = state.origin.get(&*obj);
        // Without a timestamp, the time of arrival is the best that is known.
        let timestamp = segment
            .downcast_ref::<gst::ClockTime>()
            .zip(origin.zip(buffer.pts()))
            .and_then(|(segment, (origin, pts))| time::to_monotonic_ns(segment, origin, pts));
        let running = segment
            .downcast_ref::<gst::ClockTime>()
            .zip(buffer.pts())
            .and_then(|(segment, pts)| time::to_running_ns(segment, pts));
        let packet = self.published().recent.packet_at(running);
        if packet.is_err() {
            self.published().unmatched_frames.fetch_add(1, Ordering::Relaxed);
        }
        let info = FrameInfo {
            pts: Some(timestamp.unwrap_or(captured)),
            dts: None,
            duration: buffer.duration().map(|d| d.nseconds()),
            captured_ns: captured,
            flags: time::portable_flags(buffer.flags()) | buffer.video_flags().bits(),
            size: buffer.size(),
            planes: planes(buffer, &video),
            crop: buffer.meta::<gst_video::VideoCropMeta>().map(|crop| {
                let (x, y, width, height) = crop.rect();
                cuframes::Crop { x, y, width, height }
            }),
            packet: packet.unwrap_or_default(),
            references: meta::references(buffer),
        };
        let mut device = state.device.take();
        state.frames += 1;
        // From time to time, since it may change.
        let ask = state.frames % FRAMES_BETWEEN_QUERIES == 1;
        drop(state);
        if ask {
            self.note_latency(&publisher);
        }
        let published = loop {
            let published = match &mut device {
                Some(device) => self.publish_on_device(device, &publisher, buffer, &info),
                None => self.publish_on_host(&publisher, buffer, &video, &info),
            };
            match published {
                // The wait for a slot was broken off for a pause, or for a flush, which is the error here.
                Ok(false) if self.unlocked.load(Ordering::Acquire) => {
                    if let Err(e) = obj.wait_preroll() {
                        break Err(e);
                    }
                }
                other => break other,
            }
        };
        lock(&self.state).device = device;
        if !published? {
            gst::debug!(CAT, imp = self, "No slot is free: a frame is dropped");
            publisher.count_dropped();
        }
        Ok(gst::FlowSuccess::Ok)
    }

    fn event(&self, event: gst::Event) -> bool {
        if event.type_() == gst::EventType::Eos
            && self.published().forwards_eos()
            && let Some(publisher) = self.publisher()
        {
            publisher.end_of_frames();
        }
        self.parent_event(event)
    }

    fn unlock(&self) -> Result<(), gst::ErrorMessage> {
        self.unlocked.store(true, Ordering::Release);
        Ok(())
    }

    fn unlock_stop(&self) -> Result<(), gst::ErrorMessage> {
        self.unlocked.store(false, Ordering::Release);
        Ok(())
    }
}
