// SPDX-License-Identifier: LGPL-2.1-or-later
//! Publication of frames in CUDA memory.
//!
//! A frame that upstream has written into a slot is published in place. Another frame is copied into a slot by one
//! asynchronous copy on upstream's stream. The CPU waits for neither the frame nor the copy, except with
//! [`SyncMode::Host`].
//!
//! # Why a frame is never ready before its pixels
//!
//! With [`SyncMode::Timeline`] the GPU writes the frame's sequence number to the slot's ready word. The write
//! follows the copy in the same stream, and the driver orders it after all earlier writes of that stream. Each slot
//! has a word of its own, so frames of several streams become complete in any order.
//!
//! # Why a slot is never written before earlier work on it is done
//!
//! Upstream may still read a published frame, and a frame that was not published may still be written.
//! When the stream changes from one use of a slot to the next, the new stream waits for the previous one
//! ([`CudaSlots::prepare_slot`]). The CPU does not wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use gst_video::VideoInfo;

use super::pool::Flushing;
use super::settings::{Memory, SyncMode};
use crate::caps::{PlaneSize, plane_size};
use crate::gstcuda::memory_cache::{BufferAccess, DeviceRegion, MemoryCache};
use crate::gstcuda::pool;
use crate::gstcuda::{self, CudaContext, CudaStream};
use crate::log::CAT;
use cuframes::Publisher;
use cuframes::cuda::{Address, Context, Copy2d, Event, HostAccess, RegisteredHost, Stream};
use cuframes::memory::cuda::CudaBackend;
use cuframes::memory::cuda_ipc::CudaIpcBackend;
use cuframes::memory::{Backend, Extensions};
use cuframes::sync::lock;
use cuframes::{FrameInfo, Loan, Planes, SharedWords};

/// Alignment mask of the rows and planes in slots that upstream writes: 512 bytes, as textures require.
const ALIGNMENT: u32 = 512 - 1;
/// Minimum number of buffers that the pool asks for: more than a decoder has surfaces. With fewer, a decoder outputs its
/// own surfaces and waits for them to be returned. With more, it copies into buffers of the pool, which is then the
/// only copy.
const MORE_THAN_SURFACES: u32 = 65;

/// The slots in one CUDA context.
pub(super) struct CudaSlots {
    context: Context,
    backend: Arc<dyn Backend>,
    /// The mode that was chosen, never [`SyncMode::Auto`].
    sync: SyncMode,
}

/// User data of one chunk of slots.
#[derive(Clone, Default)]
struct ChunkData {
    memories: MemoryCache<Loan>,
    /// The streams that the slots were last written on, by address of the slot.
    streams: Arc<Mutex<HashMap<u64, Arc<Stream>>>>,
}

impl CudaSlots {
    /// Chooses the kind of memory and the mode where they are automatic.
    ///
    /// # Errors
    /// The device or the driver does not support the requested combination.
    pub(super) fn new(
        context: &CudaContext,
        (memory, sync): (Memory, SyncMode),
    ) -> Result<Arc<Self>, gstcuda::Error> {
        let context = context.driver_context()?;
        let device = *context.device();
        let ipc = match memory {
            Memory::Auto => sync == SyncMode::Event || !device.can_export_fds(),
            Memory::Ipc => true,
            Memory::Vmm | Memory::Host => false,
        };
        let sync = match sync {
            SyncMode::Auto if device.can_write_values() => SyncMode::Timeline,
            SyncMode::Auto if ipc => SyncMode::Event,
            SyncMode::Auto => SyncMode::Host,
            chosen => chosen,
        };
        let problem = |problem: &str| Err(gstcuda::Error::Mismatch { problem: problem.to_owned() });
        if sync == SyncMode::Event && !ipc {
            return problem("sync-mode=event needs memory=ipc, which has events: set that too");
        }
        if sync == SyncMode::Timeline && !device.can_write_values() {
            return problem(
                "sync-mode=timeline needs a driver of version 515 or later: update it, or leave it to sync-mode=auto",
            );
        }
        let backend: Arc<dyn Backend> = if ipc {
            Arc::new(CudaIpcBackend::new(context.clone(), sync == SyncMode::Event))
        } else {
            Arc::new(CudaBackend::new(context.clone())?)
        };
        Ok(Arc::new(Self { context, backend, sync }))
    }

    pub(super) fn sync(&self) -> SyncMode {
        self.sync
    }

    /// Returns whether the slots are in this context.
    pub(super) fn are_in(&self, context: &CudaContext) -> bool {
        context.driver_context().is_ok_and(|context| context == self.context)
    }

