//! Frames of a publisher of device memory: wrapped where they are, copied, or downloaded.

use std::sync::{Arc, Mutex};

use gst_video::VideoInfo;

use crate::gstcuda::memory_cache::{BufferAccess, DeviceRegion, MemoryCache};
use crate::gstcuda::{self, CudaContext, CudaStream};
use crate::properties::plane_size;
use cuframes::cuda::{
    Address, Context, Copy2d, DeviceMemory, Event, HostAccess, RegisteredHost, Stream,
};
use cuframes::memory::Attached;
use cuframes::sync::lock;
use cuframes::{Frame, Subscriber};

/// What emits the frames of one publisher in one CUDA context.
pub struct DeviceSource {
    context: CudaContext,
    driver: Context,
    /// What downstream enqueues its work on, if it knows no better.
    stream: CudaStream,
    driver_stream: Arc<Stream>,
    /// What is behind all that downstream has enqueued; and where that is another stream, the event for work to
    /// come behind it.
    behind: Arc<Stream>,
    event: Event,
    /// The page of the claims, for the device to clear them. `None` if it can't; then the CPU waits for
    /// downstream's work before it gives a frame back.
    claims: Option<Arc<RegisteredHost>>,
    /// Memory for copies that nobody uses any more. What is enqueued may still read it.
    spare: Spare,
}

type Spare = Arc<Mutex<Vec<CopyMemory>>>;

/// Memory for a copy, with what is kept of it.
#[derive(Debug)]
struct CopyMemory {
    memories: MemoryCache<Copied>,
    memory: DeviceMemory,
}

/// A frame that downstream has. It is given back when all work is done that was enqueued on the stream by
/// then.
struct Held {
    frame: Option<Frame>,
    stream: Arc<Stream>,
    claims: Option<Arc<RegisteredHost>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(frame) = self.frame.take() else { return };
        frame.release_with(|offset| {
            // To switch to this process would take the GPU longer than a copy: it is asked only where it is
            // at work.
            if matches!(self.stream.is_idle(), Ok(true)) {
                return false;
            }
            let cleared = self.claims.as_ref().map(|c| self.stream.write_value(c, offset, 0));
            if matches!(cleared, Some(Ok(()))) {
                return true;
            }
            // The default stream may be the one at work.
            let _ = self.stream.context().synchronize();
            false
        });
    }
}

/// A copy that downstream has.
struct Copied {
    memory: Option<CopyMemory>,
    spare: Spare,
}

impl Drop for Copied {
    fn drop(&mut self) {
        lock(&self.spare).extend(self.memory.take());
    }
}

impl DeviceSource {
    /// `offered` is what downstream enqueues its work on, where that is known.
    pub fn new(
        context: CudaContext,
        offered: Option<CudaStream>,
        subscriber: &Subscriber,
    ) -> Result<Self, gstcuda::Error> {
        let driver: Context = context.driver_context()?;
        let stream = offered.clone().map_or_else(|| CudaStream::new(&context), Ok)?;
        let claims = if driver.device().can_write_values() {
            let (start, len, keep) = subscriber.page();
            // SAFETY: the page is mapped for writing until `keep` is dropped, and made of atomics that
            // are read as such, here and by the publisher.
            let page =
                unsafe { RegisteredHost::new(&driver, start, len, HostAccess::ReadWrite, keep) }?;
            Some(Arc::new(page))
        } else {
            None
        };
        let driver_stream = Arc::new(stream.driver_stream(&driver));
        let behind = Arc::new(Stream::default_of(&driver));
        let spare = Spare::default();
        let event = Event::new(&driver)?;
        let mut new = Self { context, driver, stream, driver_stream, behind, event, claims, spare };
        new.follow(offered)?;
        Ok(new)
    }

    /// From the next frame on downstream enqueues its work on this stream. If it says none, it may use several;
    /// all that GStreamer makes are before what is enqueued on the default stream.
    pub fn follow(&mut self, offered: Option<CudaStream>) -> Result<(), gstcuda::Error> {
        let Some(stream) = offered else {
            self.behind = Arc::new(Stream::default_of(&self.driver));
            return Ok(());
        };
        // What was offered before, but not the last time: others may have read copies meanwhile.
        let back = self.behind.handle() != self.driver_stream.handle();
        if back || stream != self.stream {
            // What was copied comes before what is copied next.
            self.driver_stream.synchronize()?;
            self.driver_stream = Arc::new(stream.driver_stream(&self.driver));
            self.stream = stream;
            // What downstream still has of the old ones is freed behind its work, and not written again.
            self.spare = Spare::default();
        }
        self.behind = self.driver_stream.clone();
        Ok(())
    }

    /// Whether the device can read the frame where it is.
    pub fn reaches(&self, frame: &Frame) -> bool {
        frame.memory().context().is_none_or(|c| c.device() == self.driver.device())
    }

