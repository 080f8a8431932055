// SPDX-License-Identifier: LGPL-2.1-or-later
//! `cuframespacketsrc`: subscribes to one track of a publisher's packets.

use gst::glib;
use gst::prelude::*;

mod imp;
mod session;
mod settings;
mod stats;

glib::wrapper! {
    pub(crate) struct CuframesPacketSrc(ObjectSubclass<imp::CuframesPacketSrc>)
        @extends gst_base::PushSrc, gst_base::BaseSrc, gst::Element, gst::Object,
        @implements gst::URIHandler;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    #[cfg(feature = "doc")]
    for enumeration in [settings::Start::static_type(), settings::PacketMode::static_type()] {
        enumeration.mark_as_plugin_api(gst::PluginAPIFlags::empty());
    }
    gst::Element::register(
        Some(plugin),
        "cuframespacketsrc",
        gst::Rank::NONE,
        CuframesPacketSrc::static_type(),
    )
}
