// SPDX-License-Identifier: LGPL-2.1-or-later
/**
 * SECTION:element-cuframessrc
 * @title: cuframessrc
 * @short_description: subscribes to the frames of a cuframessink in another process
 *
 * Outputs the frames that a `cuframessink` with the same key publishes. Buffers are the publisher's
 * memory, mapped read-only. The publisher reuses the memory of a frame after downstream has released
 * the buffer. Downstream may hold `max-frames` frames, including the one in hand. While it holds all
 * others, the frame in hand is copied, so that neither side waits for the other.
 *
 * The source waits for its publisher to start, and reconnects when it is lost. It posts the element
 * messages `cuframes-lost` and `cuframes-reconnected`, with the fields `key` and `reason`.
 *
 * Timestamps are those of the publisher: on one host, running times of two pipelines agree. If the
 * publisher also publishes packets, buffers have a GstCustomMeta `GstCuframesPacketMeta` (`track`,
 * `seq`) that names the packet they were decoded from. Buffers of `cuframespacketsrc` have the same meta.
 *
 * ## Example
 *
 * |[
 * gst-launch-1.0 cuframessrc key=cam1 ! videoconvert ! autovideosink
 * ]|
 *
 * The same by a URI, whose query sets properties:
 *
 * |[
 * gst-launch-1.0 playbin3 uri=cuframes://cam1?mode=newest
 * ]|
 */
use std::sync::{LazyLock, Mutex};

use gst::glib;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;

use super::buffer::{self, Position};
use super::cuda::CudaEmitter;
use super::settings::{IoMode, Mode, Settings};
use super::stats::Stats;
use crate::caps::{always_template, frame_caps, is_cuda, parse_caps};
use crate::gstcuda::pool;
use crate::gstcuda::{ContextSlot, CudaContext, CudaStream};
use crate::log::CAT;
use crate::messages::post_error;
use crate::source::connection::{JoinRequest, PublisherLink, into_flow, wait};
use crate::source::element::{base_src_methods, check_key, impl_source, inherit_allocation};
use crate::source::negotiation::SourcePad;
use crate::time::{self, MonotonicOffset};
use cuframes::cuda::Device;
use cuframes::memory::Importer;
use cuframes::sync::clock::now_ns;
use cuframes::sync::lock;
use cuframes::{Credit, Error, Frame, Subscriber};

/// Format of the buffers.
#[derive(Clone)]
struct Format {
    generation: u32,
    caps: gst::Caps,
    info: gst_video::VideoInfo,
    /// Frames are in device memory, and downstream accepts host memory only.
    download: bool,
}

/// How the pixels of a frame reach downstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transfer {
    Wrap,
    Copy,
    Download,
}

#[derive(Default)]
struct State {
    subscriber: Option<Subscriber>,
    link: PublisherLink,
    format: Option<Format>,
    /// Emits frames in device memory; belongs to the publisher of `subscriber`.
    emitter: Option<CudaEmitter>,
    offset: MonotonicOffset,
    /// Matches the publisher's timestamps to real time; `None` until its first frame.
    skew_ns: Option<i64>,
    /// Sequence number of the last frame from this publisher.
    seq: u64,
    /// Running time of the last buffer.
    last_pts: Option<gst::ClockTime>,
    /// Frames are missing before the next buffer.
    discont: bool,
}

/// Implementation of `cuframessrc`.
///
/// Lock order: `state`, then at most one of the other locks. Only `state` is held across a push or a
/// wait. `state` is locked by the streaming thread, and by other threads while that thread is stopped.
/// The interrupt in `pad` needs no lock.
#[derive(Default)]
pub(crate) struct CuframesSrc {
    settings: Mutex<Settings>,
    state: Mutex<State>,
    stats: Mutex<Stats>,
    pad: SourcePad,
    /// The CUDA context that the elements of this pipeline share.
    context: ContextSlot,
}

