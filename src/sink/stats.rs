// SPDX-License-Identifier: LGPL-2.1-or-later
//! Statistics of `cuframessink` as GstStructures.

use std::sync::atomic::Ordering;

use gst::glib;
use gst::prelude::*;

use super::publication::Publication;
use cuframes::Mode;
use cuframes::info::{SubscriberInfo, TrackStats};
use cuframes::sync::lock;

/// Returns the value of the property `stats`. It is empty while there is no publisher.
pub(super) fn sink_structure(publication: &Publication) -> gst::Structure {
    const NAME: &str = "application/x-cuframes-sink-stats";
    let copied = publication.copied.load(Ordering::Relaxed);
    let Some(stats) = publication.get().map(|p| p.stats()) else {
        return gst::Structure::new_empty(NAME);
    };
    let newest = stats.pool.published;
    let subscribers = stats.subscribers.iter().map(|s| {
        let name = "application/x-cuframes-subscriber-stats";
        subscriber_structure(name, s, Some(newest)).to_send_value()
    });
    let tracks = stats.tracks.iter().map(|t| track_structure(t).to_send_value());
    gst::Structure::builder(NAME)
        .field("published", stats.pool.published)
        .field("dropped", stats.pool.dropped)
        .field("copied", copied)
        .field("unmatched-frames", publication.unmatched_frames.load(Ordering::Relaxed))
        .field("memory", stats.pool.memory.to_string())
        .field("sync-mode", nick(*lock(&publication.sync_mode)))
        .field("slots", stats.pool.slots)
        .field("chunks", stats.pool.chunks)
        .field("bytes", stats.pool.bytes)
        .field("subscribers", gst::Array::from_values(subscribers))
        .field("tracks", gst::Array::from_values(tracks))
        .build()
}

fn track_structure(t: &TrackStats) -> gst::Structure {
    gst::Structure::builder("application/x-cuframes-track-stats")
        .field("track", t.track)
        .field("published", t.published)
        .field("buffered", t.buffered)
        .field("oversized", t.oversized)
        .field("broken-gop", t.broken_gop)
        .field("truncated-gops", t.truncated_gops)
        .field("bytes", t.bytes)
        .build()
}

/// Returns a structure called `name` with the state of a subscriber.
///
/// `newest` is the sequence number of the newest frame; it adds the field `lag`.
pub(super) fn subscriber_structure(
    name: &str,
    s: &SubscriberInfo,
    newest: Option<u64>,
) -> gst::Structure {
    let mode = match s.mode {
        Mode::Newest => "newest",
        Mode::Strict => "strict",
    };
    let packets = s.packets.iter().map(|p| {
        gst::Structure::builder("application/x-cuframes-packet-reader-stats")
            .field("track", p.track)
            .field("received", p.received)
            .field("lost", p.lost)
            .build()
            .to_send_value()
    });
    gst::Structure::builder(name)
        .field("id", s.id)
        .field("name", &s.name)
        .field("pid", s.pid)
        .field("uid", s.uid)
        .field("gid", s.gid)
        .field("mode", mode)
        .field("max-frames", s.max_frames)
        .field("held", s.held)
        .field("received", s.received)
        .field("skipped", s.skipped)
        .field("copied", s.copied)
        .field("packets", gst::Array::from_values(packets))
        .field_if_some("lag", newest.map(|newest| newest.saturating_sub(s.cursor)))
        .build()
}

/// Returns the nick of an enum value, as in a pipeline description.
fn nick(value: impl ToValue) -> String {
    let value = value.to_value();
    glib::EnumValue::from_value(&value).map_or_else(String::new, |(_, value)| value.nick().into())
}
