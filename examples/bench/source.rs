//! `benchsrc`: frames in the memory that downstream offers, as fast as it takes them. Nothing is painted,
//! so that what is measured is how fast frames are handed over and not how fast they are made.

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;

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
        // Live, and without a clock to wait for: nothing comes before PLAYING, and then all at once.
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
        // How large the buffers are if nobody downstream offers a pool.
        self.obj().set_blocksize(info.size() as u32);
        self.parent_set_caps(caps)
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
