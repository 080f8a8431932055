//! What the parts of a publisher share.

use std::sync::Arc;

use super::frames::Frames;
use super::info::Tracks;
use super::registry::Board;

pub(crate) struct State {
    pub key: String,
    pub name: String,
    pub epoch: u64,
    pub board: Arc<Board>,
    pub frames: Arc<Frames>,
    pub tracks: Tracks,
    pub max_subscribers: u32,
    pub max_credit: u32,
}
