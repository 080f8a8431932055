// SPDX-License-Identifier: LGPL-2.1-or-later
//! The base sink for frames inside `cuframessink`: publishes each buffer in place if it is on a slot, otherwise copies it
//! into one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use gst::glib;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::video_frame::VideoBufferExt;

use super::cuda::{CudaPublisher, CudaSlots, Outcome};
use super::pool::{Flushing, slot_buffer};
use super::publication::Publication;
use super::settings::{Memory, SyncMode};
use super::slot_memory;
use crate::caps::{CUDA_MEMORY, caps_text, is_cuda};
use crate::gstcuda::{self, ContextSlot, CudaContext};
use crate::log::CAT;
use crate::messages::post_error;
use crate::meta;
use crate::time::{self, MonotonicOffset};
use cuframes::Publisher;
use cuframes::sync::clock::now_ns;
use cuframes::sync::lock;
use cuframes::{FrameInfo, Planes};

/// Number of frames between two queries for upstream's latency.
const FRAMES_BETWEEN_QUERIES: u64 = 100;

#[derive(Default)]
struct State {
    format: Option<(gst::Caps, gst_video::VideoInfo)>,
    /// The format was announced to subscribers.
    announced: bool,
    /// The slots that were proposed to upstream, if they are in device memory.
    slots: Option<Arc<CudaSlots>>,
    /// Publishes the frames if they are in device memory.
    device: Option<CudaPublisher>,
    origin: MonotonicOffset,
    frames: u64,
}

#[derive(Default)]
pub(crate) struct FrameSink {
    published: OnceLock<Arc<Publication>>,
    state: Mutex<State>,
    /// `render` has to return.
    unlocked: AtomicBool,
    /// The CUDA context that this pipeline shares.
    context: ContextSlot,
}

