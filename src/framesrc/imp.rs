/**
 * SECTION:element-cuframessrc
 * @title: cuframessrc
 * @short_description: the frames of a cuframessink in another process
 *
 * Emits the frames that a `cuframessink` with the same key publishes. Buffers are the publisher's own
 * memory, mapped read-only; it is not used again until downstream lets go of the buffer. Downstream
 * may hold `max-held` frames that way. While it holds that many, further frames are copied, so neither
 * side ever waits for the other.
 *
 * The source waits for a publisher that is not there yet, and for the next when it goes away. It posts
 * the messages `cuframes-lost` and `cuframes-reconnected`, with the key and the reason.
 *
 * Timestamps are those of the publisher: the running times of two pipelines on one host agree. Where it
 * publishes the packets as well, buffers have a GstCustomMeta `GstCuframesPacketMeta` that says which packet
 * they were decoded from (`track`, `seq`); those of `cuframespacketsrc` have the same.
 *
 * ## Example
 *
 * |[
 * gst-launch-1.0 cuframessrc key=cam1 ! videoconvert ! autovideosink
 * ]|
 *
 * The same by a URI; what follows the question mark are properties:
 *
 * |[
 * gst-launch-1.0 playbin3 uri=cuframes://cam1?mode=newest
 * ]|
 */
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use gst::glib;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::video_frame::VideoBufferExt;

use super::cuda::DeviceSource;
use super::{IoMode, Mode};
use crate::gstcuda::pool;
use crate::gstcuda::{ContextSlot, CudaContext, CudaStream};
use crate::log::CAT;
use crate::meta;
use crate::properties::{is_cuda, parse_caps, plane_size, post_error};
use crate::source::{self, Latency, Life, Outlet};
use crate::time::{self, Origin};
use cuframes::cuda::Device;
use cuframes::memory::Importer;
use cuframes::sync::clock::now_ns;
use cuframes::sync::lock;
use cuframes::{Error, Frame, Subscriber};

const URI_SCHEME: &str = "cuframes";

const DEFAULT_MODE: Mode = Mode::Newest;
const DEFAULT_MAX_HELD: u32 = 4;
const DEFAULT_SPIN: u32 = 0;
const DEFAULT_IO_MODE: IoMode = IoMode::Auto;
const DEFAULT_CUDA_DEVICE_ID: i32 = -1;

#[derive(Debug, Clone)]
struct Settings {
    source: source::Settings,
    mode: Mode,
    max_held: u32,
    spin: u32,
    io_mode: IoMode,
    cuda_device_id: i32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            source: Default::default(),
            mode: DEFAULT_MODE,
            max_held: DEFAULT_MAX_HELD,
            spin: DEFAULT_SPIN,
            io_mode: DEFAULT_IO_MODE,
            cuda_device_id: DEFAULT_CUDA_DEVICE_ID,
        }
    }
}

#[derive(Debug, Default)]
struct Stats {
    received: u64,
    skipped: u64,
    duplicates: u64,
    copied: u64,
    downloaded: u64,
    reconnects: u64,
    latency: Latency,
}

/// The format of the frames that go out.
#[derive(Clone)]
struct Format {
    generation: u32,
    caps: gst::Caps,
    info: gst_video::VideoInfo,
    /// Frames come in device memory, and downstream takes host memory only.
    download: bool,
}

#[derive(Default)]
struct State {
    subscriber: Option<Subscriber>,
    life: Life,
    format: Option<Format>,
    /// For frames of device memory; of the same publisher as `subscriber`.
    device: Option<DeviceSource>,
    origin: Origin,
    /// What fits the publisher's timestamps to real time; `None` until its first frame.
    shift: Option<i64>,
    /// Sequence number of the last frame of this publisher.
    seq: u64,
    /// Running time of the last buffer.
    last: Option<gst::ClockTime>,
    /// The next buffer does not follow on the last.
    discont: bool,
}

/// Lock order: `state`, then one of the others. No lock but `state` is held across a push or a wait, and
/// `state` is only taken by the streaming thread and when that is stopped. `interrupt` is in none.
pub struct CuframesSrc {
    settings: Mutex<Settings>,
    state: Mutex<State>,
    stats: Mutex<Stats>,
    outlet: Outlet,
    /// The CUDA context that this pipeline shares.
    context: ContextSlot,
}

/// A frame as the content of a GstMemory.
struct FrameBytes(Frame);

