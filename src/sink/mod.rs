//! `cuframessink`: a bin that holds one small sink for the frames and one for each track of packets,
//! so that clock, preroll, latency and end of stream are those of every GStreamer sink.

use gst::glib;
use gst::prelude::*;

mod cuda;
mod frames;
mod imp;
mod packets;
mod pool;

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
        name = "Wait for strict and lossless subscribers, each frame or packet up to wait-timeout",
        nick = "wait"
    )]
    Wait,
}

/// Where published frames lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesMemory")]
pub enum Memory {
    #[default]
    #[enum_value(
        name = "Where upstream makes them; on a GPU, vmm where the driver can",
        nick = "auto"
    )]
    Auto,
    #[enum_value(name = "On a GPU, as file descriptors of the driver", nick = "vmm")]
    Vmm,
    #[enum_value(
        name = "On a GPU, by the driver's older handles: the same PID and IPC namespaces only",
        nick = "ipc"
    )]
    Ipc,
    #[enum_value(name = "In host memory: upstream downloads", nick = "host")]
    Host,
}

/// How subscribers learn that a frame on a GPU is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesSyncMode")]
pub enum SyncMode {
    #[default]
    #[enum_value(name = "The best that device and memory can", nick = "auto")]
    Auto,
    #[enum_value(name = "The GPU writes the frame's number behind it", nick = "timeline")]
    Timeline,
    #[enum_value(name = "An event of the driver for each slot, with memory=ipc", nick = "event")]
    Event,
    #[enum_value(name = "The publisher's CPU waits for the GPU", nick = "host")]
    Host,
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
    for class in [Policy::static_type(), Memory::static_type(), SyncMode::static_type()] {
        class.mark_as_plugin_api(gst::PluginAPIFlags::empty());
    }
    gst::Element::register(
        Some(plugin),
        "cuframessink",
        gst::Rank::NONE,
        CuframesSink::static_type(),
    )
}
