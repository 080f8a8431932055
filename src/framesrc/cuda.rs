// SPDX-License-Identifier: LGPL-2.1-or-later
//! Buffers on frames in device memory: wrapped in place, copied on the device, or downloaded.

use std::sync::{Arc, Mutex};

use gst_video::VideoInfo;

use crate::caps::{PlaneSize, plane_size};
use crate::gstcuda::memory_cache::{BufferAccess, DeviceRegion, MemoryCache};
use crate::gstcuda::{self, CudaContext, CudaStream};
use cuframes::cuda::{
    Address, Context, Copy2d, DeviceMemory, Event, HostAccess, RegisteredHost, Stream,
};
use cuframes::memory::Extensions;
use cuframes::sync::lock;
use cuframes::{Frame, SharedPage, Subscriber};

/// Emits the frames of one publisher in one CUDA context.
pub(super) struct CudaEmitter {
    context: CudaContext,
    driver: Context,
    /// Stream that buffers carry, for downstream elements that have no stream of their own. Copies are
    /// enqueued on it.
    stream: CudaStream,
    driver_stream: Arc<Stream>,
    /// Stream that runs after all work that downstream has enqueued: `driver_stream` if downstream announced it,
    /// otherwise the default stream.
    downstream: Arc<Stream>,
    /// Orders `driver_stream` after `downstream`.
    event: Event,
    /// The page of the claims, registered so that the device can clear claims. `None` if the device can't
    /// write values; then the CPU waits for downstream's work before it releases a frame.
    claims: Option<Arc<RegisteredHost>>,
    /// Memory of released copies. Enqueued work may still read it.
    spare: SpareCopies,
}

type SpareCopies = Arc<Mutex<Vec<CopyMemory>>>;

/// Memory for a copy, with the cached GstMemory objects on it.
#[derive(Debug)]
struct CopyMemory {
    memories: MemoryCache<CopyGuard>,
    memory: DeviceMemory,
}

/// Keeps a frame claimed while downstream has it.
///
/// The claim is released when all work is done that is on the stream at the time of the drop.
struct FrameGuard {
    frame: Option<Frame>,
    stream: Arc<Stream>,
    claims: Option<Arc<RegisteredHost>>,
}

impl Drop for FrameGuard {
    fn drop(&mut self) {
        let Some(frame) = self.frame.take() else { return };
        frame.release_with(|offset| {
            // The device clears the claim only while it has work of this process. Otherwise, switching to
            // this process would take it longer than a copy.
            if matches!(self.stream.is_idle(), Ok(true)) {
                return false;
            }
            // SYNC(release/is_held): pairs with the Acquire in `claim::is_held`. The stream orders this write after the
            // reads of the frame.
            let cleared = self.claims.as_ref().map(|c| self.stream.write_value(c, offset, 0));
            if matches!(cleared, Some(Ok(()))) {
                return true;
            }
            // The whole context, because the work may be on another stream than this one.
            let _ = self.stream.context().synchronize();
            false
        });
    }
}

/// Returns the memory of a copy to the spare copies when downstream has released it.
struct CopyGuard {
    memory: Option<CopyMemory>,
    spare: SpareCopies,
}

impl Drop for CopyGuard {
    fn drop(&mut self) {
        lock(&self.spare).extend(self.memory.take());
    }
}

