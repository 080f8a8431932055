//! What a publisher can tell of its subscribers.

use std::sync::{Arc, Mutex};

use super::registry::SubscriberHandle;
use super::track::{self, TrackStats};
use crate::shm::layout::{READER_IN_USE, ReaderWords};
use crate::sync::{atomic::Ordering, lock};
use crate::types::code::Mode;

/// Who a subscriber is, and how it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriberInfo {
    pub id: u32,
    pub name: String,
    /// As seen from the publisher's PID namespace; 0 where it is not visible there.
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
    pub mode: Mode,
    /// FramePublisher that it may hold.
    pub max_frames: u32,
    /// FramePublisher that it holds.
    pub held: u32,
    /// Sequence number of the frame that it took last.
    pub cursor: u64,
    /// By its own account.
    pub received: u64,
    pub skipped: u64,
    pub copied: u64,
    /// The tracks that it reads.
    pub packets: Vec<ReaderInfo>,
}

/// How a subscriber does with a track, by its own account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderInfo {
    pub track: u32,
    pub received: u64,
    pub lost: u64,
}

impl SubscriberInfo {
    pub(crate) fn of(peer: &SubscriberHandle) -> Self {
        let h = peer.page.header();
        Self {
            id: peer.id,
            name: peer.name.clone(),
            pid: peer.credentials.pid(),
            uid: peer.credentials.uid(),
            gid: peer.credentials.gid(),
            mode: peer.mode,
            max_frames: peer.credit,
            held: peer.page.count_held(),
            cursor: h.cursor.load(Ordering::Relaxed),
            received: h.received.load(Ordering::Relaxed),
            skipped: h.skipped.load(Ordering::Relaxed),
            copied: h.copied.load(Ordering::Relaxed),
            packets: h.readers.iter().filter_map(ReaderInfo::of).collect(),
        }
    }
}

impl ReaderInfo {
    fn of(words: &ReaderWords) -> Option<Self> {
        let track = words.track.load(Ordering::Relaxed);
        (track & READER_IN_USE != 0).then(|| Self {
            track: track as u32,
            received: words.received.load(Ordering::Relaxed),
            lost: words.lost.load(Ordering::Relaxed),
        })
    }
}

/// What happens at a publisher without its doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublisherEvent {
    SubscriberAdded(SubscriberInfo),
    /// With the reason, if it was sent away.
    SubscriberRemoved(SubscriberInfo, Option<String>),
    SubscriberStalled(SubscriberInfo),
}

/// All tracks of a publisher.
pub(crate) type Tracks = Arc<Mutex<Vec<Arc<track::Track>>>>;

pub(crate) fn track_stats(tracks: &Tracks) -> Vec<TrackStats> {
    let mut tracks: Vec<_> = lock(tracks).iter().map(|t| t.stats()).collect();
    tracks.sort_by_key(|t| t.track);
    tracks
}
