//! Time across processes: everything that is published carries CLOCK_MONOTONIC.

use gst::prelude::*;

use cuframes::sync::clock::now_ns;

/// A clock that runs apart from the monotonic one by more than this is measured anew.
const DRIFT_NS: i64 = 2_000_000;

/// What has to be added to a pipeline's running time to get CLOCK_MONOTONIC, in ns.
///
/// The usual pipeline clock is CLOCK_MONOTONIC itself, and nothing is measured. The distance to
/// another one is measured and kept, so that timestamps stay as evenly spaced as they were.
#[derive(Debug, Default)]
pub struct Origin {
    clock: Option<Known>,
}

#[derive(Debug)]
struct Known {
    clock: gst::Clock,
    /// From the clock to the monotonic one, in ns; `None` if it is that one.
    distance: Option<i64>,
}

impl Origin {
    /// `None` while the element has no clock or base time.
    pub fn get(&mut self, element: &impl IsA<gst::Element>) -> Option<i64> {
        let clock = element.clock()?;
        let base = element.base_time()?.nseconds() as i64;
        // Asking a clock what it is takes 10 µs, so it is asked once.
        let same = self.clock.take().filter(|known| known.clock == clock);
        let known = same.unwrap_or_else(|| Known {
            distance: (!is_monotonic(&clock)).then(|| distance(&clock)),
            clock,
        });
        let known = self.clock.insert(known);
        if let Some(kept) = &mut known.distance {
            let measured = distance(&known.clock);
            if (*kept - measured).abs() >= DRIFT_NS {
                *kept = measured;
            }
        }
        Some(base + known.distance.unwrap_or(0))
    }
}

/// What the monotonic clock is ahead of this one, in ns.
fn distance(clock: &gst::Clock) -> i64 {
    let before = now_ns();
    let theirs = clock.time().nseconds() as i64;
    before.midpoint(now_ns()) - theirs
}

fn is_monotonic(clock: &gst::Clock) -> bool {
    // Not those derived from it, which count the samples of a sound card or follow another host.
    clock.type_() == gst::SystemClock::static_type()
        && clock.property::<gst::ClockType>("clock-type") == gst::ClockType::Monotonic
}

/// The published time of a timestamp in `segment`.
pub fn publish(
    segment: &gst::FormattedSegment<gst::ClockTime>,
    origin: i64,
    t: gst::ClockTime,
) -> Option<i64> {
    Some(origin + running(segment, t)?)
}

/// The running time of a timestamp in `segment`, in ns.
pub fn running(segment: &gst::FormattedSegment<gst::ClockTime>, t: gst::ClockTime) -> Option<i64> {
    segment.to_running_time_full(t).map(signed)
}

fn signed(t: gst::Signed<gst::ClockTime>) -> i64 {
    match t {
        gst::Signed::Positive(t) => t.nseconds() as i64,
        gst::Signed::Negative(t) => -(t.nseconds() as i64),
    }
}

/// Published within this much of its timestamp, a stream is taken to run in real time.
const LIVE_NS: i64 = 1_000_000_000;

/// What has to be added to a stream's timestamps so that they fit real time: nothing, if they are
/// those of a live stream that is `latency` behind at most. A file that is published faster or slower
/// than real time is moved as a whole, to begin when it was published.
pub fn shift(published: i64, timestamp: i64, latency: i64) -> i64 {
    // Another process says what these are.
    let behind = published.saturating_sub(timestamp);
    if (-LIVE_NS..=latency.saturating_add(LIVE_NS)).contains(&behind) { 0 } else { behind }
}

/// The flags of a buffer that mean something in another process: not those about its memory. Those of
/// a media type, such as interlacing, are the caller's to add.
pub fn portable_flags(flags: gst::BufferFlags) -> u32 {
    use gst::BufferFlags as F;
    let portable = F::DISCONT
        | F::RESYNC
        | F::CORRUPTED
        | F::MARKER
        | F::HEADER
        | F::GAP
        | F::DROPPABLE
        | F::DELTA_UNIT
        | F::DECODE_ONLY
        | F::NON_DROPPABLE;
    flags.intersection(portable).bits()
}
