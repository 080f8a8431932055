// SPDX-License-Identifier: LGPL-2.1-or-later
//! Helpers that tests, benchmarks and examples of this workspace share. None of them uses GStreamer.
//!
//! - [`TestDir`]: a runtime directory of one test's own, with a [`Watchdog`].
//! - [`TestSubscriber`], [`FrameLog`]: subscribe, and check every frame of a stream.
//! - [`Child`]: runs the test program again, in a role.
//! - [`built`], [`command`], [`ChildGroup`], [`Camera`]: run programs of this workspace.
//! - [`stamp`]: a number that is drawn into a picture and survives a codec.
//! - [`raw`]: the wire protocol by hand, for peers that violate it.

mod camera;
mod child;
mod dir;
mod program;
pub mod raw;
mod resources;
pub mod stamp;
mod subscriber;
mod watchdog;

pub use camera::Camera;
pub use child::{Child, exit_with_parent, report, role, wait_for_parent};
pub use dir::{CAPS, SIZE, TestDir};
pub use program::{
    ChildGroup, built, command, find, has, launched, launcher, output, plugin_dir, root, skip,
};
pub use resources::{FullTable, Resources, limit};
pub use subscriber::{FrameLog, TestSubscriber, fill, info, item, number, publish};
pub use watchdog::{Watchdog, until};