impl CuframesSrc {
    /// Returns the next frame. Waits for one, and for publishers to join.
    fn next_frame(&self, state: &mut State, settings: &Settings) -> Result<Frame, gst::FlowError> {
        loop {
            let subscriber = match &mut state.subscriber {
                Some(subscriber) => subscriber,
                none => {
                    let request = JoinRequest {
                        mode: match settings.mode {
                            Mode::Newest => cuframes::Mode::Newest,
                            Mode::Strict => cuframes::Mode::Strict,
                        },
                        max_frames: settings.max_frames,
                        importer: self.importer(settings.cuda_device_id),
                    };
                    let interrupt = &self.pad.interrupt;
                    let joined = state.link.join(self, &settings.source, &request, interrupt)?;
                    lock(&self.stats).reconnects = state.link.reconnects();
                    state.skew_ns = None;
                    state.format = None;
                    state.seq = 0;
                    state.discont = true;
                    none.insert(joined)
                }
            };
            let wait = wait(&settings.source, settings.busy_poll);
            let loss = match into_flow(subscriber.next_frame(&wait))? {
                Ok(item) => {
                    self.pad.set_latency(&*self.obj(), subscriber.latency());
                    return Ok(item);
                }
                Err(loss) => loss,
            };
            state.subscriber = None;
            state.emitter = None;
            state.link.lost(self, &settings.source, &loss, &self.pad.interrupt)?;
        }
    }

    /// Returns an importer that maps device memory in the pipeline's CUDA context.
    ///
    /// The context is created when the first device memory arrives.
    fn importer(&self, device_id: i32) -> Importer {
        let weak = self.obj().downgrade();
        Importer::cuda_lazy(move |publishers| {
            let gone = || std::io::Error::from(std::io::ErrorKind::NotFound);
            let obj = weak.upgrade().ok_or_else(gone)?;
            // The publisher's GPU is found by its UUID, because it may have another number here.
            let device_id = match Device::by_uuid(publishers) {
                Ok(device) if device_id < 0 => device.ordinal(),
                _ => device_id,
            };
            Ok(obj.imp().context.ensure(&obj, device_id)?.driver_context()?)
        })
    }

    /// Negotiates the format of the frame if it or downstream has changed.
    fn set_format(&self, state: &mut State, frame: &Frame) -> Result<(), gst::FlowError> {
        // A change downstream during the wait for this frame already applies to it.
        let pending = self.obj().src_pad().needs_reconfigure();
        let same = state.format.as_ref().is_some_and(|f| f.generation == frame.generation);
        if same && !pending {
            return Ok(());
        }
        let format = parse_caps(&frame.caps)
            .and_then(|caps| Some((gst_video::VideoInfo::from_caps(&caps).ok()?, caps)));
        // Frames in formats outside the template are rejected: their layout can't be checked here, and
        // downstream might trust it.
        let known =
            |caps: &gst::Caps| caps.can_intersect(&self.obj().src_pad().pad_template_caps());
        let Some((info, mut caps)) = format.filter(|(_, caps)| known(caps)) else {
            return Err(self.protocol_error("its caps are not supported by cuframessrc"));
        };
        // The query reaches past the next element: some elements accept any memory to pass it on.
        let download =
            is_cuda(&caps) && self.obj().src_pad().peer_query_caps(Some(&caps)).is_empty();
        if download {
            caps.make_mut().set_features(0, None);
        }
        self.pad.set_caps(self, &caps)?;
        let format = Format { generation: frame.generation, caps, info, download };
        if let (Some(emitter), Some(context)) = (&mut state.emitter, self.context.get()) {
            let stream = self.downstream_stream(&context, &format);
            emitter.set_downstream_stream(stream).map_err(|e| self.fail(e.into()))?;
        }
        state.format = Some(format);
        Ok(())
    }