    fn held(&self, frame: Frame, stream: &Arc<Stream>) -> Held {
        Held { frame: Some(frame), stream: stream.clone(), claims: self.claims.clone() }
    }

    /// The frame as memory that downstream takes as its own. The claim goes when the last reference is
    /// dropped and the work that was enqueued on the stream by then is done.
    pub fn wrap(&self, frame: Frame, video: &VideoInfo) -> Result<gst::Memory, gstcuda::Error> {
        let layout = layout(&frame, video)?;
        let memories: MemoryCache<Held> =
            frame.memory().attached().map(Attached::get).unwrap_or_default();
        let place = self.place(frame.address(), &layout);
        // SAFETY: the frame's planes lie within its slot, which the caller has checked. The slot is
        // mapped while the frame is held, and not written by the publisher before the claim is cleared,
        // behind the work on the stream.
        unsafe { memories.wrap(place, BufferAccess::Read, self.held(frame, &self.behind)) }
    }

    /// A copy of the frame in memory of this device. The CPU does not wait for it.
    pub fn copy(&self, frame: Frame, video: &VideoInfo) -> Result<gst::Memory, gstcuda::Error> {
        let layout = layout(&frame, video)?;
        let size = layout.size();
        // What was made for smaller frames is of no use any more.
        let spare = std::iter::from_fn(|| lock(&self.spare).pop()).find(|m| m.memory.len() >= size);
        let memory = match spare {
            Some(memory) => memory,
            None => {
                let memory = DeviceMemory::new(&self.driver, size)?;
                CopyMemory { memories: MemoryCache::default(), memory }
            }
        };
        // What downstream has enqueued on other streams may still read the memory.
        if self.behind.handle() != self.driver_stream.handle() && !self.behind.is_idle()? {
            self.event.record(&self.behind)?;
            self.driver_stream.wait_for(&self.event)?;
        }
        let (from, to) = (frame.address(), memory.memory.address());
        // SAFETY: the frame is mapped, and as it is, until it is given back below, behind the copy. The
        // memory is as long, and kept by what is wrapped; what read it before is before the copy.
        unsafe {
            match frame.memory().context().filter(|_| !self.reaches(&frame)) {
                Some(owner) => self.driver_stream.copy_from_peer((from, owner), to, size)?,
                None => self.driver_stream.copy(from, to, size)?,
            }
        }
        drop(self.held(frame, &self.driver_stream));
        let (place, memories) = (self.place(to, &layout), memory.memories.clone());
        let copied = Copied { memory: Some(memory), spare: self.spare.clone() };
        // SAFETY: the memory is as long as the layout, and goes back to be used on the same stream.
        unsafe { memories.wrap(place, BufferAccess::AfterStream, copied) }
    }

    fn place<'a>(&'a self, address: u64, layout: &'a VideoInfo) -> DeviceRegion<'a> {
        let (context, stream) = (&self.context, Some(&self.stream));
        DeviceRegion { address, layout, context, stream }
    }

    /// A copy of the frame in host memory.
    pub fn download(
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
        // Where this device does not reach, that of the memory downloads.
        let own = match frame.memory().context().filter(|_| !self.reaches(frame)) {
            Some(owner) => &Stream::default_of(owner),
            None => &*self.driver_stream,
        };
        {
            let buffer = buffer.make_mut();
            let mut map =
                buffer.map_writable().map_err(|_| problem("A new buffer can't be mapped: free some memory, or hold fewer frames downstream"))?;
            let start = map.as_mut_ptr();
            for plane in 0..video.n_planes() as usize {
                let (height, width) = plane_size(video, plane);
                let copy = Copy2d {
                    from: Address::Device(frame.address() + from.offset()[plane] as u64),
                    from_pitch: from.stride()[plane] as usize,
                    // SAFETY: planes of a GstVideoInfo lie within its size, which the buffer has.
                    to: Address::Host(unsafe { start.add(video.offset()[plane]) }),
                    to_pitch: video.stride()[plane] as usize,
                    width,
                    height,
                };
                // SAFETY: both ends are valid until the stream is waited for below, since frame and map
                // are borrowed until then.
                unsafe { own.copy_2d(&copy) }?;
            }
            own.synchronize()?;
        }
        Ok(buffer)
    }
}

/// How the frame lies in its slot.
fn layout(frame: &Frame, video: &VideoInfo) -> Result<VideoInfo, gstcuda::Error> {
    let (planes, (offsets, strides)) = (frame.info.planes.len(), frame.info.planes.to_arrays());
    VideoInfo::builder(video.format(), video.width(), video.height())
        .offset(&offsets[..planes])
        .stride(&strides[..planes])
        .size(frame.info.size)
        .build()
        .map_err(|e| gstcuda::Error::Mismatch {
            problem: format!(
                "An impossible layout ({e}): run the same version of cuframes on both sides"
            ),
        })
}