impl AsRef<[u8]> for FrameBytes {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl CuframesSrc {
    /// The next frame and its publisher's, however long that takes.
    fn next_frame(&self, state: &mut State, settings: &Settings) -> Result<Frame, gst::FlowError> {
        loop {
            let subscriber = match &mut state.subscriber {
                Some(subscriber) => subscriber,
                none => {
                    let mode = match settings.mode {
                        Mode::Newest => cuframes::Mode::Newest,
                        Mode::Strict => cuframes::Mode::Strict,
                    };
                    // One more than may be held is in hand while it is copied.
                    let asked =
                        (mode, settings.max_held + 1, self.importer(settings.cuda_device_id));
                    let interrupt = &self.outlet.interrupt;
                    let joined = state.life.join(self, &settings.source, asked, interrupt)?;
                    lock(&self.stats).reconnects = state.life.reconnects();
                    state.shift = None;
                    state.format = None;
                    state.seq = 0;
                    state.discont = true;
                    none.insert(joined)
                }
            };
            let spin = Duration::from_micros(settings.spin.into());
            let wait = source::wait(&self.outlet.interrupt, &settings.source, spin);
            let (code, text) = match source::taken(subscriber.next_frame(&wait))? {
                Ok(item) => {
                    self.outlet.note_latency(&*self.obj(), subscriber.latency());
                    return Ok(item);
                }
                Err(lost) => lost,
            };
            state.subscriber = None;
            state.device = None;
            state.life.lost(self, &settings.source, code, &text, &self.outlet.interrupt)?;
        }
    }

    /// Maps device memory in the context that the pipeline shares, once there is some to be mapped.
    fn importer(&self, device_id: i32) -> Importer {
        let weak = self.obj().downgrade();
        Importer::cuda_when_needed(move |publishers| {
            let gone = || std::io::Error::from(std::io::ErrorKind::NotFound);
            let obj = weak.upgrade().ok_or_else(gone)?;
            // By its UUID, since the GPU may have another number here.
            let device_id = match Device::by_uuid(publishers) {
                Ok(device) if device_id < 0 => device.ordinal(),
                _ => device_id,
            };
            Ok(obj.imp().context.ensure(&obj, device_id)?.driver_context()?)
        })
    }

    fn set_format(&self, state: &mut State, frame: &Frame) -> Result<(), gst::FlowError> {
        // What changed downstream while this frame was awaited counts for it already.
        let pending = self.obj().src_pad().needs_reconfigure();
        let known = state.format.as_ref().is_some_and(|f| f.generation == frame.generation);
        if known && !pending {
            return Ok(());
        }
        let format = parse_caps(&frame.caps)
            .and_then(|caps| Some((gst_video::VideoInfo::from_caps(&caps).ok()?, caps)));
        // What downstream knows how to read of other formats is not known here, and can't be checked.
        let known =
            |caps: &gst::Caps| caps.can_intersect(&self.obj().src_pad().pad_template_caps());
        let Some((info, mut caps)) = format.filter(|(_, caps)| known(caps)) else {
            post_error(
                self,
                &protocol(settings_key(self), "its caps are none that a cuframessrc has"),
            );
            return Err(gst::FlowError::Error);
        };
        // What is behind the next element counts, too: some take any memory, to hand it on.
        let download =
            is_cuda(&caps) && self.obj().src_pad().peer_query_caps(Some(&caps)).is_empty();
        if download {
            caps.make_mut().set_features(0, None);
        }
        self.outlet.set_caps(self, &caps)?;
        let format = Format { generation: frame.generation, caps, info, download };
        if let (Some(device), Some(context)) = (&mut state.device, self.context.get()) {
            let offered = self.downstream_stream(&context, &format);
            device.follow(offered).map_err(|e| self.fail(e.into()))?;
        }
        state.format = Some(format);
        Ok(())
    }

    /// What downstream enqueues its work on, if it says so where it offers a pool. A converter reads frames
    /// on that stream and drops them before it is done, so they have to be given back behind it.
    fn downstream_stream(&self, context: &CudaContext, format: &Format) -> Option<CudaStream> {
        if !is_cuda(&format.caps) {
            return None;
        }
        let mut query = gst::query::Allocation::new(Some(&format.caps), true);
        self.obj().src_pad().peer_query(&mut query).then_some(())?;
        let pools = query.allocation_pools();
        pools.into_iter().find_map(|(pool, ..)| pool::stream_of(context, &pool?))
    }

