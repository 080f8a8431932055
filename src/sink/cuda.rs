//! Frames of device memory: where upstream could write them into a slot, they are published as they are,
//! else by one asynchronous copy on the stream of whoever made them. The CPU waits for neither.

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
use cuframes::cuda::{Address, Context, Copy2d, HostAccess, RegisteredHost, Stream};
use cuframes::memory::cuda::CudaBackend;
use cuframes::memory::cuda_ipc::CudaIpcBackend;
use cuframes::memory::{Attached, Backend};
use cuframes::sync::lock;
use cuframes::{FrameInfo, Loan, Planes};

/// Rows and planes of slots that upstream writes begin on multiples of this, as textures want it (512
/// bytes).
const ALIGNMENT: u32 = 512 - 1;
/// More than a decoder has surfaces. It would hand those out, and wait for them to come back, if a pool
/// asked for fewer buffers; so it copies into what the pool lends, which is the only copy then.
const MORE_THAN_SURFACES: u32 = 65;

/// The slots in one CUDA context.
pub struct DeviceSlots {
    context: Context,
    backend: Arc<dyn Backend>,
    /// Never [`SyncMode::Auto`].
    sync: SyncMode,
    /// The stream of the frame that was published last.
    stream: Mutex<Option<Arc<Stream>>>,
}

/// What goes with the slots of one allocation.
#[derive(Clone, Default)]
struct Attachment {
    memories: MemoryCache<Loan>,
    /// The streams that the slots were written on last, by address.
    streams: Arc<Mutex<HashMap<u64, Option<Arc<Stream>>>>>,
}

impl DeviceSlots {
    /// Chooses what is left to choose.
    ///
    /// Errors: the device, or the driver on this system, can't do what was asked for.
    pub fn new(
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
        Ok(Arc::new(Self { context, backend, sync, stream: Mutex::default() }))
    }

    pub fn sync(&self) -> SyncMode {
        self.sync
    }

    /// Whether the slots are in this context.
    pub fn are_in(&self, context: &CudaContext) -> bool {
        context.driver_context().is_ok_and(|context| context == self.context)
    }

