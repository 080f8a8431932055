// SPDX-License-Identifier: LGPL-2.1-or-later
//! GStreamer's CUDA library, `libgstcuda`: its contexts, streams, memory and buffer pools.
//!
//! The library is opened on first use, so that one plugin serves hosts with and without it. Every
//! function and field used here exists since GStreamer 1.24.

mod context;
mod error;
mod library;
pub(crate) mod memory;
pub(crate) mod memory_cache;
pub(crate) mod pool;
mod stream;

pub(crate) use context::{ContextSlot, CudaContext};
pub(crate) use error::Error;
pub(crate) use library::GstCuda;
pub(crate) use memory::{
    DeviceMap, allocate, map_device, memory_context, memory_info, memory_stream,
};
pub(crate) use stream::CudaStream;

/// Fixture of the tests that need a GPU.
#[cfg(test)]
mod fixture {
    use cuframes::cuda::{Context, Device};

    use super::{ContextSlot, CudaContext, CudaStream};

    /// Bytes of a frame of 1920x1080 in NV12.
    pub(super) const FRAME: usize = 1920 * 1080 * 3 / 2;

    /// A GStreamer context and stream on the first GPU, and the driver's view of them.
    pub(super) struct Gpu {
        pub(super) context: CudaContext,
        pub(super) stream: CudaStream,
        /// The driver's context of `context`.
        pub(super) driver: Context,
        /// The primary context of the same GPU.
        pub(super) primary: Context,
    }

    impl Gpu {
        pub(super) fn new() -> Self {
            gst::init().unwrap();
            let element = gst::ElementFactory::make("fakesink").build().unwrap();
            let context = ContextSlot::default().ensure(&element, 0).unwrap();
            let stream = CudaStream::new(&context).unwrap();
            let driver = context.driver_context().unwrap();
            let primary = Context::primary(&Device::by_ordinal(0).unwrap()).unwrap();
            Self { context, stream, driver, primary }
        }

        /// A layout without padding, which differs from the one that GStreamer would choose.
        pub(super) fn nv12(&self) -> gst_video::VideoInfo {
            gst_video::VideoInfo::builder(gst_video::VideoFormat::Nv12, 1920, 1080)
                .stride(&[1920, 1920])
                .offset(&[0, 1920 * 1080])
                .size(FRAME)
                .build()
                .unwrap()
        }
    }

    /// A frame of bytes that depend on their position and on `seed`.
    pub(super) fn pattern(seed: usize) -> Vec<u8> {
        (0..FRAME).map(|i| ((i + seed) % 253) as u8).collect()
    }
}
