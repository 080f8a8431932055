// SPDX-License-Identifier: LGPL-2.1-or-later
//! Announcements received from the publisher: caps, chunks of memory, tracks.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};

use super::wait::Next;
use crate::memory::Imported;
use crate::shm::segments::TrackSegment;
use crate::sync::lock;
use crate::types::refusal::RefusalReason;

/// Maximum number of chunks, and of generations per stream, that a subscriber keeps. It bounds the memory
/// that a hostile publisher can make this process use.
pub(super) const MAX_ANNOUNCED: usize = 4096;

/// Maximum size of the caps that are kept, for the frames and for each track, in bytes.
const MAX_KEPT_CAPS: usize = 1 << 20;

/// Maximum size of all mappings of one publisher, in bytes. It leaves most of the address space to the rest
/// of this process.
const MAX_MAPPED: u64 = 1 << 42;

/// Caps by generation. Keeps the newest generations that fit into `MAX_KEPT_CAPS` and `MAX_ANNOUNCED`.
#[derive(Debug, Default)]
pub(crate) struct Formats {
    all: VecDeque<(u32, Arc<str>)>,
    bytes: usize,
}

impl Formats {
    /// Adds the caps of a generation; drops the oldest ones that exceed the limits.
    pub(super) fn add(&mut self, generation: u32, caps: String) {
        self.bytes += caps.len();
        self.all.push_back((generation, caps.into()));
        while self.all.len() > MAX_ANNOUNCED || self.bytes > MAX_KEPT_CAPS {
            self.bytes -= self.all.pop_front().map_or(self.bytes, |(_, caps)| caps.len());
        }
    }

    /// Returns the caps of a generation.
    pub(super) fn get(&self, generation: u32) -> Option<Arc<str>> {
        self.all.iter().rev().find(|(g, _)| *g == generation).map(|(_, caps)| caps.clone())
    }
}

/// The mapping of a track, and the caps of its packets.
#[derive(Debug)]
pub(crate) struct TrackView {
    pub(super) segment: TrackSegment,
    pub(super) formats: Mutex<Formats>,
}

impl TrackView {
    /// Returns the caps of a generation.
    pub(super) fn caps(&self, generation: u32) -> Option<Arc<str>> {
        lock(&self.formats).get(generation)
    }
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disconnect {
    pub(super) reason: RefusalReason,
    pub(super) text: String,
}

impl<T> From<Disconnect> for Next<T> {
    fn from(Disconnect { reason, text }: Disconnect) -> Self {
        Self::Lost { reason, text }
    }
}

/// Everything that messages of the publisher have announced.
#[derive(Default)]
pub(crate) struct State {
    pub(super) formats: Formats,
    pub(super) chunks: HashMap<u32, Arc<dyn Imported>>,
    pub(super) tracks: HashMap<u32, Arc<TrackView>>,
    /// Set once, when the connection ends.
    pub(super) disconnect: Option<Disconnect>,
    /// The listening thread is mapping a chunk.
    pub(super) importing: bool,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("chunks", &self.chunks.keys())
            .field("tracks", &self.tracks.keys())
            .field("disconnect", &self.disconnect)
            .finish_non_exhaustive()
    }
}

impl State {
    /// Returns whether `more` bytes can be mapped within the limit.
    pub(super) fn has_room(&self, more: u64) -> bool {
        let chunks = self.chunks.values().filter_map(|c| c.geometry().bytes());
        let tracks = self.tracks.values().map(|t| t.segment.memory().size());
        let mapped: u64 = chunks.chain(tracks).map(|bytes| bytes as u64).sum();
        more <= MAX_MAPPED.saturating_sub(mapped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::mapping::{Mapping, Sharing};

    fn caps(formats: &Formats, generation: u32) -> Option<usize> {
        formats.get(generation).map(|caps| caps.len())
    }

    #[test]
    fn newest_generations_are_kept() {
        let mut formats = Formats::default();
        for generation in 0..MAX_ANNOUNCED as u32 {
            formats.add(generation, "a".into());
        }
        assert_eq!(caps(&formats, 0), Some(1));
        formats.add(MAX_ANNOUNCED as u32, "bb".into());
        assert_eq!((caps(&formats, 0), caps(&formats, 1)), (None, Some(1)));
        assert_eq!(caps(&formats, MAX_ANNOUNCED as u32), Some(2));
    }

    #[test]
    fn longest_caps_are_bounded() {
        let mut formats = Formats::default();
        let quarter = MAX_KEPT_CAPS / 4;
        for generation in 1..=4 {
            formats.add(generation, "a".repeat(quarter));
        }
        assert_eq!(caps(&formats, 1), Some(quarter), "all of them fit");
        formats.add(5, "a".into());
        assert_eq!((caps(&formats, 1), caps(&formats, 2)), (None, Some(quarter)));
        // The caps that were dropped have made room.
        formats.add(6, "a".repeat(quarter - 1));
        assert_eq!((caps(&formats, 2), caps(&formats, 6)), (Some(quarter), Some(quarter - 1)));
        formats.add(7, "a".repeat(MAX_KEPT_CAPS + 1));
        assert_eq!((caps(&formats, 6), caps(&formats, 7)), (None, None));
        formats.add(8, "a".repeat(MAX_KEPT_CAPS));
        assert_eq!(caps(&formats, 8), Some(MAX_KEPT_CAPS));
    }

    #[test]
    fn mappings_are_bounded() {
        let mut state = State::default();
        assert!(state.has_room(MAX_MAPPED));
        assert!(!state.has_room(MAX_MAPPED + 1));
        let size = TrackSegment::size(4096).unwrap();
        let (map, _) = Mapping::create("test", size, Sharing::ReadWrite).unwrap();
        let segment = TrackSegment::new(map, 4096);
        let view = TrackView { segment, formats: Mutex::default() };
        state.tracks.insert(0, Arc::new(view));
        assert!(state.has_room(MAX_MAPPED - size as u64));
        assert!(!state.has_room(MAX_MAPPED - size as u64 + 1));
    }
}
