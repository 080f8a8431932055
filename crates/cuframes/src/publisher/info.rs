// SPDX-License-Identifier: LGPL-2.1-or-later
//! Events and statistics that a publisher reports about its subscribers.

use std::sync::{Arc, Mutex};

use super::handle::SubscriberHandle;
use super::track::{TrackStats, TrackWriter};
use crate::shm::layout::{READER_IN_USE, ReaderWords};
use crate::sync::{atomic::Ordering, lock};
use crate::types::mode::Mode;

/// Identity and counters of a connected subscriber.
///
/// `cursor`, `received`, `skipped`, `copied` and `packets` are what the subscriber itself reports; the publisher does
/// not verify them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriberInfo {
    /// Number of the subscriber, unique within this run of the publisher.
    pub id: u32,
    /// Name that the subscriber gave itself.
    pub name: String,
    /// Process id in the publisher's PID namespace; 0 if the process is not visible there.
    pub pid: i32,
    /// User id of the process when it connected.
    pub uid: u32,
    /// Group id of the process when it connected.
    pub gid: u32,
    /// Which frames the subscriber takes.
    pub mode: Mode,
    /// Maximum number of frames that the subscriber may hold at a time; 0 if it takes packets only.
    pub max_frames: u32,
    /// Number of frames that the subscriber holds.
    pub held: u32,
    /// Sequence number of the last frame that it took; initially that of the newest frame when it joined.
    pub cursor: u64,
    /// Number of frames that it took.
    pub received: u64,
    /// Number of frames that it missed between two frames that it took.
    pub skipped: u64,
    /// Number of taken frames that it copied because it held too many.
    pub copied: u64,
    /// Its readers of packets.
    pub packets: Vec<ReaderInfo>,
}

/// Counters of a packet reader, as its subscriber reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderInfo {
    /// Number of the track.
    pub track: u32,
    /// Number of packets that the reader took.
    pub received: u64,
    /// Number of packets that the reader missed.
    pub lost: u64,
}

impl SubscriberInfo {
    pub(super) fn of(subscriber: &SubscriberHandle) -> Self {
        let h = subscriber.page.header();
        Self {
            id: subscriber.id,
            name: subscriber.name.clone(),
            pid: subscriber.credentials.pid(),
            uid: subscriber.credentials.uid(),
            gid: subscriber.credentials.gid(),
            mode: subscriber.mode,
            max_frames: subscriber.credit,
            held: subscriber.page.count_held(),
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
        // SYNC(reader/register): pairs with the Release in the subscriber's `PacketReader`. The counters are those of
        // this reader.
        let track = words.track.load(Ordering::Acquire);
        (track & READER_IN_USE != 0).then(|| Self {
            track: track as u32,
            received: words.received.load(Ordering::Relaxed),
            lost: words.lost.load(Ordering::Relaxed),
        })
    }
}

/// A change that a publisher reports to its application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublisherEvent {
    /// A subscriber has joined.
    SubscriberAdded(SubscriberInfo),
    /// A subscriber has disconnected. The text is the reason if it was evicted.
    SubscriberRemoved(SubscriberInfo, Option<String>),
    /// A subscriber holds frames and has taken none for 3 s, although new frames were published. Reported once per
    /// stall.
    SubscriberStalled(SubscriberInfo),
}

/// All tracks of a publisher.
pub(super) type Tracks = Arc<Mutex<Vec<Arc<TrackWriter>>>>;

/// Returns the statistics of all tracks, in the order of their numbers.
pub(super) fn track_stats(tracks: &Tracks) -> Vec<TrackStats> {
    let mut tracks: Vec<_> = lock(tracks).iter().map(|t| t.stats()).collect();
    tracks.sort_by_key(|t| t.track);
    tracks
}
