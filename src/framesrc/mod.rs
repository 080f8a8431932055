// SPDX-License-Identifier: LGPL-2.1-or-later
//! `cuframessrc`: subscribes to the frames of a publisher.

use gst::glib;
use gst::prelude::*;

mod buffer;
mod cuda;
mod imp;
mod settings;
mod stats;

glib::wrapper! {
    pub(crate) struct CuframesSrc(ObjectSubclass<imp::CuframesSrc>)
        @extends gst_base::PushSrc, gst_base::BaseSrc, gst::Element, gst::Object,
        @implements gst::URIHandler;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    #[cfg(feature = "doc")]
    {
        let none = gst::PluginAPIFlags::empty();
        settings::Mode::static_type().mark_as_plugin_api(none);
        settings::IoMode::static_type().mark_as_plugin_api(none);
        crate::properties::OnLost::static_type().mark_as_plugin_api(none);
        crate::properties::OnEos::static_type().mark_as_plugin_api(none);
    }
    gst::Element::register(Some(plugin), "cuframessrc", gst::Rank::NONE, CuframesSrc::static_type())
}
