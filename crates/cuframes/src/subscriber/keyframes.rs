// SPDX-License-Identifier: LGPL-2.1-or-later
//! Searches a ring for keyframes, from the newest one backwards.

use super::announcements::TrackView;
use crate::shm::packet_header::PacketHeader;
use crate::shm::ring::{Entry, Overwritten, Ring};
use crate::sync::atomic::Ordering;

/// Result of [`newest_keyframe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Newest {
    /// The position of the newest keyframe.
    At(u64),
    /// The ring has no keyframe.
    Missing,
    /// The next packet is a keyframe, which is about to be complete.
    Appending,
}

/// A packet that was found in the ring: its position and its header.
pub(super) type Found = (u64, PacketHeader);

/// Reads the header of the packet at `position`.
pub(super) fn read_entry(
    ring: Ring<'_>,
    position: u64,
) -> Result<(Entry, PacketHeader), Overwritten> {
    let entry = ring.read_entry(position)?;
    Ok((entry, PacketHeader::from_words(&entry.meta)))
}

/// Finds the newest keyframe of the packets from `tail` to `head`, which were loaded before.
pub(super) fn newest_keyframe(view: &TrackView, tail: u64, head: u64) -> Newest {
    // SYNC(keyframe/append): pairs with the Release in `Track::append`.
    let position = view.segment.header().keyframe.load(Ordering::Acquire).checked_sub(1);
    match position {
        Some(position) if position >= head => Newest::Appending,
        Some(position) if position >= tail => Newest::At(position),
        _ => Newest::Missing,
    }
}

/// Iterates over the keyframes in the ring, from the one at `newest` backwards.
pub(super) fn keyframes(ring: Ring<'_>, newest: Option<u64>) -> impl Iterator<Item = Found> {
    let read = move |at| read_entry(ring, at).ok().map(|(_, meta)| (at, meta));
    let all = std::iter::successors(newest.and_then(read), move |(at, meta)| {
        // A link has to point backwards; one that does not is invalid and ends the search.
        meta.previous_keyframe.filter(|before| before < at).and_then(read)
    });
    all.take(ring.most_packets())
}

/// Returns the first keyframe that `wanted` accepts, otherwise the last one.
pub(super) fn first_or_last(
    keyframes: impl Iterator<Item = Found>,
    mut wanted: impl FnMut(&PacketHeader) -> bool,
) -> Option<Found> {
    let mut last = None;
    for (at, meta) in keyframes {
        let found = wanted(&meta);
        last = Some((at, meta));
        if found {
            break;
        }
    }
    last
}

/// Returns the time of the last packet that `counts` accepts in the run of accepted packets that starts at
/// `keyframe`, in ns of CLOCK_MONOTONIC.
pub(super) fn time_of_last(
    ring: Ring<'_>,
    keyframe: u64,
    meta: &PacketHeader,
    counts: impl Fn(&PacketHeader) -> bool,
) -> i64 {
    let (head, mut at, mut time) = (ring.head(), keyframe, meta.time());
    for _ in 0..ring.most_packets() {
        let Ok((entry, meta)) = read_entry(ring, at) else { break };
        if at >= head || entry.end() <= at || !counts(&meta) {
            break;
        }
        (at, time) = (entry.end(), meta.time());
    }
    time
}
