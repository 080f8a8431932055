// SPDX-License-Identifier: LGPL-2.1-or-later
//! Helpers that tests, benchmarks and examples of this workspace share. None of them uses GStreamer.
//!
//! - [`TestDir`]: a runtime directory of one test's own, with a [`Watchdog`].
//! - [`TestSubscriber`], [`FrameLog`]: subscribe, and check every frame of a stream.
//! - [`Child`]: runs the test program again, in a role.
//! - [`drop_root`]: continues as a user without rights.
//! - [`built`], [`command`], [`ChildGroup`], [`Camera`]: run programs of this workspace.
//! - [`stamp`]: a number that is drawn into a picture and survives a codec.
//! - [`raw`]: the wire protocol by hand, for peers that violate it.
//! - [`ReadableWords`]: attacks on the sleepers of a mapping.

mod camera;
mod child;
mod dir;
mod program;
pub mod raw;
mod readable_words;
mod resources;
pub mod stamp;
mod subscriber;
mod user;
mod watchdog;

pub use camera::Camera;
pub use child::{Child, exit_with_parent, report, role, wait_for_parent};
pub use dir::{CAPS, SIZE, TestDir};
pub use program::{
    ChildGroup, built, command, find, has, launched, launcher, output, plugin_dir, root, skip,
};
pub use readable_words::ReadableWords;
pub use resources::{FullTable, Resources, limit};
pub use subscriber::{FrameLog, TestSubscriber, fill, info, item, number, publish};
pub use user::{NOBODY, become_user, drop_root};
pub use watchdog::{Watchdog, until};
