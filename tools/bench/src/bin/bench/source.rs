// SPDX-License-Identifier: LGPL-2.1-or-later
//! `benchsrc`: a source of frames in the memory that downstream offers, as fast as downstream takes them. It
//! draws nothing, so that the measurement does not depend on how fast frames are created.

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;

/// Frames that a sink may hold before the next is created.
const ON_THE_WAY: u32 = 16;

#[derive(Default)]
pub struct BenchSrc;

glib::wrapper! {
    pub struct Source(ObjectSubclass<BenchSrc>)
        @extends gst_base::BaseSrc, gst::Element, gst::Object;
}

pub fn register() -> Result<(), glib::BoolError> {
    gst::Element::register(None, "benchsrc", gst::Rank::NONE, Source::static_type())
}

#[glib::object_subclass]
impl ObjectSubclass for BenchSrc {
    const NAME: &'static str = "CuframesBenchSrc";
    type Type = Source;
    type ParentType = gst_base::BaseSrc;
}

impl ObjectImpl for BenchSrc {
    fn constructed(&self) {
        self.parent_constructed();
        let obj = self.obj();
        // Live, and without a clock: no frame before PLAYING, then all as fast as possible.
        obj.set_live(true);
        obj.set_format(gst::Format::Time);
        obj.set_do_timestamp(true);
    }
}

impl GstObjectImpl for BenchSrc {}

impl ElementImpl for BenchSrc {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: std::sync::LazyLock<gst::subclass::ElementMetadata> =
            std::sync::LazyLock::new(|| {
                let (name, what) = ("Bench source", "Frames that nobody painted");
                gst::subclass::ElementMetadata::new(name, "Source/Video", what, "cuframes")
            });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: std::sync::LazyLock<Vec<gst::PadTemplate>> =
            std::sync::LazyLock::new(|| {
                let caps = gst::Caps::new_empty_simple("video/x-raw");
                let (src, always) = (gst::PadDirection::Src, gst::PadPresence::Always);
                vec![gst::PadTemplate::new("src", src, always, &caps).expect("a valid template")]
            });
        &TEMPLATES
    }
}

impl BaseSrcImpl for BenchSrc {
    fn is_seekable(&self) -> bool {
        false
    }

    fn set_caps(&self, caps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let info = gst_video::VideoInfo::from_caps(caps)?;
        // The size of buffers if downstream offers no pool.
        self.obj().set_blocksize(info.size() as u32);
        self.parent_set_caps(caps)
    }

    /// Uses the allocator that downstream offers without a pool. A sink that shares that memory would copy
    /// other memory, which a source without a limit falls back to when the allocator is exhausted.
    fn decide_allocation(
        &self,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        let memory = query.allocation_params().next();
        if query.allocation_pools().next().is_none()
            && let Some((allocator, params)) = memory
        {
            let (caps, _) = query.get_owned();
            let pool = gst::BufferPool::new();
            let mut config = pool.config();
            let size = self.obj().blocksize();
            config.set_params(caps.as_ref(), size, 0, ON_THE_WAY);
            config.set_allocator(allocator.as_ref(), Some(&params));
            pool.set_config(config)?;
            query.add_allocation_pool(Some(&pool), size, 0, ON_THE_WAY);
        }
        self.parent_decide_allocation(query)
    }

    fn fill(
        &self,
        _: u64,
        _: u32,
        _: &mut gst::BufferRef,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        Ok(gst::FlowSuccess::Ok)
    }
}