    /// The running time of a frame. One that is older than this pipeline has none: the first of these
    /// goes out at 0, and in strict mode the others right behind it; else they are left out (`None`).
    fn running_time(&self, state: &mut State, frame: &Frame, mode: Mode) -> Option<gst::ClockTime> {
        let pts = frame.info.pts.unwrap_or(frame.info.captured);
        let latency = i64::try_from(self.outlet.latency().as_nanos()).unwrap_or(i64::MAX);
        let shift = *state.shift.get_or_insert_with(|| time::shift(frame.published, pts, latency));
        let origin = state.origin.get(&*self.obj())?;
        match u64::try_from(pts.saturating_add(shift).saturating_sub(origin)) {
            Ok(ns) => Some(gst::ClockTime::from_nseconds(ns)),
            Err(_) => match state.last {
                None => Some(gst::ClockTime::ZERO),
                Some(last) => {
                    (mode == Mode::Strict).then_some(last + gst::ClockTime::from_nseconds(1))
                }
            },
        }
    }

    /// What emits frames of device memory.
    fn device<'a>(&self, state: &'a mut State) -> Result<&'a DeviceSource, gst::FlowError> {
        let State { device, subscriber, format, .. } = state;
        if device.is_none() {
            // The frame was mapped in the context, so there is one.
            let made = self.context.get().zip(subscriber.as_ref());
            let made = made.map(|(context, subscriber)| {
                let stream = format.as_ref().and_then(|f| self.downstream_stream(&context, f));
                DeviceSource::new(context, stream, subscriber)
            });
            *device = made.transpose().map_err(|e| self.fail(e.into()))?;
        }
        device.as_ref().ok_or(gst::FlowError::Flushing)
    }

    fn fail(&self, error: Error) -> gst::FlowError {
        post_error(self, &error);
        gst::FlowError::Error
    }

    /// The frame as a buffer on the publisher's memory, or as a copy where downstream holds all it may.
    fn buffer(
        &self,
        state: &mut State,
        frame: Frame,
        pts: gst::ClockTime,
        io_mode: IoMode,
    ) -> Result<gst::Buffer, gst::FlowError> {
        let info = frame.info.clone();
        let (seq, skipped, published) = (frame.seq, frame.skipped, frame.published);
        let (credit, held) = frame.credit();
        let format = state.format.clone().expect("set for this frame");
        if !fits(&info, &format.info) {
            let caps = &format.caps;
            let problem = format!("a frame does not fit {caps}");
            post_error(self, &protocol(settings_key(self), &problem));
            return Err(gst::FlowError::Error);
        }
        let device = frame.memory().kind().is_device();
        let download = device && format.download;
        let full = match io_mode {
            IoMode::Auto => held >= credit,
            IoMode::Import => false,
            IoMode::Copy => true,
        };
        let mut copy = full && !download;
        let mut buffer = if download {
            self.device(state)?.download(&frame, &format.info).map_err(|e| self.fail(e.into()))?
        } else if device {
            let source = self.device(state)?;
            // The GPU of this pipeline may not reach the memory.
            copy |= !source.reaches(&frame);
            let emit = if copy { DeviceSource::copy } else { DeviceSource::wrap };
            let memory = emit(source, frame, &format.info).map_err(|e| self.fail(e.into()))?;
            let mut buffer = gst::Buffer::new();
            buffer.make_mut().append_memory(memory);
            buffer
        } else {
            gst::Buffer::from_slice(FrameBytes(frame))
        };
        if !download {
            let (planes, (offsets, strides)) = (info.planes.len(), info.planes.to_arrays());
            let buffer = buffer.make_mut();
            gst_video::VideoMeta::add_full(
                buffer,
                gst_video::VideoFrameFlags::empty(),
                format.info.format(),
                format.info.width(),
                format.info.height(),
                &offsets[..planes],
                &strides[..planes],
            )
            .map_err(|_| gst::FlowError::Error)?;
            if let Some(c) = info.crop {
                gst_video::VideoCropMeta::add(buffer, (c.x, c.y, c.width, c.height));
            }
        }
        if copy && !device {
            buffer = buffer.copy_deep().map_err(|_| gst::FlowError::Error)?;
        }
        if copy && let Some(subscriber) = &state.subscriber {
            subscriber.count_copied();
        }
        {
            let buffer = buffer.make_mut();
            let flags = gst::BufferFlags::from_bits_truncate(info.flags);
            let mut flags = gst::BufferFlags::from_bits_truncate(time::portable_flags(flags));
            if std::mem::take(&mut state.discont) || skipped > 0 {
                flags |= gst::BufferFlags::DISCONT;
            }
            buffer.set_flags(flags);
            buffer.set_video_flags(gst_video::VideoBufferFlags::from_bits_truncate(info.flags));
            buffer.set_pts(pts);
            buffer.set_duration(info.duration.map(gst::ClockTime::from_nseconds));
            buffer.set_offset(seq);
            buffer.set_offset_end(seq + 1);
            if let Some(packet) = info.packet {
                meta::add_packet(buffer, packet);
            }
            meta::add_references(buffer, &info.references);
        }
        let mut stats = lock(&self.stats);
        stats.received += 1;
        stats.skipped += skipped;
        stats.copied += u64::from(copy);
        stats.downloaded += u64::from(download);
        stats.duplicates += u64::from(seq <= state.seq);
        stats.latency.add(now_ns().saturating_sub(published));
        state.seq = seq;
        Ok(buffer)
    }
}

