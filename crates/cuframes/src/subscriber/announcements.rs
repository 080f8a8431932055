//! What the publisher has announced.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use crate::memory::Imported;
use crate::shm::segments::TrackSegment;
use crate::sync::lock;
use crate::types::code::RefusalReason;

/// Chunks, and generations of frames or of a track, that a publisher may have at a time, before it is
/// taken for one that wants to fill our memory.
pub(super) const MAX_ANNOUNCED: usize = 4096;

/// Bytes of caps that are kept, of frames and for each track.
const MAX_CAPS: usize = 1 << 20;

/// Bytes that a publisher may have us map: a part of the address space, which this process needs, too.
const MAX_MAPPED: u64 = 1 << 42;

/// Caps by generation, as many of the newest as there is room for.
#[derive(Default)]
pub(crate) struct Formats {
    all: VecDeque<(u32, Arc<str>)>,
    bytes: usize,
}

impl Formats {
    pub fn add(&mut self, generation: u32, caps: String) {
        self.bytes += caps.len();
        self.all.push_back((generation, caps.into()));
        while self.all.len() > MAX_ANNOUNCED || self.bytes > MAX_CAPS {
            self.bytes -= self.all.pop_front().map_or(self.bytes, |(_, caps)| caps.len());
        }
    }

    pub fn get(&self, generation: u32) -> Option<Arc<str>> {
        self.all.iter().rev().find(|(g, _)| *g == generation).map(|(_, caps)| caps.clone())
    }
}

/// A track as this subscriber sees it.
pub(crate) struct TrackView {
    pub segment: TrackSegment,
    pub formats: Mutex<Formats>,
}

impl TrackView {
    /// The caps of a generation.
    pub fn caps(&self, generation: u32) -> Option<Arc<str>> {
        lock(&self.formats).get(generation)
    }
}

#[derive(Default)]
pub(crate) struct State {
    pub formats: Formats,
    pub chunks: HashMap<u32, Arc<dyn Imported>>,
    pub tracks: HashMap<u32, Arc<TrackView>>,
    pub closed: Option<(RefusalReason, String)>,
    /// A chunk is being mapped.
    pub importing: bool,
}

impl State {
    /// Whether `more` bytes may be mapped.
    pub fn has_room(&self, more: u64) -> bool {
        let chunks = self.chunks.values().filter_map(|c| c.geometry().bytes());
        let tracks = self.tracks.values().map(|t| t.segment.memory().size());
        let mapped: u64 = chunks.chain(tracks).map(|bytes| bytes as u64).sum();
        more <= MAX_MAPPED.saturating_sub(mapped)
    }
}