    /// Offers the slots to upstream, whose context this is, and which waits for none while `sink` says that
    /// it is flushing.
    pub fn propose(
        self: &Arc<Self>,
        publisher: &Arc<Publisher>,
        (context, sink): (&CudaContext, Flushing),
        caps: &gst::Caps,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gstcuda::Error> {
        // In the other modes, upstream's work would have to be waited for or marked first.
        if self.sync != SyncMode::Timeline {
            return Ok(());
        }
        let video = VideoInfo::from_caps(caps).map_err(|_| gstcuda::Error::Mismatch {
            problem: format!("Not a raw video format ({caps}): put a decoder or videoconvert in front of cuframessink"),
        })?;
        let layout = aligned(&video)?;
        let (slots, publisher) = (self.clone(), Arc::downgrade(publisher));
        let own = context.clone();
        let pool = pool::new_pool(context, move |wanted, flushing| {
            slots.lend(&publisher, &own, wanted, &|| flushing() || sink())
        })?;
        query.add_allocation_pool(Some(&pool), layout.size() as u32, MORE_THAN_SURFACES, 0);
        Ok(())
    }

    /// The stream to go on with: what is enqueued on another than `last` comes behind the work on that.
    fn switch(
        &self,
        last: &mut Option<Arc<Stream>>,
        stream: Option<&CudaStream>,
    ) -> Result<Arc<Stream>, gstcuda::Error> {
        if let Some(before) = last {
            if before.handle() == stream.map_or(std::ptr::null_mut(), CudaStream::handle) {
                return Ok(before.clone());
            }
            before.synchronize()?;
        }
        let new = Arc::new(match stream {
            Some(stream) => stream.driver_stream(&self.context),
            None => Stream::default_of(&self.context),
        });
        Ok(last.insert(new).clone())
    }

    /// To be called before a slot is written on the stream: waits for what was enqueued to write it on another.
    /// Where a frame was not published, or nobody has waited for it, such work may still be to do.
    fn settle(
        &self,
        loan: &Loan,
        stream: Option<&CudaStream>,
    ) -> Result<Attachment, gstcuda::Error> {
        let attachment: Attachment =
            loan.memory().attached().map(Attached::get).unwrap_or_default();
        self.switch(lock(&attachment.streams).entry(loan.address()).or_default(), stream)?;
        Ok(attachment)
    }

    /// A buffer on a slot; where none is free, on other memory of the device.
    fn lend(
        &self,
        publisher: &Weak<Publisher>,
        context: &CudaContext,
        wanted: &pool::BufferSpec,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<gst::Buffer, gst::FlowError> {
        let publisher = publisher.upgrade().ok_or(gst::FlowError::Flushing)?;
        let stream = wanted.stream.as_deref();
        let memory = || -> Result<_, cuframes::Error> {
            let layout = aligned(&wanted.video)?;
            let Some(loan) = publisher.loan_in(&self.backend, layout.size(), cancelled)? else {
                // Upstream can't be made to skip a frame.
                return Ok(gstcuda::allocate(context, stream, &wanted.video)?);
            };
            let Attachment { memories, .. } = self.settle(&loan, stream)?;
            let place = DeviceRegion { address: loan.address(), layout: &layout, context, stream };
            // SAFETY: the loan is as many bytes of device memory, and keeps them until it is dropped.
            // What upstream has enqueued by then comes before what is written to the next loan of that
            // slot, by the order of its stream or by `settle`.
            Ok(unsafe { memories.wrap(place, BufferAccess::Write, loan) }?)
        };
        let memory = memory().map_err(|e| {
            gst::error!(CAT, "{e}");
            gst::FlowError::Error
        })?;
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

/// The picture, laid out for the device: with rows of one length in all planes, since GStreamer moves such
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

/// What publishes the frames of one format in one CUDA context.
pub struct DeviceSink {
    slots: Arc<DeviceSlots>,
    /// The memory with the number of the newest complete frame, and where in it that is; for
    /// [`SyncMode::Timeline`].
    ready: Option<(RegisteredHost, usize)>,
    /// Where the planes lie in a slot: as in the first frame, so that copies are simple.
    layout: VideoInfo,
}

impl DeviceSink {
    /// Publishes frames like this one from here on.
    pub fn new(
        publisher: &Publisher,
        slots: Arc<DeviceSlots>,
        caps: &gst::Caps,
        memory: &gst::MemoryRef,
    ) -> Result<Self, cuframes::Error> {
        let ready = if slots.sync == SyncMode::Timeline {
            let (start, len, offset, keep) = publisher.ready_word();
            let access = HostAccess::ReadWrite;
            // SAFETY: the segment is mapped for writing until `keep` is dropped, and made of atomics
            // that are read as such.
            let memory = unsafe { RegisteredHost::new(&slots.context, start, len, access, keep) }?;
            Some((memory, offset))
        } else {
            None
        };
        let layout = info(memory)?;
        publisher.set_format_in(slots.backend.clone(), &caps.to_string(), layout.size())?;
        Ok(Self { slots, ready, layout })
    }

    /// Publishes a frame, and says whether it had to be copied. `None` where no slot is free, or the wait
    /// for one was cancelled.
    pub fn publish(
        &mut self,
        publisher: &Publisher,
        buffer: &gst::BufferRef,
        frame: &FrameInfo,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<bool>, cuframes::Error> {
        let memory = buffer.peek_memory(0);
        let map = gstcuda::map_device(memory)?;
        let source = info(memory)?;
        let own = gstcuda::memory_stream(memory);
        // So frames become ready in their order.
        let stream = self.slots.switch(&mut lock(&self.slots.stream), own.as_ref())?;
        let describe = |layout: &VideoInfo, start: u64| {
            let planes = Planes::new(layout.offset(), layout.stride()).moved(start as u32);
            FrameInfo { size: layout.size() + start as usize, planes, ..frame.clone() }
        };
        let mut copied = false;
        if let Some((ready, offset)) = &self.ready {
            let in_place = |start| describe(&source, start);
            // What upstream has waited for is complete without more work of the GPU.
            let complete = stream.is_idle().unwrap_or(false);
            let (seq, complete) = match publisher.publish_at(map.address(), complete, in_place) {
                Some(seq) => (seq, complete),
                None => {
                    let Some(loan) = self.loan(publisher, own.as_ref(), cancelled)? else {
                        return Ok(None);
                    };
                    copied = true;
                    // Before the copy: subscribers wake while it is enqueued and runs. The loan is
                    // kept until then.
                    let address = loan.address();
                    let seq = publisher
                        .publish_at(address, false, |start| describe(&self.layout, start))
                        .expect("a loan that was not published belongs to its owner");
                    self.copy(&stream, (&source, &map), address)?;
                    (seq, false)
                }
            };
            if !complete {
                stream.write_value(ready, *offset, seq)?;
            }
        } else {
            let Some(loan) = self.loan(publisher, own.as_ref(), cancelled)? else {
                return Ok(None);
            };
            copied = true;
            self.copy(&stream, (&source, &map), loan.address())?;
            match loan.event() {
                Some(event) => event.record(&stream)?,
                None => stream.synchronize()?,
            }
            publisher.publish(loan, &describe(&self.layout, 0));
        }
        Ok(Some(copied))
    }

    /// A slot to be written on the stream.
    fn loan(
        &self,
        publisher: &Publisher,
        stream: Option<&CudaStream>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Loan>, cuframes::Error> {
        let loan = publisher.loan_in(&self.slots.backend, self.layout.size(), cancelled)?;
        if let Some(loan) = &loan {
            self.slots.settle(loan, stream)?;
        }
        Ok(loan)
    }

    /// Enqueues the copy of a frame into a slot.
    fn copy(
        &self,
        stream: &Stream,
        (source, map): (&VideoInfo, &gstcuda::DeviceMap<'_>),
        slot: u64,
    ) -> Result<(), gstcuda::Error> {
        // SAFETY, for both: the planes lie within the frame as its own GstVideoInfo says, and within the
        // slot by the layout that the slot was made for. The frame may be let go of when this function
        // returns: whatever writes to it next does so on the same stream, behind this copy. What writes
        // the slot next comes behind it too, by that order or by `settle`.
        if source.offset() == self.layout.offset()
            && source.stride() == self.layout.stride()
            && map.len() >= self.layout.size()
        {
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
            unsafe { stream.copy_2d(&copy) }?;
        }
        Ok(())
    }
}

/// How a frame lies in its memory.
fn info(memory: &gst::MemoryRef) -> Result<VideoInfo, gstcuda::Error> {
    gstcuda::memory_info(memory).ok_or_else(|| gstcuda::Error::Mismatch {
        problem:
            "Frames with CUDA caps came in other memory: put cudadownload in front of cuframessink"
                .into(),
    })
}
