// SPDX-License-Identifier: LGPL-2.1-or-later
//! GStreamer plugin that shares a camera's frames and encoded packets between processes.
//!
//! One process decodes the camera and publishes it with `cuframessink`. Every other process on the
//! host subscribes with `cuframessrc` (frames) or `cuframespacketsrc` (packets). The elements use
//! the library [`cuframes`], which works without GStreamer.
//!
//! Modules use only modules of the lines below them:
//!
//! | modules | content |
//! |---|---|
//! | `sink`, `framesrc`, `packetsrc`, `device` | the elements and the device provider |
//! | `source` | common parts of both sources |
//! | `uri`, `meta`, `messages` | URIs, metadata of buffers, messages on the bus |
//! | `caps`, `properties`, `time` | caps, properties, timestamps |
//! | `gstcuda` | GStreamer's CUDA library |
//! | `log` | the debug category |

#![allow(missing_docs, reason = "plugin_define! generates items without documentation")]

use gst::glib;
use gst::prelude::*;

mod caps;
mod device;
mod framesrc;
mod gstcuda;
mod log;
mod messages;
mod meta;
mod packetsrc;
mod properties;
mod sink;
mod source;
#[doc(hidden)]
pub mod testing;
mod time;
mod uri;

/// The examples of the manual, compiled as doctests.
#[cfg(doctest)]
#[doc = include_str!("../docs/consume-frames.md")]
struct ConsumeFrames;

fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    log::init();
    meta::register();
    // Caps from another process name these types, and may be parsed before any other code has
    // registered them.
    let _ = gst_video::VideoMultiviewFlags::static_type();
    // SAFETY: the function registers a type with GObject and takes no arguments.
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
    // GStreamer accepts a fixed list of license names; this one stands for the LGPL 2.1 or later.
    "LGPL",
    env!("CARGO_PKG_NAME"),
    env!("CARGO_PKG_NAME"),
    "https://github.com/cuframes/gst-plugin-cuframes",
    env!("BUILD_REL_DATE")
);
