//! Frames of device memory: one asynchronous copy into a slot, on the stream of whoever made the frame,
//! and the frame's number behind it. The CPU waits for neither.

use std::sync::Arc;

use crate::core::Publisher;
use crate::gpu::{self, Address, Context, Copy2d, HostAccess, RegisteredHost, Stream, gstcuda};
use crate::memory::cuda::CudaBackend;
use crate::properties::plane_size;
use crate::{FrameInfo, Planes};

/// Rows and planes begin on multiples of this, as textures want it (512 bytes).
const ALIGNMENT: u32 = 512 - 1;

/// What publishes frames of one CUDA context.
pub struct DeviceSink {
    context: Context,
    /// The memory with the number of the newest complete frame, and where in it that is. `None` if the
    /// device can't write it; then the CPU waits for each copy.
    ready: Option<(RegisteredHost, usize)>,
    /// Where the planes lie in a slot.
    layout: gst_video::VideoInfo,
    /// The stream of the last frame.
    stream: Option<Stream>,
}

impl DeviceSink {
    /// Publishes frames like this one from here on.
    pub fn new(
        publisher: &Publisher,
        caps: &gst::Caps,
        info: &gst_video::VideoInfo,
        memory: &gst::MemoryRef,
    ) -> Result<Self, crate::Error> {
        let context = gstcuda::memory_context(memory)
            .ok_or_else(|| gpu::Error::Value {
                problem: "Frames with CUDA caps came in other memory".into(),
            })?
            .driver_context()?;
        let backend = Arc::new(CudaBackend::new(context.clone())?);
        let mut layout = info.clone();
        let mut alignment = gst_video::VideoAlignment::new(0, 0, 0, 0, &[ALIGNMENT; 4]);
        layout.align(&mut alignment).map_err(|_| gpu::Error::Value {
            problem: format!("{caps} can't be laid out in device memory"),
        })?;
        let ready = if context.device().can_write_values() {
            let (start, len, offset, keep) = publisher.ready_word();
            // SAFETY: the segment is mapped for writing until `keep` is dropped, and made of atomics
            // that are read as such.
            let memory =
                unsafe { RegisteredHost::new(&context, start, len, HostAccess::ReadWrite, keep) }?;
            Some((memory, offset))
        } else {
            None
        };
        publisher.set_format_in(backend, &caps.to_string(), layout.size())?;
        Ok(Self { context, ready, layout, stream: None })
    }

    /// How subscribers learn that a frame is complete.
    pub fn sync_mode(&self) -> &'static str {
        if self.ready.is_some() { "timeline" } else { "host" }
    }

    /// Publishes a frame. False where no slot is free, or the wait for one was cancelled.
    pub fn publish(
        &mut self,
        publisher: &Publisher,
        buffer: &gst::BufferRef,
        info: FrameInfo,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<bool, crate::Error> {
        let memory = buffer.peek_memory(0);
        let map = gstcuda::map_device(memory)?;
        let Some(loan) = publisher.loan_unless(self.layout.size(), cancelled)? else {
            return Ok(false);
        };
        let stream = match gstcuda::memory_stream(memory) {
            Some(stream) => stream.driver_stream(&self.context),
            None => Stream::default_of(&self.context),
        };
        // Frames become ready in their order, so a new stream begins when the old one is done.
        if let Some(before) = &self.stream
            && before.handle() != stream.handle()
        {
            before.synchronize()?;
        }
        let source = gstcuda::memory_info(memory).ok_or_else(|| gpu::Error::Value {
            problem: "A frame without a layout in device memory".into(),
        })?;
        for plane in 0..self.layout.n_planes() as usize {
            let (height, width) = plane_size(&self.layout, plane);
            let copy = Copy2d {
                from: Address::Device(map.address() + source.offset()[plane] as u64),
                from_pitch: source.stride()[plane] as usize,
                to: Address::Device(loan.address() + self.layout.offset()[plane] as u64),
                to_pitch: self.layout.stride()[plane] as usize,
                width,
                height,
            };
            // SAFETY: the planes lie within the frame as its own GstVideoInfo says, and within the slot
            // by the layout that the slot was made for. The frame may be let go of when this function
            // returns: whatever writes to it next does so on the same stream, behind this copy. The slot
            // is not used again before a subscriber could see the frame, which is behind it as well.
            unsafe { stream.copy_2d(&copy) }?;
        }
        let planes = Planes::new(self.layout.offset(), self.layout.stride());
        let info = FrameInfo { size: self.layout.size(), planes, ..info };
        match &self.ready {
            Some((memory, offset)) => {
                let seq = publisher.publish_unready(loan, &info);
                stream.write_value(memory, *offset, seq)?;
            }
            None => {
                stream.synchronize()?;
                publisher.publish(loan, &info);
            }
        }
        self.stream = Some(stream);
        Ok(true)
    }
}