impl CudaEmitter {
    /// Creates the emitter for the frames of `subscriber`.
    ///
    /// `announced` is the stream on which downstream enqueues its work, if it announced one.
    pub(super) fn new(
        context: CudaContext,
        announced: Option<CudaStream>,
        subscriber: &Subscriber,
    ) -> Result<Self, gstcuda::Error> {
        let driver: Context = context.driver_context()?;
        let stream = announced.clone().map_or_else(|| CudaStream::new(&context), Ok)?;
        let claims = if driver.device().can_write_values() {
            let SharedPage { base: start, len, keep_alive: keep } = subscriber.page();
            // SAFETY: the page is mapped for writing until `keep` is dropped. It consists of atomics, which
            // this process and the publisher access as such.
            let page =
                unsafe { RegisteredHost::new(&driver, start, len, HostAccess::ReadWrite, keep) }?;
            Some(Arc::new(page))
        } else {
            None
        };
        let driver_stream = Arc::new(stream.driver_stream(&driver));
        let downstream = Arc::new(Stream::default_of(&driver));
        let spare = SpareCopies::default();
        let event = Event::new(&driver)?;
        let mut emitter =
            Self { context, driver, stream, driver_stream, downstream, event, claims, spare };
        emitter.set_downstream_stream(announced)?;
        Ok(emitter)
    }

    /// Sets the stream on which downstream enqueues its work from the next frame on.
    ///
    /// `None` if downstream announced no stream: it may then use several. Every stream that GStreamer
    /// creates is ordered before work that is enqueued on the default stream.
    pub(super) fn set_downstream_stream(
        &mut self,
        announced: Option<CudaStream>,
    ) -> Result<(), gstcuda::Error> {
        let Some(stream) = announced else {
            self.downstream = Arc::new(Stream::default_of(&self.driver));
            return Ok(());
        };
        // A stream that was announced before, with none in between, keeps its order. Otherwise, work on
        // other streams may have read copies in the meantime.
        let interrupted = self.downstream.handle() != self.driver_stream.handle();
        if interrupted || stream != self.stream {
            // Completes the copies on the old stream before the next copy on the new one.
            self.driver_stream.synchronize()?;
            self.driver_stream = Arc::new(stream.driver_stream(&self.driver));
            self.stream = stream;
            // Old copies that downstream still holds are freed after its work instead of being reused.
            self.spare = SpareCopies::default();
        }
        self.downstream = self.driver_stream.clone();
        Ok(())
    }

    /// Returns whether this device can read the frame in place.
    pub(super) fn can_read(&self, frame: &Frame) -> bool {
        frame.memory().context().is_none_or(|c| c.device() == self.driver.device())
    }

    fn guard(&self, frame: Frame, stream: &Arc<Stream>) -> FrameGuard {
        FrameGuard { frame: Some(frame), stream: stream.clone(), claims: self.claims.clone() }
    }

    /// Returns the frame as memory that downstream can use in place.
    ///
    /// The claim is released after the last reference is dropped, when the work is done that downstream
    /// has enqueued by then.
    pub(super) fn wrap(
        &self,
        frame: Frame,
        video: &VideoInfo,
    ) -> Result<gst::Memory, gstcuda::Error> {
        let layout = layout(&frame, video)?;
        let memories: MemoryCache<FrameGuard> =
            frame.memory().extensions().map(Extensions::get).unwrap_or_default();
        let region = self.region(frame.address(), &layout);
        // SAFETY: the caller has checked that the frame's planes are within its slot. The slot stays mapped
        // while the guard exists. The publisher writes it only after the claim is cleared, which happens
        // after the work on the stream.
        unsafe { memories.wrap(region, BufferAccess::Read, self.guard(frame, &self.downstream)) }
    }