    /// Proposes a pool of slots to upstream, whose context is `context`. A wait for a slot ends while the sink is
    /// flushing.
    ///
    /// # Errors
    /// The format has no layout in device memory, or the CUDA library is unusable.
    pub(super) fn propose(
        self: &Arc<Self>,
        publisher: &Arc<Publisher>,
        context: &CudaContext,
        sink_flushing: Flushing,
        caps: &gst::Caps,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gstcuda::Error> {
        // The other modes need an event or a wait after upstream's work, before the frame is published.
        if self.sync != SyncMode::Timeline {
            return Ok(());
        }
        let video = VideoInfo::from_caps(caps).map_err(|_| gstcuda::Error::Mismatch {
            problem: format!("Not a raw video format ({caps}): put a decoder or videoconvert in front of cuframessink"),
        })?;
        let proposed = aligned(&video)?;
        let size = proposed.size() as u32;
        let (slots, publisher) = (self.clone(), Arc::downgrade(publisher));
        let own = context.clone();
        let pool = pool::new_pool(context, move |wanted, flushing| {
            // The format is nearly always the proposed one, whose layout is computed once.
            let other = if wanted.video == video { None } else { Some(aligned(&wanted.video)) };
            let layout = other.transpose().map_err(report)?;
            let request = SlotRequest {
                context: &own,
                stream: wanted.stream.as_deref(),
                video: &wanted.video,
                layout: layout.as_ref().unwrap_or(&proposed),
            };
            slots.acquire(&publisher, &request, &|| flushing() || sink_flushing())
        })?;
        query.add_allocation_pool(Some(&pool), size, MORE_THAN_SURFACES, 0);
        Ok(())
    }

    /// Returns the stream to enqueue work on: `last` if it is the same one.
    fn wrap_stream(&self, last: Option<&Arc<Stream>>, stream: Option<&CudaStream>) -> Arc<Stream> {
        let handle = stream.map_or(std::ptr::null_mut(), CudaStream::handle);
        match last.filter(|last| last.handle() == handle) {
            Some(last) => last.clone(),
            None => Arc::new(match stream {
                Some(stream) => stream.driver_stream(&self.context),
                None => Stream::default_of(&self.context),
            }),
        }
    }

    /// Prepares a slot to be written on `stream`, which from now on waits for all work of the stream that the slot was
    /// used on before.
    fn prepare_slot(
        &self,
        loan: &Loan,
        stream: Option<&CudaStream>,
    ) -> Result<ChunkData, gstcuda::Error> {
        let chunk: ChunkData = loan.memory().extensions().map(Extensions::get).unwrap_or_default();
        let mut streams = lock(&chunk.streams);
        let last = streams.get(&loan.address());
        let new = self.wrap_stream(last, stream);
        if let Some(last) = last.filter(|last| last.handle() != new.handle()) {
            let event = Event::new(&self.context)?;
            event.record(last)?;
            new.wait_for(&event)?;
        }
        streams.insert(loan.address(), new);
        drop(streams);
        Ok(chunk)
    }

    /// Returns a buffer on a free slot, or on other device memory if all slots are in use.
    fn acquire(
        &self,
        publisher: &Weak<Publisher>,
        request: &SlotRequest<'_>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<gst::Buffer, gst::FlowError> {
        let publisher = publisher.upgrade().ok_or(gst::FlowError::Flushing)?;
        let memory = || -> Result<_, cuframes::Error> {
            let &SlotRequest { context, stream, video, layout } = request;
            let Some(loan) = publisher.loan_in(&self.backend, layout.size(), cancelled)? else {
                // Upstream cannot be made to skip a frame.
                return Ok(gstcuda::allocate(context, stream, video)?);
            };
            let ChunkData { memories, .. } = self.prepare_slot(&loan, stream)?;
            let place = DeviceRegion { address: loan.address(), layout, context, stream };
            // SAFETY: the loan has `layout.size()` bytes of device memory, and keeps them until it is dropped.
            // Work that upstream has enqueued by then precedes the writes to the next loan of the slot, by the
            // order of the stream or by `prepare_slot`.
            Ok(unsafe { memories.wrap(place, BufferAccess::Write, loan) }?)
        };
        let memory = memory().map_err(report)?;
        if cancelled() {
            return Err(gst::FlowError::Flushing);
        }
        let info = gstcuda::memory_info(&memory).ok_or(gst::FlowError::Error)?;
        let mut buffer = gst::Buffer::new();
        {
            let buffer = buffer.make_mut();
            buffer.append_memory(memory);
            gst_video::VideoMeta::add_full(
                buffer,
                gst_video::VideoFrameFlags::empty(),
                info.format(),
                info.width(),
                info.height(),
                info.offset(),
                info.stride(),
            )
            .map_err(|_| gst::FlowError::Error)?;
        }
        Ok(buffer)
    }
}

/// A buffer that upstream asks the pool for.
struct SlotRequest<'a> {
    context: &'a CudaContext,
    /// The stream that upstream enqueues its work on; `None` for the default stream.
    stream: Option<&'a CudaStream>,
    video: &'a VideoInfo,
    /// Layout of `video` in a slot.
    layout: &'a VideoInfo,
}

