// SPDX-License-Identifier: LGPL-2.1-or-later
//! State that the parts of a publisher share.

use std::sync::Arc;

use super::frames::FramePublisher;
use super::info::Tracks;
use super::registry::Registry;

pub(super) struct State {
    pub(super) key: String,
    pub(super) name: String,
    /// Number of this run of the publisher.
    pub(super) epoch: u64,
    pub(super) registry: Arc<Registry>,
    pub(super) frames: Arc<FramePublisher>,
    pub(super) tracks: Tracks,
    pub(super) max_subscribers: u32,
    pub(super) max_frames_per_subscriber: u32,
}