    /// Returns a copy of the frame in memory of this device. The copy is enqueued without waiting for it.
    pub(super) fn copy(
        &self,
        frame: Frame,
        video: &VideoInfo,
    ) -> Result<gst::Memory, gstcuda::Error> {
        let layout = layout(&frame, video)?;
        let size = layout.size();
        // Memory for smaller frames is dropped by this search, because the format has changed.
        let spare = std::iter::from_fn(|| lock(&self.spare).pop()).find(|m| m.memory.len() >= size);
        let memory = match spare {
            Some(memory) => memory,
            None => {
                let memory = DeviceMemory::new(&self.driver, size)?;
                CopyMemory { memories: MemoryCache::default(), memory }
            }
        };
        // Work that downstream has enqueued on other streams may still read the memory.
        if self.downstream.handle() != self.driver_stream.handle() && !self.downstream.is_idle()? {
            self.event.record(&self.downstream)?;
            self.driver_stream.wait_for(&self.event)?;
        }
        let (from, to) = (frame.address(), memory.memory.address());
        // SAFETY: the frame stays mapped and unchanged until its claim is released below, after the copy.
        // The destination has at least `size` bytes and is kept by the memory that is returned. Earlier
        // reads of the destination are ordered before the copy.
        unsafe {
            match frame.memory().context().filter(|_| !self.can_read(&frame)) {
                Some(owner) => self.driver_stream.copy_from_peer(from, owner, to, size)?,
                None => self.driver_stream.copy(from, to, size)?,
            }
        }
        drop(self.guard(frame, &self.driver_stream));
        let (region, memories) = (self.region(to, &layout), memory.memories.clone());
        let guard = CopyGuard { memory: Some(memory), spare: self.spare.clone() };
        // SAFETY: the memory has at least the layout's size. It is written again on the same stream only.
        unsafe { memories.wrap(region, BufferAccess::AfterStream, guard) }
    }

    fn region<'a>(&'a self, address: u64, layout: &'a VideoInfo) -> DeviceRegion<'a> {
        let (context, stream) = (&self.context, Some(&self.stream));
        DeviceRegion { address, layout, context, stream }
    }

    /// Returns a copy of the frame in host memory. Waits for the copy.
    pub(super) fn download(
        &self,
        frame: &Frame,
        video: &VideoInfo,
    ) -> Result<gst::Buffer, gstcuda::Error> {
        let problem = |problem: &str| gstcuda::Error::Mismatch { problem: problem.to_owned() };
        let mut buffer = gst::Buffer::with_size(video.size()).map_err(|_| {
            problem(
                "There is no memory left for a frame: free some, or hold fewer frames downstream",
            )
        })?;
        let from = layout(frame, video)?;
        // The device that owns the memory downloads it if this device can't read it.
        let stream = match frame.memory().context().filter(|_| !self.can_read(frame)) {
            Some(owner) => &Stream::default_of(owner),
            None => &*self.driver_stream,
        };
        {
            let buffer = buffer.make_mut();
            let mut map =
                buffer.map_writable().map_err(|_| problem("A new buffer can't be mapped: free some memory, or hold fewer frames downstream"))?;
            let start = map.as_mut_ptr();
            for plane in 0..video.n_planes() as usize {
                let PlaneSize { rows, row_bytes } = plane_size(video, plane);
                let copy = Copy2d {
                    from: Address::Device(frame.address() + from.offset()[plane] as u64),
                    from_pitch: from.stride()[plane] as usize,
                    // SAFETY: planes of a GstVideoInfo are within its size, which is the buffer's size.
                    to: Address::Host(unsafe { start.add(video.offset()[plane]) }),
                    to_pitch: video.stride()[plane] as usize,
                    width: row_bytes,
                    height: rows,
                };
                // SAFETY: frame and map are borrowed until `synchronize` below, so both ends stay valid
                // for the copy.
                unsafe { stream.copy_2d(&copy) }?;
            }
            stream.synchronize()?;
        }
        Ok(buffer)
    }
}

/// Returns the layout of the frame in its slot.
fn layout(frame: &Frame, video: &VideoInfo) -> Result<VideoInfo, gstcuda::Error> {
    let (planes, (offsets, strides)) = (frame.info.planes.len(), frame.info.planes.to_arrays());
    VideoInfo::builder(video.format(), video.width(), video.height())
        .offset(&offsets[..planes])
        .stride(&strides[..planes])
        .size(frame.info.size)
        .build()
        .map_err(|e| gstcuda::Error::Mismatch {
            problem: format!(
                "An invalid layout ({e}): run the same version of cuframes on both sides"
            ),
        })
}
