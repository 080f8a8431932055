//! `cuframespacketsrc`: the packets of a publisher.

use gst::glib;
use gst::prelude::*;

mod imp;
mod session;

/// Where a source begins in the packets that are there.
#[allow(clippy::enum_variant_names, reason = "the nicks are what users write")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesStart")]
pub enum Start {
    #[default]
    #[enum_value(name = "The newest keyframe that is there", nick = "latest-keyframe")]
    LatestKeyframe,
    #[enum_value(name = "The next keyframe that is published", nick = "next-keyframe")]
    NextKeyframe,
    #[enum_value(name = "The oldest keyframe that is still there", nick = "oldest-keyframe")]
    OldestKeyframe,
}

/// What becomes of packets that a source has not yet taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesPacketMode")]
pub enum PacketMode {
    #[default]
    #[enum_value(name = "The publisher overwrites them; go on at a keyframe", nick = "live")]
    Live,
    #[enum_value(name = "A publisher with policy=wait keeps them", nick = "lossless")]
    Lossless,
}

glib::wrapper! {
    pub struct CuframesPacketSrc(ObjectSubclass<imp::CuframesPacketSrc>)
        @extends gst_base::PushSrc, gst_base::BaseSrc, gst::Element, gst::Object,
        @implements gst::URIHandler;
}

pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    #[cfg(feature = "doc")]
    for enumeration in [Start::static_type(), PacketMode::static_type()] {
        enumeration.mark_as_plugin_api(gst::PluginAPIFlags::empty());
    }
    gst::Element::register(
        Some(plugin),
        "cuframespacketsrc",
        gst::Rank::NONE,
        CuframesPacketSrc::static_type(),
    )
}
