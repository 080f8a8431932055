// SPDX-License-Identifier: LGPL-2.1-or-later
//! Device provider: lists live keys as devices, as in `gst-device-monitor-1.0 Source/Video`.

use gst::glib;
use gst::prelude::*;

mod imp;
mod provider;

glib::wrapper! {
    /// The frames of a key, or one track of its packets.
    pub(crate) struct CuframesDevice(ObjectSubclass<imp::CuframesDevice>)
        @extends gst::Device, gst::Object;
}

glib::wrapper! {
    pub(crate) struct CuframesDeviceProvider(ObjectSubclass<provider::CuframesDeviceProvider>)
        @extends gst::DeviceProvider, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::DeviceProvider::register(
        Some(plugin),
        "cuframesdeviceprovider",
        // Device monitors ignore providers with rank NONE.
        gst::Rank::PRIMARY,
        CuframesDeviceProvider::static_type(),
    )
}