fn protocol(key: String, problem: &str) -> Error {
    Error::Protocol { key, problem: problem.to_owned() }
}

fn settings_key(src: &CuframesSrc) -> String {
    lock(&src.settings).source.key.clone().unwrap_or_default()
}

/// Whether every plane of the picture lies within the bytes that came, and what is shown within it.
fn fits(frame: &cuframes::FrameInfo, video: &gst_video::VideoInfo) -> bool {
    let planes = video.n_planes() as usize;
    let shown = frame.crop.is_none_or(|c| {
        let within = |at: u32, of: u32, whole| at.checked_add(of).is_some_and(|end| end <= whole);
        within(c.x, c.width, video.width()) && within(c.y, c.height, video.height())
    });
    shown
        && frame.planes.len() == planes
        && frame.planes.iter().enumerate().all(|(n, plane)| {
            let (rows, row) = plane_size(video, n);
            let (rows, row) = (rows as u64, row as u64);
            let last = u64::try_from(plane.stride).ok().map(|s| s * (rows - 1));
            last.is_some_and(|last| u64::from(plane.offset) + last + row <= frame.size as u64)
        })
}

#[glib::object_subclass]
impl ObjectSubclass for CuframesSrc {
    const NAME: &'static str = "GstCuframesSrc";
    type Type = super::CuframesSrc;
    type ParentType = gst_base::PushSrc;
    type Interfaces = (gst::URIHandler,);

    fn class_init(class: &mut Self::Class) {
        source::inherit_allocation::<Self>(class);
    }

    fn new() -> Self {
        Self {
            settings: Mutex::default(),
            state: Mutex::default(),
            stats: Mutex::default(),
            outlet: Outlet::new(),
            context: ContextSlot::default(),
        }
    }
}

impl ObjectImpl for CuframesSrc {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let mut properties = source::Settings::properties();
            properties.extend([
                glib::ParamSpecEnum::builder_with_default("mode", DEFAULT_MODE)
                    .nick("Mode")
                    .blurb("Which frames to take")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("max-held")
                    .nick("Maximum held")
                    .blurb("Frames of the publisher's memory that downstream may hold; while it holds as many, further frames are copied")
                    .maximum(63)
                    .default_value(DEFAULT_MAX_HELD)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("spin")
                    .nick("Spin")
                    .blurb("Around the time at which the next frame is expected, look for it without sleeping for this long: less latency, more CPU (µs)")
                    .maximum(1_000_000)
                    .default_value(DEFAULT_SPIN)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("io-mode", DEFAULT_IO_MODE)
                    .nick("I/O mode")
                    .blurb("How frames reach downstream")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecInt::builder("cuda-device-id")
                    .nick("CUDA device id")
                    .blurb("The GPU to map device memory for (-1 = that of the pipeline's CUDA context, or the publisher's)")
                    .minimum(-1)
                    .default_value(DEFAULT_CUDA_DEVICE_ID)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                    .nick("Statistics")
                    .blurb("received, skipped, duplicates, copied, downloaded, reconnects; latency-p50 and latency-p99 from publishing to here over the last 512 frames (ns)")
                    .read_only()
                    .build(),
            ]);
            properties
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut settings = lock(&self.settings);
        match pspec.name() {
            // GObject has checked type and range.
            "mode" => settings.mode = value.get().unwrap(),
            "max-held" => settings.max_held = value.get().unwrap(),
            "spin" => settings.spin = value.get().unwrap(),
            "io-mode" => settings.io_mode = value.get().unwrap(),
            "cuda-device-id" => settings.cuda_device_id = value.get().unwrap(),
            name => assert!(settings.source.set(name, value)),
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let settings = lock(&self.settings).clone();
        match pspec.name() {
            "mode" => settings.mode.to_value(),
            "max-held" => settings.max_held.to_value(),
            "spin" => settings.spin.to_value(),
            "io-mode" => settings.io_mode.to_value(),
            "cuda-device-id" => settings.cuda_device_id.to_value(),
            "stats" => {
                let stats = lock(&self.stats);
                let [p50, p99] = stats.latency.quantiles([0.5, 0.99]);
                gst::Structure::builder("cuframes-frame-stats")
                    .field("received", stats.received)
                    .field("skipped", stats.skipped)
                    .field("duplicates", stats.duplicates)
                    .field("copied", stats.copied)
                    .field("downloaded", stats.downloaded)
                    .field("reconnects", stats.reconnects)
                    .field("latency-p50", p50)
                    .field("latency-p99", p99)
                    .build()
                    .to_value()
            }
            name => settings.source.get(name).expect("a property of this class"),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        let obj = self.obj();
        obj.set_live(true);
        obj.set_format(gst::Format::Time);
    }
}

impl GstObjectImpl for CuframesSrc {}

impl ElementImpl for CuframesSrc {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "cuframes source",
                "Source/Video",
                "Takes the video frames that cuframessink publishes in another process",
                "The cuframes authors",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let (src, always) = (gst::PadDirection::Src, gst::PadPresence::Always);
            let caps = crate::properties::frame_caps();
            vec![gst::PadTemplate::new("src", src, always, &caps).expect("a valid template")]
        });
        &TEMPLATES
    }

    fn set_context(&self, context: &gst::Context) {
        let device_id = lock(&self.settings).cuda_device_id;
        self.context.set_context(&*self.obj(), context, device_id);
        self.parent_set_context(context);
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        source::check_key(self, transition, lock(&self.settings).source.key.as_deref())?;
        self.parent_change_state(transition)
    }
}