    /// Returns the CUDA stream on which downstream enqueues its work, if it announces one with the pool
    /// that it proposes.
    ///
    /// A converter reads frames on that stream and drops them before the work is done. Therefore, frames
    /// have to be released after that work.
    fn downstream_stream(&self, context: &CudaContext, format: &Format) -> Option<CudaStream> {
        if !is_cuda(&format.caps) {
            return None;
        }
        let mut query = gst::query::Allocation::new(Some(&format.caps), true);
        self.obj().src_pad().peer_query(&mut query).then_some(())?;
        let pools = query.allocation_pools();
        pools.into_iter().find_map(|(pool, ..)| pool::stream_of(context, &pool?))
    }

    /// Returns the running time of a frame, or `None` to skip it.
    ///
    /// Frames that are older than the pipeline have no running time. The first of them gets 0. Further
    /// ones follow 1 ns apart in strict mode, and are skipped in newest mode.
    fn running_time(&self, state: &mut State, frame: &Frame, mode: Mode) -> Option<gst::ClockTime> {
        let pts_ns = frame.info.pts.unwrap_or(frame.info.captured_ns);
        let latency_ns = self.pad.latency_ns();
        let skew_ns = *state
            .skew_ns
            .get_or_insert_with(|| time::skew(frame.published_ns, pts_ns, latency_ns));
        let offset_ns = state.offset.get(&*self.obj())?;
        match u64::try_from(pts_ns.saturating_add(skew_ns).saturating_sub(offset_ns)) {
            Ok(ns) => Some(gst::ClockTime::from_nseconds(ns)),
            Err(_) => match state.last_pts {
                None => Some(gst::ClockTime::ZERO),
                Some(last) => {
                    (mode == Mode::Strict).then_some(last + gst::ClockTime::from_nseconds(1))
                }
            },
        }
    }

    /// Returns the emitter of frames in device memory, and creates it for the publisher's first such frame.
    fn emitter<'a>(&self, state: &'a mut State) -> Result<&'a CudaEmitter, gst::FlowError> {
        let State { emitter, subscriber, format, .. } = state;
        if emitter.is_none() {
            // The context exists, because the frame was mapped in it.
            let parts = self.context.get().zip(subscriber.as_ref());
            let created = parts.map(|(context, subscriber)| {
                let stream = format.as_ref().and_then(|f| self.downstream_stream(&context, f));
                CudaEmitter::new(context, stream, subscriber)
            });
            *emitter = created.transpose().map_err(|e| self.fail(e.into()))?;
        }
        emitter.as_ref().ok_or(gst::FlowError::Flushing)
    }

    /// Posts the error.
    fn fail(&self, error: Error) -> gst::FlowError {
        post_error(self, &error);
        gst::FlowError::Error
    }

    /// Posts that the publisher sent invalid data.
    fn protocol_error(&self, problem: &str) -> gst::FlowError {
        let key = lock(&self.settings).source.key.clone().unwrap_or_default();
        self.fail(Error::Protocol { key, problem: problem.to_owned() })
    }

    /// Returns how the frame is to reach downstream.
    fn transfer(
        &self,
        state: &mut State,
        frame: &Frame,
        io_mode: IoMode,
        download: bool,
    ) -> Result<Transfer, gst::FlowError> {
        let on_device = frame.memory().kind().is_device();
        if on_device && download {
            return Ok(Transfer::Download);
        }
        let Credit { max: max_frames, held } = frame.credit();
        let copy = match io_mode {
            IoMode::Auto => held >= max_frames,
            IoMode::Import => false,
            IoMode::Copy => true,
        };
        // The GPU of this pipeline may be unable to read the publisher's memory.
        if copy || on_device && !self.emitter(state)?.can_read(frame) {
            return Ok(Transfer::Copy);
        }
        Ok(Transfer::Wrap)
    }

    /// Returns the frame as a buffer, and counts it.
    fn buffer(
        &self,
        state: &mut State,
        frame: Frame,
        pts: gst::ClockTime,
        io_mode: IoMode,
    ) -> Result<gst::Buffer, gst::FlowError> {
        let info = frame.info.clone();
        let (seq, skipped, published_ns) = (frame.seq, frame.skipped, frame.published_ns);
        let format = state.format.clone().expect("set for this frame");
        if !buffer::fits(&info, &format.info) {
            return Err(self.protocol_error(&format!("a frame does not fit {}", format.caps)));
        }
        let transfer = self.transfer(state, &frame, io_mode, format.download)?;
        let on_device = frame.memory().kind().is_device();
        let mut buffer = if on_device {
            let emitter = self.emitter(state)?;
            let buffer = match transfer {
                Transfer::Wrap => emitter.wrap(frame, &format.info).map(buffer::with_memory),
                Transfer::Copy => emitter.copy(frame, &format.info).map(buffer::with_memory),
                Transfer::Download => emitter.download(&frame, &format.info),
            };
            buffer.map_err(|e| self.fail(e.into()))?
        } else {
            buffer::wrap(frame)
        };
        // A downloaded picture has the default layout of its caps.
        if transfer != Transfer::Download {
            buffer::add_layout(buffer.make_mut(), &info, &format.info)?;
        }
        if transfer == Transfer::Copy {
            if !on_device {
                buffer = buffer.copy_deep().map_err(|_| gst::FlowError::Error)?;
            }
            if let Some(subscriber) = &state.subscriber {
                subscriber.count_copied();
            }
        }
        let discont = std::mem::take(&mut state.discont) || skipped > 0;
        buffer::describe(buffer.make_mut(), &info, Position { seq, pts, discont });
        let mut stats = lock(&self.stats);
        stats.received += 1;
        stats.skipped += skipped;
        stats.copied += u64::from(transfer == Transfer::Copy);
        stats.downloaded += u64::from(transfer == Transfer::Download);
        stats.duplicates += u64::from(seq <= state.seq);
        stats.latency.add_ns(now_ns().saturating_sub(published_ns));
        state.seq = seq;
        Ok(buffer)
    }
}