/// Logs an error for which a pool can only return a flow error.
fn report(e: impl std::fmt::Display) -> gst::FlowError {
    gst::error!(CAT, "{e}");
    gst::FlowError::Error
}

/// Returns the format with a layout for device memory. All planes have the same stride, because GStreamer transfers such
/// memory to and from the host as one plane.
fn aligned(video: &VideoInfo) -> Result<VideoInfo, gstcuda::Error> {
    let cant = |_| gstcuda::Error::Mismatch {
        problem: format!(
            "{} frames can't be laid out in device memory: put cudaconvert or cudadownload in front of cuframessink",
            video.format()
        ),
    };
    let mut narrow = video.clone();
    narrow.align(&mut gst_video::VideoAlignment::new(0, 0, 0, 0, &[ALIGNMENT; 4])).map_err(cant)?;
    let stride = narrow.stride().iter().copied().max().unwrap_or(0);
    let (mut offsets, mut size) = (Vec::new(), 0);
    let ends = narrow.offset().iter().copied().skip(1).chain([narrow.size()]);
    for ((begin, end), row) in narrow.offset().iter().zip(ends).zip(narrow.stride()) {
        offsets.push(size);
        size += (end - begin) / *row as usize * stride as usize;
    }
    let strides = vec![stride; offsets.len()];
    VideoInfo::builder_from_info(video)
        .offset(&offsets)
        .stride(&strides)
        .size(size)
        .build()
        .map_err(cant)
}

/// Result of [`CudaPublisher::publish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The frame was on a slot and was published there.
    InPlace,
    /// The frame was copied into a slot.
    Copied,
    /// No slot is free, or the wait for one was cancelled.
    NoSlot,
}

/// Publishes the frames of one format in one CUDA context.
pub(super) struct CudaPublisher {
    slots: Arc<CudaSlots>,
    /// The stream of the last frame.
    stream: Option<Arc<Stream>>,
    /// The slots' ready words, registered with the driver, for [`SyncMode::Timeline`].
    ready: Option<RegisteredHost>,
    /// Layout of a copied frame in its slot: that of the first frame, so that a copy is one operation.
    layout: VideoInfo,
}

impl CudaPublisher {
    /// Announces the format of the frames that follow, with `memory` as the first of them.
    ///
    /// # Errors
    /// The memory is no CUDA memory, the driver refuses to register the ready words, or there is no memory for slots.
    pub(super) fn new(
        publisher: &Publisher,
        slots: Arc<CudaSlots>,
        caps: &gst::Caps,
        memory: &gst::MemoryRef,
    ) -> Result<Self, cuframes::Error> {
        let ready = if slots.sync == SyncMode::Timeline {
            let SharedWords { base, len, keep_alive } = publisher.ready_words();
            let access = HostAccess::ReadWrite;
            // SAFETY: the segment is mapped for writing until `keep_alive` is dropped. It consists of atomics and is
            // read as such.
            Some(unsafe { RegisteredHost::new(&slots.context, base, len, access, keep_alive) }?)
        } else {
            None
        };
        let layout = info(memory)?;
        publisher.set_format_in(slots.backend.clone(), &caps.to_string(), layout.size())?;
        Ok(Self { slots, stream: None, ready, layout })
    }

