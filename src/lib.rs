//! cuframes: one process decodes a camera, all others on the host get its frames and packets.
//!
//! This is a GStreamer plugin with the elements `cuframessink`, `cuframessrc` and
//! `cuframespacketsrc`, on top of the library [`cuframes`], which needs no GStreamer.

use gst::glib;
use gst::prelude::*;

mod device;
mod framesrc;
#[doc(hidden)]
pub mod gstcuda;
mod log;
mod meta;
mod packetsrc;
mod properties;
mod sink;
mod source;
mod time;
mod uri;

/// What the manual shows is compiled with the tests of the documentation.
#[cfg(doctest)]
#[doc = include_str!("../docs/consume-frames.md")]
struct ConsumeFrames;

fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    log::init();
    meta::register();
    // Caps that come from another process name it, and are parsed before anybody here has used it.
    let _ = gst_video::VideoMultiviewFlags::static_type();
    // SAFETY: registers a type with GObject.
    unsafe { gst_video::ffi::gst_video_multiview_flagset_get_type() };
    sink::register(plugin)?;
    framesrc::register(plugin)?;
    packetsrc::register(plugin)?;
    device::register(plugin)
}

gst::plugin_define!(
    cuframes,
    env!("CARGO_PKG_DESCRIPTION"),
    plugin_init,
    concat!(env!("CARGO_PKG_VERSION"), "-", env!("COMMIT_ID")),
    // GStreamer knows licences by these names only.
    "LGPL",
    env!("CARGO_PKG_NAME"),
    env!("CARGO_PKG_NAME"),
    "https://github.com/cuframes/gst-plugin-cuframes",
    env!("BUILD_REL_DATE")
);