#[glib::object_subclass]
impl ObjectSubclass for CuframesSrc {
    const NAME: &'static str = "GstCuframesSrc";
    type Type = super::CuframesSrc;
    type ParentType = gst_base::PushSrc;
    type Interfaces = (gst::URIHandler,);

    fn class_init(class: &mut Self::Class) {
        inherit_allocation::<Self>(class);
    }
}

impl_source!(CuframesSrc, settings: Settings, uri_scheme: "cuframes");

impl ElementImpl for CuframesSrc {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "cuframes source",
                "Source/Video",
                "Receives the video frames that cuframessink publishes in another process",
                env!("CARGO_PKG_AUTHORS"),
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> =
            LazyLock::new(|| vec![always_template(gst::PadDirection::Src, &frame_caps())]);
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
        check_key(self, transition, lock(&self.settings).source.key.as_deref())?;
        self.parent_change_state(transition)
    }
}

impl BaseSrcImpl for CuframesSrc {
    base_src_methods!();

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        *lock(&self.stats) = Stats::default();
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        // Dropped outside the lock.
        let state = std::mem::take(&mut *lock(&self.state));
        drop(state);
        self.pad.reset();
        // The next run may be on another GPU.
        self.context.clear();
        Ok(())
    }

    fn negotiate(&self) -> Result<(), gst::LoggableError> {
        // The publisher determines the format, so negotiation happens with its next frame. Downstream may
        // have been replaced, or may prefer other memory.
        lock(&self.state).format = None;
        Ok(())
    }

    fn query(&self, query: &mut gst::QueryRef) -> bool {
        self.pad.query_latency(query)
            || self.context.answer_query(&*self.obj(), query)
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
            state.last_pts = Some(pts);
            let buffer = self.buffer(&mut state, frame, pts, settings.io_mode)?;
            return Ok(gst_base::subclass::base_src::CreateSuccess::NewBuffer(buffer));
        }
    }
}
