//! Frames of a publisher of device memory: wrapped where they are, or downloaded.

use std::sync::Arc;

use gst_video::VideoInfo;

use crate::gpu::gstcuda::{self, CudaContext, CudaStream};
use crate::gpu::{self, Address, Context, Copy2d, HostAccess, RegisteredHost, Stream};
use crate::properties::plane_size;
use crate::{Frame, Subscriber};

/// What emits the frames of one publisher in one CUDA context.
pub struct DeviceSource {
    context: CudaContext,
    /// What downstream enqueues its work on.
    stream: CudaStream,
    driver_stream: Arc<Stream>,
    /// The page of the claims, for the device to clear them. `None` if it can't; then the CPU waits for
    /// downstream's work before it gives a frame back.
    claims: Option<Arc<RegisteredHost>>,
}

impl DeviceSource {
    pub fn new(context: CudaContext, subscriber: &Subscriber) -> Result<Self, gpu::Error> {
        let driver: Context = context.driver_context()?;
        let stream = CudaStream::new(&context)?;
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
        Ok(Self { context, stream, driver_stream, claims })
    }

    /// The frame as memory that downstream takes as its own. The claim goes when the last reference is
    /// dropped and the work that was enqueued on the stream by then is done.
    pub fn wrap(&self, frame: Frame, video: &VideoInfo) -> Result<gst::Memory, gpu::Error> {
        let layout = layout(&frame, video)?;
        let (stream, claims) = (self.driver_stream.clone(), self.claims.clone());
        let address = frame.address();
        let freed = move || {
            frame.release_with(|offset| {
                let cleared = claims.as_ref().map(|c| stream.write_value(c, offset, 0));
                if matches!(cleared, Some(Ok(()))) {
                    return true;
                }
                let _ = stream.synchronize();
                false
            });
        };
        // SAFETY: the frame's planes lie within its slot, which the caller has checked. The slot is
        // mapped while `freed` has the frame, and not written by the publisher before the claim is
        // cleared, behind the work on the stream.
        unsafe { gstcuda::wrap(&self.context, Some(&self.stream), &layout, address, freed) }
    }

    /// A copy of the frame in host memory.
    pub fn download(&self, frame: &Frame, video: &VideoInfo) -> Result<gst::Buffer, gpu::Error> {
        let problem = |problem: &str| gpu::Error::Value { problem: problem.to_owned() };
        let mut buffer = gst::Buffer::with_size(video.size())
            .map_err(|_| problem("There is no memory left for a frame"))?;
        let from = layout(frame, video)?;
        {
            let buffer = buffer.make_mut();
            let mut map =
                buffer.map_writable().map_err(|_| problem("A new buffer can't be mapped"))?;
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
                unsafe { self.driver_stream.copy_2d(&copy) }?;
            }
            self.driver_stream.synchronize()?;
        }
        Ok(buffer)
    }
}

/// How the frame lies in its slot.
fn layout(frame: &Frame, video: &VideoInfo) -> Result<VideoInfo, gpu::Error> {
    let (planes, (offsets, strides)) = (frame.info.planes.len(), frame.info.planes.to_arrays());
    VideoInfo::builder(video.format(), video.width(), video.height())
        .offset(&offsets[..planes])
        .stride(&strides[..planes])
        .size(frame.info.size)
        .build()
        .map_err(|e| gpu::Error::Value { problem: format!("An impossible layout: {e}") })
}
