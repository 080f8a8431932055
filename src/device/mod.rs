//! The live keys as devices: what `gst-device-monitor-1.0 Source/Video` lists.

use gst::glib;
use gst::prelude::*;

mod imp;
mod provider;

glib::wrapper! {
    /// The frames of a key, or a track of its packets.
    pub struct CuframesDevice(ObjectSubclass<imp::CuframesDevice>)
        @extends gst::Device, gst::Object;
}

glib::wrapper! {
    pub struct CuframesDeviceProvider(ObjectSubclass<provider::CuframesDeviceProvider>)
        @extends gst::DeviceProvider, gst::Object;
}

pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::DeviceProvider::register(
        Some(plugin),
        "cuframesdeviceprovider",
        // With none, a monitor would leave it out.
        gst::Rank::PRIMARY,
        CuframesDeviceProvider::static_type(),
    )
}
