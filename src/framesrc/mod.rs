//! `cuframessrc`: the frames of a publisher.

use gst::glib;
use gst::prelude::*;

mod cuda;
mod imp;

/// Which frames a source takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesMode")]
pub enum Mode {
    #[default]
    #[enum_value(
        name = "The newest frame each time; those in between are skipped",
        nick = "newest"
    )]
    Newest,
    #[enum_value(
        name = "Every frame in order, as far as the publisher still has it",
        nick = "strict"
    )]
    Strict,
}

/// How frames of device memory reach downstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesIoMode")]
pub enum IoMode {
    #[default]
    #[enum_value(name = "Without a copy, as long as downstream holds few enough", nick = "auto")]
    Auto,
    #[enum_value(
        name = "Without a copy; wait while downstream holds one frame more than max-held",
        nick = "import"
    )]
    Import,
    #[enum_value(
        name = "Always as a copy, for elements that refuse imported memory",
        nick = "copy"
    )]
    Copy,
}

glib::wrapper! {
    pub struct CuframesSrc(ObjectSubclass<imp::CuframesSrc>)
        @extends gst_base::PushSrc, gst_base::BaseSrc, gst::Element, gst::Object,
        @implements gst::URIHandler;
}

pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    #[cfg(feature = "doc")]
    {
        let none = gst::PluginAPIFlags::empty();
        Mode::static_type().mark_as_plugin_api(none);
        IoMode::static_type().mark_as_plugin_api(none);
        crate::properties::OnLost::static_type().mark_as_plugin_api(none);
        crate::properties::OnEos::static_type().mark_as_plugin_api(none);
    }
    gst::Element::register(Some(plugin), "cuframessrc", gst::Rank::NONE, CuframesSrc::static_type())
}
