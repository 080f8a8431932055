//! `cuframessink`: a bin that holds one small sink for the frames and one for each track of packets,
//! so that clock, preroll, latency and end of stream are those of every GStreamer sink.

use gst::glib;
use gst::prelude::*;

mod cuda;
mod frames;
mod imp;
mod packets;
mod pool;

pub use imp::lock;

/// What happens to a new frame when subscribers are not done with the old ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesPolicy")]
pub enum Policy {
    /// A frame for which there is no slot is dropped.
    #[default]
    #[enum_value(name = "Never wait: drop a frame for which there is no slot", nick = "drop")]
    Drop,
    /// Strict subscribers get every frame.
    #[enum_value(
        name = "Wait for strict subscribers, each frame up to wait-timeout",
        nick = "wait"
    )]
    Wait,
}

glib::wrapper! {
    pub struct CuframesSink(ObjectSubclass<imp::CuframesSink>)
        @extends gst::Bin, gst::Element, gst::Object, @implements gst::ChildProxy;
}

glib::wrapper! {
    pub struct FrameSink(ObjectSubclass<frames::FrameSink>)
        @extends gst_base::BaseSink, gst::Element, gst::Object;
}

glib::wrapper! {
    pub struct PacketSink(ObjectSubclass<packets::PacketSink>)
        @extends gst_base::BaseSink, gst::Element, gst::Object;
}

glib::wrapper! {
    pub struct SlotPool(ObjectSubclass<pool::SlotPool>)
        @extends gst::BufferPool, gst::Object;
}

pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    #[cfg(feature = "doc")]
    Policy::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    gst::Element::register(
        Some(plugin),
        "cuframessink",
        gst::Rank::NONE,
        CuframesSink::static_type(),
    )
}
