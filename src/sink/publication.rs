// SPDX-License-Identifier: LGPL-2.1-or-later
//! State that the bin and its inner sinks share: the publisher, its options and its recent packets.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::settings::{DEFAULT_MEMORY, DEFAULT_SYNC_MODE, Memory, SyncMode};
use cuframes::memory::Backend;
use cuframes::memory::host::HostBackend;
use cuframes::sync::lock;
use cuframes::{PacketId, Publisher, TrackConfig};

/// Shared state of a `cuframessink`.
pub(super) struct Publication {
    /// The publisher, which exists from PAUSED to READY.
    publisher: Mutex<Option<Arc<Publisher>>>,
    /// The key of the publisher, for messages.
    key: Mutex<String>,
    /// Allocates slots in host memory.
    pub(super) host: Arc<dyn Backend>,
    /// The properties `memory` and `sync-mode`.
    memory: Mutex<(Memory, SyncMode)>,
    /// The sync mode in use; never [`SyncMode::Auto`].
    pub(super) sync_mode: Mutex<SyncMode>,
    /// Frames that arrived outside of slots.
    pub(super) copied: AtomicU64,
    /// The property `forward-eos` is false.
    no_eos: AtomicBool,
    /// Configuration of new tracks.
    tracks: Mutex<TrackConfig>,
    /// Recent packets, which tag each frame with the packet that it was decoded from.
    pub(super) recent: RecentPackets,
    /// Frames for which `recent` had no packet of the same time.
    pub(super) unmatched_frames: AtomicU64,
}

impl Default for Publication {
    fn default() -> Self {
        Self {
            publisher: Mutex::default(),
            key: Mutex::default(),
            host: Arc::new(HostBackend),
            memory: Mutex::new((DEFAULT_MEMORY, DEFAULT_SYNC_MODE)),
            sync_mode: Mutex::new(SyncMode::Host),
            copied: AtomicU64::new(0),
            no_eos: AtomicBool::new(false),
            tracks: Mutex::default(),
            recent: RecentPackets::default(),
            unmatched_frames: AtomicU64::new(0),
        }
    }
}

impl Publication {
    /// Stores the publisher of `key`, and resets what belongs to the last one.
    pub(super) fn open(&self, publisher: Publisher, key: String, tracks: TrackConfig) {
        self.copied.store(0, Ordering::Relaxed);
        self.unmatched_frames.store(0, Ordering::Relaxed);
        self.recent.clear();
        *lock(&self.sync_mode) = SyncMode::Host;
        *lock(&self.key) = key;
        *lock(&self.tracks) = tracks;
        *lock(&self.publisher) = Some(Arc::new(publisher));
    }

    /// Removes the publisher. Dropping the last reference waits for the publisher's thread.
    pub(super) fn close(&self) {
        let publisher = lock(&self.publisher).take();
        // Dropped outside the lock.
        drop(publisher);
    }

    /// Returns the publisher, if the element is in PAUSED or PLAYING.
    pub(super) fn get(&self) -> Option<Arc<Publisher>> {
        lock(&self.publisher).clone()
    }

    /// Returns the key of the publisher.
    pub(super) fn key(&self) -> String {
        lock(&self.key).clone()
    }

    /// Returns the properties `memory` and `sync-mode`.
    pub(super) fn memory(&self) -> (Memory, SyncMode) {
        *lock(&self.memory)
    }

    pub(super) fn set_memory(&self, memory: Memory) {
        lock(&self.memory).0 = memory;
    }

    pub(super) fn set_sync_mode(&self, sync_mode: SyncMode) {
        lock(&self.memory).1 = sync_mode;
    }

    /// Returns the configuration of new tracks.
    pub(super) fn track_config(&self) -> TrackConfig {
        *lock(&self.tracks)
    }

    /// Returns whether the end of a stream is announced to subscribers.
    pub(super) fn forwards_eos(&self) -> bool {
        !self.no_eos.load(Ordering::Relaxed)
    }

    pub(super) fn set_forwards_eos(&self, forwards: bool) {
        self.no_eos.store(!forwards, Ordering::Relaxed);
    }
}

/// The newest packets of all tracks, by running time in ns.
#[derive(Debug, Default)]
pub(super) struct RecentPackets(Mutex<VecDeque<(i64, PacketId)>>);

impl RecentPackets {
    /// Several seconds of a few tracks: more than a decoder delays a frame.
    const MAX_PACKETS: usize = 1024;

    /// Adds a packet with its running time in ns, and removes the oldest one if there are too many.
    pub(super) fn record(&self, running_ns: Option<i64>, packet: PacketId) {
        let Some(running_ns) = running_ns else { return };
        let mut recent = lock(&self.0);
        if recent.len() == Self::MAX_PACKETS {
            recent.pop_front();
        }
        recent.push_back((running_ns, packet));
    }

    /// Returns the packet that a frame with this running time was decoded from.
    ///
    /// Decoders may reorder and drop frames, and keep their timestamps. If several tracks have a packet of
    /// this time, the track with the lowest number is chosen. Returns `None` if there are no packets.
    ///
    /// # Errors
    ///
    /// There are packets, and none of them has this time.
    pub(super) fn packet_at(&self, running_ns: Option<i64>) -> Result<Option<PacketId>, ()> {
        let recent = lock(&self.0);
        let same = recent.iter().rev().filter(|(t, _)| Some(*t) == running_ns);
        let found = same.map(|(_, packet)| *packet).min_by_key(|packet| packet.track);
        if found.is_none() && !recent.is_empty() { Err(()) } else { Ok(found) }
    }

    fn clear(&self) {
        lock(&self.0).clear();
    }
}