    /// Publishes a frame, in place if possible. Sets size and planes of `frame`.
    ///
    /// # Errors
    /// The buffer is not in CUDA memory, or the driver reports an error.
    pub(super) fn publish(
        &mut self,
        publisher: &Publisher,
        buffer: &gst::BufferRef,
        frame: &mut FrameInfo,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Outcome, cuframes::Error> {
        let memory = buffer.peek_memory(0);
        let map = gstcuda::map_device(memory)?;
        let source = info(memory)?;
        let own = gstcuda::memory_stream(memory);
        let stream = self.slots.wrap_stream(self.stream.as_ref(), own.as_ref());
        self.stream = Some(stream.clone());
        let Some(ready) = &self.ready else {
            let Some(loan) = self.loan(publisher, own.as_ref(), cancelled)? else {
                return Ok(Outcome::NoSlot);
            };
            self.copy(&stream, &source, &map, &loan)?;
            match loan.event() {
                Some(event) => event.record(&stream)?,
                None => stream.synchronize()?,
            }
            set_layout(frame, &self.layout, 0);
            publisher.publish(loan, frame);
            return Ok(Outcome::Copied);
        };
        if let Some(loan) = MemoryCache::<Loan>::held_by(memory) {
            // A frame that upstream has waited for is complete, without more work of the GPU.
            let complete = stream.is_idle().unwrap_or(false);
            set_layout(frame, &source, map.address() - loan.address());
            if let Some(seq) = publisher.publish_in_place(loan, frame, complete) {
                if !complete {
                    // SYNC(ready/complete): pairs with the Acquire in the subscriber's `FrameReader`. The stream orders
                    // this write after those of the pixels.
                    stream.write_value(ready, loan.ready_offset(), seq)?;
                }
                return Ok(Outcome::InPlace);
            }
        }
        let Some(loan) = self.loan(publisher, own.as_ref(), cancelled)? else {
            return Ok(Outcome::NoSlot);
        };
        set_layout(frame, &self.layout, 0);
        // Published before the copy, so that subscribers wake up while the copy is enqueued and runs. The loan is kept
        // until the copy and the ready word are enqueued.
        let published = publisher.publish_in_place(&loan, frame, false);
        let seq = published.expect("a new loan of this publisher");
        self.copy(&stream, &source, &map, &loan)?;
        // SYNC(ready/complete): as above.
        stream.write_value(ready, loan.ready_offset(), seq)?;
        Ok(Outcome::Copied)
    }

    /// Returns a slot to be written on the stream.
    fn loan(
        &self,
        publisher: &Publisher,
        stream: Option<&CudaStream>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Loan>, cuframes::Error> {
        let loan = publisher.loan_in(&self.slots.backend, self.layout.size(), cancelled)?;
        if let Some(loan) = &loan {
            self.slots.prepare_slot(loan, stream)?;
        }
        Ok(loan)
    }

    /// Enqueues the copy of a frame into a slot.
    fn copy(
        &self,
        stream: &Stream,
        source: &VideoInfo,
        map: &gstcuda::DeviceMap<'_>,
        slot: &Loan,
    ) -> Result<(), gstcuda::Error> {
        let slot = slot.address();
        if source.offset() == self.layout.offset()
            && source.stride() == self.layout.stride()
            && map.len() >= self.layout.size()
        {
            // SAFETY: both ranges have `layout.size()` bytes: the frame by the check above, the slot because it was loaned
            // for that size. The frame may be released when this function returns, because its next writer enqueues
            // its work on the same stream, after this copy. The next writer of the slot follows too, by the order
            // of the stream or by `prepare_slot`.
            return Ok(unsafe { stream.copy(map.address(), slot, self.layout.size()) }?);
        }
        for plane in 0..self.layout.n_planes() as usize {
            let PlaneSize { rows: height, row_bytes: width } = plane_size(&self.layout, plane);
            let copy = Copy2d {
                from: Address::Device(map.address() + source.offset()[plane] as u64),
                from_pitch: source.stride()[plane] as usize,
                to: Address::Device(slot + self.layout.offset()[plane] as u64),
                to_pitch: self.layout.stride()[plane] as usize,
                width,
                height,
            };
            // SAFETY: each plane is within the frame by the frame's own GstVideoInfo, and within the slot by the layout
            // that the slot was loaned for. Frame and slot stay valid as above.
            unsafe { stream.copy_2d(&copy) }?;
        }
        Ok(())
    }
}

/// Sets size and planes of a frame that begins `start` bytes after the start of its slot.
fn set_layout(frame: &mut FrameInfo, layout: &VideoInfo, start: u64) {
    frame.size = layout.size() + start as usize;
    frame.planes = Planes::new(layout.offset(), layout.stride()).moved(start as u32);
}

/// Returns the layout of a frame in its memory.
///
/// # Errors
/// The memory is no CUDA memory.
fn info(memory: &gst::MemoryRef) -> Result<VideoInfo, gstcuda::Error> {
    gstcuda::memory_info(memory).ok_or_else(|| gstcuda::Error::Mismatch {
        problem:
            "Frames with CUDA caps came in other memory: put cudadownload in front of cuframessink"
                .into(),
    })
}