impl URIHandlerImpl for CuframesSrc {
    const URI_TYPE: gst::URIType = gst::URIType::Src;

    fn protocols() -> &'static [&'static str] {
        &[URI_SCHEME]
    }

    fn uri(&self) -> Option<String> {
        crate::uri::get(self.obj().upcast_ref(), URI_SCHEME)
    }

    fn set_uri(&self, uri: &str) -> Result<(), glib::Error> {
        crate::uri::set(self.obj().upcast_ref(), URI_SCHEME, uri)
    }
}

impl BaseSrcImpl for CuframesSrc {
    fn start(&self) -> Result<(), gst::ErrorMessage> {
        *lock(&self.stats) = Stats::default();
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        let state = std::mem::take(&mut *lock(&self.state));
        drop(state);
        self.outlet.stop();
        // The next run may be on another GPU.
        self.context.clear();
        Ok(())
    }

    fn is_seekable(&self) -> bool {
        false
    }

    fn unlock(&self) -> Result<(), gst::ErrorMessage> {
        self.outlet.interrupt.set();
        Ok(())
    }

    fn unlock_stop(&self) -> Result<(), gst::ErrorMessage> {
        self.outlet.interrupt.clear();
        Ok(())
    }

    fn caps(&self, filter: Option<&gst::Caps>) -> Option<gst::Caps> {
        Some(self.outlet.offer(&*self.obj(), filter))
    }

    fn negotiate(&self) -> Result<(), gst::LoggableError> {
        // The publisher decides, so there is nothing to negotiate before its first frame; then downstream may be
        // another, or want something else.
        lock(&self.state).format = None;
        Ok(())
    }

    fn query(&self, query: &mut gst::QueryRef) -> bool {
        self.outlet.answer(query)
            || self.context.answer(&*self.obj(), query)
            || BaseSrcImplExt::parent_query(self, query)
    }
}

impl PushSrcImpl for CuframesSrc {
    fn create(
        &self,
        _buffer: Option<&mut gst::BufferRef>,
    ) -> Result<gst_base::subclass::base_src::CreateSuccess, gst::FlowError> {
        let settings = lock(&self.settings).clone();
        let mut state = lock(&self.state);
        loop {
            let frame = self.next_frame(&mut state, &settings)?;
            self.set_format(&mut state, &frame)?;
            let Some(pts) = self.running_time(&mut state, &frame, settings.mode) else {
                gst::log!(CAT, imp = self, "Frame {} is older than the pipeline", frame.seq);
                lock(&self.stats).skipped += frame.skipped + 1;
                state.discont = true;
                continue;
            };
            state.last = Some(pts);
            let buffer = self.buffer(&mut state, frame, pts, settings.io_mode)?;
            return Ok(gst_base::subclass::base_src::CreateSuccess::NewBuffer(buffer));
        }
    }
}
