// SPDX-License-Identifier: LGPL-2.1-or-later
//! `cuframessink`: publishes frames and packets.
//!
//! The element is a bin with one sink for the frames and one for each track of packets. These derive
//! from GstBaseSink, so that clock, preroll, latency and end of stream work as in other sinks.

use gst::glib;
use gst::prelude::*;

mod cuda;
mod framesink;
mod imp;
mod packetsink;
mod pool;
mod publication;
mod settings;
mod slot_memory;
mod stats;

glib::wrapper! {
    pub(crate) struct CuframesSink(ObjectSubclass<imp::CuframesSink>)
        @extends gst::Bin, gst::Element, gst::Object, @implements gst::ChildProxy;
}

glib::wrapper! {
    pub(crate) struct FrameSink(ObjectSubclass<framesink::FrameSink>)
        @extends gst_base::BaseSink, gst::Element, gst::Object;
}

glib::wrapper! {
    pub(crate) struct PacketSink(ObjectSubclass<packetsink::PacketSink>)
        @extends gst_base::BaseSink, gst::Element, gst::Object;
}

glib::wrapper! {
    pub(crate) struct SlotPool(ObjectSubclass<pool::SlotPool>)
        @extends gst::BufferPool, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    #[cfg(feature = "doc")]
    {
        let none = gst::PluginAPIFlags::empty();
        settings::Policy::static_type().mark_as_plugin_api(none);
        settings::Memory::static_type().mark_as_plugin_api(none);
        settings::SyncMode::static_type().mark_as_plugin_api(none);
    }
    gst::Element::register(
        Some(plugin),
        "cuframessink",
        gst::Rank::NONE,
        CuframesSink::static_type(),
    )
}
