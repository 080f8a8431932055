//! What the parts of a publisher share.

use std::sync::Arc;

use super::frames::FramePublisher;
use super::info::Tracks;
use super::registry::Registry;

pub(crate) struct State {
    pub key: String,
    pub name: String,
    pub epoch: u64,
    pub registry: Arc<Registry>,
    pub frames: Arc<FramePublisher>,
    pub tracks: Tracks,
    pub max_subscribers: u32,
    pub max_frames_per_subscriber: u32,
}