impl super::FrameSink {
    pub(super) fn new(published: Arc<Publication>) -> Self {
        // GStreamer generates the name. gst-launch also searches bins for names, and would take this sink for an element
        // to which a user gave the same name.
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

    /// Releases everything that belongs to the publisher. The publisher is dropped from PAUSED to READY, and a base sink
    /// stops only from READY to NULL.
    pub(super) fn reset(&self) {
        let state = std::mem::take(&mut *lock(&self.state));
        drop(state);
    }

    /// Announces a new format to subscribers, and prepares for the kind of memory of its first frame.
    fn announce(
        &self,
        state: &mut State,
        publisher: &Publisher,
        first: &gst::BufferRef,
    ) -> Result<(), cuframes::Error> {
        let Some((caps, info)) = state.format.as_ref().filter(|_| !state.announced) else {
            return Ok(());
        };
        // Waits for the work on the old device before frames of the new format are published.
        state.device = None;
        let published = self.published();
        let mut sync = SyncMode::Host;
        if is_cuda(caps) {
            let memory = first.peek_memory(0);
            let context = context_of(memory)?;
            let slots = match state.slots.take().filter(|slots| slots.are_in(&context)) {
                Some(slots) => slots,
                None => CudaSlots::new(&context, published.memory())?,
            };
            sync = slots.sync();
            state.device = Some(CudaPublisher::new(publisher, slots.clone(), caps, memory)?);
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

    /// Publishes a frame in device memory. Returns false if no slot is free. Sets size and planes of `info`.
    fn publish_on_device(
        &self,
        device: &mut CudaPublisher,
        publisher: &Publisher,
        buffer: &gst::BufferRef,
        info: &mut FrameInfo,
    ) -> Result<bool, gst::FlowError> {
        // SYNC(unlock/render): pairs with the stores in `unlock` and `unlock_stop`.
        let unlocked = || self.unlocked.load(Ordering::Acquire);
        let outcome = device.publish(publisher, buffer, info, &unlocked);
        let outcome = outcome.map_err(|e| self.fail(&e))?;
        if outcome == Outcome::Copied {
            self.published().copied.fetch_add(1, Ordering::Relaxed);
        }
        Ok(outcome != Outcome::NoSlot)
    }

    /// Publishes a frame in host memory. Returns false if no slot is free. Sets size and planes of `info`.
    fn publish_on_host(
        &self,
        publisher: &Publisher,
        buffer: &gst::BufferRef,
        video: &gst_video::VideoInfo,
        info: &mut FrameInfo,
    ) -> Result<bool, gst::FlowError> {
        if publish_in_place(publisher, buffer, video, info) {
            return Ok(true);
        }
        let Some(copy) = self.copy(publisher, buffer, video)? else { return Ok(false) };
        publish_in_place(publisher, &copy, video, info);
        self.published().copied.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Returns a function that tells whether the sink is flushing, for threads of upstream that wait for a slot. `unlock`
    /// is unsuitable for them, because `unlock_stop` may follow before they check.
    fn flushing(&self) -> Flushing {
        let pad = self.obj().sink_pad().downgrade();
        Arc::new(move || {
            pad.upgrade().is_none_or(|pad| pad.pad_flags().contains(gst::PadFlags::FLUSHING))
        })
    }

    /// Proposes slots in upstream's CUDA context.
    fn propose_slots(
        &self,
        publisher: &Arc<Publisher>,
        caps: &gst::Caps,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gstcuda::Error> {
        self.context.clear();
        let context = self.context.ensure(&*self.obj(), -1)?;
        let known = lock(&self.state).slots.clone().filter(|slots| slots.are_in(&context));
        // All proposals share one backend, because another backend would retire all slots.
        let slots = match known {
            Some(slots) => slots,
            None => CudaSlots::new(&context, self.published().memory())?,
        };
        slots.propose(publisher, &context, self.flushing(), caps, query)?;
        lock(&self.state).slots = Some(slots);
        Ok(())
    }

    /// Queries the delay between upstream's timestamps and its buffers, if upstream is live, and passes it to subscribers. The
    /// base class knows it only if it synchronises. No lock is held, because upstream may query this element in turn.
    fn update_latency(&self, publisher: &Publisher) {
        let mut query = gst::query::Latency::new();
        if self.obj().sink_pad().peer_query(&mut query)
            && let (true, min, _) = query.result()
        {
            publisher.set_latency(min.into());
        }
    }

    /// Copies the frame to a buffer on a slot; `None` if all slots are in use.
    fn copy(
        &self,
        publisher: &Publisher,
        buffer: &gst::BufferRef,
        info: &gst_video::VideoInfo,
    ) -> Result<Option<gst::Buffer>, gst::FlowError> {
        // SYNC(unlock/render): pairs with the stores in `unlock` and `unlock_stop`.
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

/// Publishes a buffer that is on a slot of this publisher. Returns false if it is not, or was published before. Sets size
/// and planes of `info`.
fn publish_in_place(
    publisher: &Publisher,
    buffer: &gst::BufferRef,
    video: &gst_video::VideoInfo,
    info: &mut FrameInfo,
) -> bool {
    // A frame in several memories is in several allocations.
    if buffer.n_memory() != 1 {
        return false;
    }
    let memory = buffer.peek_memory(0);
    let Some(loan) = slot_memory::loan_of(memory) else { return false };
    // Fails if upstream still has the memory mapped for writing.
    let Ok(map) = memory.map_readable() else { return false };
    let start = map.as_ptr() as u64 - loan.address();
    info.size = map.size() + start as usize;
    info.planes = planes(buffer, video).moved(start as u32);
    publisher.publish_in_place(loan, info, true).is_some()
}

/// Offsets and strides of a buffer's planes.
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
        // A last sample would occupy a slot.
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
                env!("CARGO_PKG_AUTHORS"),
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
        self.context.answer_query(&*self.obj(), query) || BaseSinkImplExt::parent_query(self, query)
    }

    fn set_caps(&self, caps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let info = gst_video::VideoInfo::from_caps(caps)
            .map_err(|_| gst::loggable_error!(CAT, "Not a raw video format ({caps}): put a decoder or videoconvert in front of cuframessink"))?;
        if let Err(e) = caps_text(caps) {
            let key = self.published().key();
            gst::element_imp_error!(
                self,
                gst::CoreError::Negotiation,
                ("The frames of pad sink of '{key}' can't be published. {e}")
            );
            return Err(gst::loggable_error!(CAT, "{e}"));
        }
        // The kind of memory is known with the first frame.
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
        // GstVideoMeta is understood but not requested. With it, a libav decoder chooses its own strides and outputs its
        // reference pictures; GStreamer copies these because the decoder still reads them, and this sink would have to copy
        // them again. Without it, the decoder copies the finished picture into the slot: one copy instead of two.
        let (Some(caps), Some(publisher), true) = (caps, self.publisher(), need_pool) else {
            return Ok(());
        };
        if is_cuda(&caps) {
            query.add_allocation_meta::<gst_video::VideoMeta>(None);
            // Upstream can continue without the pool; its frames are then copied.
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
        // The time of arrival replaces a missing timestamp.
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
        let mut info = FrameInfo {
            pts: Some(timestamp.unwrap_or(captured)),
            dts: None,
            duration: buffer.duration().map(|d| d.nseconds()),
            captured_ns: captured,
            flags: time::portable_flags(buffer.flags()) | buffer.video_flags().bits(),
            crop: buffer.meta::<gst_video::VideoCropMeta>().map(|crop| {
                let (x, y, width, height) = crop.rect();
                cuframes::Crop { x, y, width, height }
            }),
            packet: packet.unwrap_or_default(),
            references: meta::references(buffer),
            // Size and planes depend on the memory that is published.
            ..Default::default()
        };
        let mut device = state.device.take();
        state.frames += 1;
        // The latency may change at any time.
        let query_latency = state.frames % FRAMES_BETWEEN_QUERIES == 1;
        drop(state);
        if query_latency {
            self.update_latency(&publisher);
        }
        let published = loop {
            let published = match &mut device {
                Some(device) => self.publish_on_device(device, &publisher, buffer, &mut info),
                None => self.publish_on_host(&publisher, buffer, &video, &mut info),
            };
            match published {
                // The wait for a slot was cancelled by a pause, after which the frame is tried again, or by a flush, which is the
                // error here.
                // SYNC(unlock/render): as in `publish_on_device`.
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
        // SYNC(unlock/render): pairs with the load in `render`.
        self.unlocked.store(true, Ordering::Release);
        Ok(())
    }

    fn unlock_stop(&self) -> Result<(), gst::ErrorMessage> {
        // SYNC(unlock/render): pairs with the load in `render`.
        self.unlocked.store(false, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::testing::TestDir;
    use cuframes::{Interrupt, Next, Subscriber, SubscriberConfig, Wait};

    const WIDTH: usize = 64;
    const HEIGHT: usize = 48;
    const SIZE: usize = WIDTH * HEIGHT;

    /// A `cuframessink` whose pad the test pushes buffers into.
    struct Sink {
        element: super::super::CuframesSink,
        pad: gst::Pad,
        caps: gst::Caps,
        // Dropped last, which removes the directory.
        dir: TestDir,
    }

    impl Sink {
        fn new(key: &str) -> Self {
            gst::init().unwrap();
            let dir = TestDir::new(key);
            let element: super::super::CuframesSink = glib::Object::builder()
                .property("key", key)
                .property("runtime-dir", dir.dir.to_str().unwrap())
                .build();
            let pad = element.request_pad_simple("sink").unwrap();
            element.set_state(gst::State::Playing).unwrap();
            let format = gst_video::VideoFormat::Gray8;
            let info = gst_video::VideoInfo::builder(format, WIDTH as u32, HEIGHT as u32);
            let caps = info.build().unwrap().to_caps().unwrap();
            let segment = gst::FormattedSegment::<gst::ClockTime>::new();
            assert!(pad.send_event(gst::event::StreamStart::new("test")));
            assert!(pad.send_event(gst::event::Caps::new(&caps)));
            assert!(pad.send_event(gst::event::Segment::new(&segment)));
            Self { element, pad, caps, dir }
        }

        /// The pool that the sink proposes, configured for buffers of `size` bytes.
        fn pool(&self, size: usize) -> gst::BufferPool {
            let mut query = gst::query::Allocation::new(Some(&self.caps), true);
            assert!(self.pad.query(query.query_mut()));
            let pool = query.allocation_pools().find_map(|(pool, ..)| pool).unwrap();
            let mut config = pool.config();
            config.set_params(Some(&self.caps), size as u32, 0, 0);
            pool.set_config(config).unwrap();
            pool.set_active(true).unwrap();
            pool
        }

        fn push(&self, buffer: &gst::Buffer) {
            assert_eq!(self.pad.chain(buffer.clone()), Ok(gst::FlowSuccess::Ok));
        }

        /// Numbers of frames that were published and copied.
        fn counts(&self) -> (u64, u64) {
            let stats = self.element.property::<gst::Structure>("stats");
            (stats.get("published").unwrap(), stats.get("copied").unwrap())
        }

        fn subscribe(&self, interrupt: &Interrupt) -> Subscriber {
            let key = self.element.property::<String>("key");
            let runtime_dir = Some(self.dir.dir.clone());
            let config = SubscriberConfig { runtime_dir, ..SubscriberConfig::new(key) };
            Subscriber::connect(config, None, interrupt).unwrap()
        }
    }

    impl Drop for Sink {
        fn drop(&mut self) {
            let _ = self.element.set_state(gst::State::Null);
        }
    }

    fn acquire(pool: &gst::BufferPool, value: u8) -> gst::Buffer {
        let mut buffer = pool.acquire_buffer(None).unwrap();
        buffer.get_mut().unwrap().map_writable().unwrap().fill(value);
        buffer
    }

    /// Returns the offset of the newest frame in its slot, and its first byte.
    fn newest(subscriber: &mut Subscriber) -> (u32, u8) {
        let next = subscriber.next_frame(&Wait::default()).unwrap();
        let Next::Item(frame) = next else { panic!("the frame is there") };
        let offset = frame.info.planes[0].offset;
        (offset, frame.bytes().unwrap()[offset as usize])
    }

    #[test]
    fn buffer_of_the_pool_is_published_in_place_and_stays_readable() {
        let (sink, interrupt) = (Sink::new("slot-in-place"), Interrupt::new().unwrap());
        let pool = sink.pool(SIZE);
        let kept = acquire(&pool, 1);
        sink.push(&kept);
        let mut subscriber = sink.subscribe(&interrupt);
        assert_eq!(newest(&mut subscriber), (0, 1));
        // Upstream keeps the first buffer. Its slot is not reused, however many frames follow.
        for n in 0..100 {
            sink.push(&acquire(&pool, n));
        }
        assert!(kept.map_readable().unwrap().iter().all(|byte| *byte == 1));
        assert_eq!(newest(&mut subscriber), (0, 99));
        assert_eq!(sink.counts(), (101, 0));
    }

    #[test]
    fn buffer_that_was_published_is_copied() {
        let (sink, interrupt) = (Sink::new("slot-twice"), Interrupt::new().unwrap());
        let buffer = acquire(&sink.pool(SIZE), 2);
        sink.push(&buffer);
        sink.push(&buffer);
        // A copy of the buffer shares the memory.
        sink.push(&buffer.copy());
        assert_eq!(sink.counts(), (3, 2));
        assert_eq!(newest(&mut sink.subscribe(&interrupt)), (0, 2));
    }

    #[test]
    fn buffer_of_another_sink_is_copied() {
        let (one, other) = (Sink::new("slot-one"), Sink::new("slot-other"));
        let interrupt = Interrupt::new().unwrap();
        let buffer = acquire(&one.pool(SIZE), 3);
        other.push(&buffer);
        assert_eq!(other.counts(), (1, 1));
        one.push(&buffer);
        assert_eq!(one.counts(), (1, 0));
        for sink in [&one, &other] {
            assert_eq!(newest(&mut sink.subscribe(&interrupt)), (0, 3));
        }
    }

    #[test]
    fn buffer_of_an_earlier_publisher_is_copied() {
        let sink = Sink::new("slot-earlier");
        let buffer = acquire(&sink.pool(SIZE), 4);
        sink.element.set_state(gst::State::Null).unwrap();
        sink.element.set_state(gst::State::Playing).unwrap();
        let segment = gst::FormattedSegment::<gst::ClockTime>::new();
        assert!(sink.pad.send_event(gst::event::StreamStart::new("test")));
        assert!(sink.pad.send_event(gst::event::Caps::new(&sink.caps)));
        assert!(sink.pad.send_event(gst::event::Segment::new(&segment)));
        sink.push(&buffer);
        assert_eq!(sink.counts().0, 1);
        assert_ne!(sink.counts().1, 0);
    }

    #[test]
    fn part_of_a_slot_is_published_with_its_offset() {
        const OFFSET: usize = 64;
        let (sink, interrupt) = (Sink::new("slot-part"), Interrupt::new().unwrap());
        let mut whole = sink.pool(OFFSET + SIZE).acquire_buffer(None).unwrap();
        whole.get_mut().unwrap().map_writable().unwrap()[OFFSET..].fill(5);
        let rest = whole.peek_memory(0).share(OFFSET / 2..);
        let part = rest.share(OFFSET / 2..);
        assert_eq!(part.size(), SIZE);
        let mut buffer = gst::Buffer::new();
        buffer.get_mut().unwrap().append_memory(part);
        drop((whole, rest));
        sink.push(&buffer);
        assert_eq!(sink.counts(), (1, 0));
        let mut subscriber = sink.subscribe(&interrupt);
        assert_eq!(newest(&mut subscriber), (OFFSET as u32, 5));
    }

    #[test]
    fn foreign_memory_is_copied() {
        let (sink, interrupt) = (Sink::new("slot-foreign"), Interrupt::new().unwrap());
        sink.push(&gst::Buffer::from_mut_slice(vec![6; SIZE]));
        sink.push(&gst::Buffer::with_size(SIZE).unwrap());
        sink.push(&gst::Buffer::from_mut_slice(vec![7; SIZE]));
        assert_eq!(sink.counts(), (3, 3));
        assert_eq!(newest(&mut sink.subscribe(&interrupt)), (0, 7));
    }
}
