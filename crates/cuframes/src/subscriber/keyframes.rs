//! The keyframes of a ring, from the newest on backwards.

use super::announcements::TrackView;
use crate::shm::packet_header::PacketHeader;
use crate::shm::ring::{Entry, Overwritten, Ring};
use crate::sync::atomic::Ordering;

pub(super) fn read_entry(
    ring: Ring<'_>,
    position: u64,
) -> Result<(Entry, PacketHeader), Overwritten> {
    let entry = ring.read_entry(position)?;
    Ok((entry, PacketHeader::from_words(&entry.meta)))
}

pub(super) fn newest_keyframe(view: &TrackView) -> Option<u64> {
    // Pairs with the Release in `Track::append`: the packet is written.
    view.segment.header().keyframe.load(Ordering::Acquire).checked_sub(1)
}

/// The keyframes that are there and where they begin, from `newest` on backwards.
pub(super) fn keyframes(
    ring: Ring<'_>,
    newest: Option<u64>,
) -> impl Iterator<Item = (u64, PacketHeader)> {
    let read = move |at| read_entry(ring, at).ok().map(|(_, meta)| (at, meta));
    let all = std::iter::successors(newest.and_then(read), move |(at, meta)| {
        // A link that does not lead back is a lie, and leads nowhere.
        meta.before.filter(|before| before < at).and_then(read)
    });
    all.take(ring.most_packets())
}

/// The first that is wanted, or else the last.
pub(super) fn first_or_last(
    keyframes: impl Iterator<Item = (u64, PacketHeader)>,
    mut wanted: impl FnMut(&PacketHeader) -> bool,
) -> Option<(u64, PacketHeader)> {
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

/// The time of the last packet of which `counts` is true, from a keyframe on.
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
