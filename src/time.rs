// SPDX-License-Identifier: LGPL-2.1-or-later
//! Conversion of timestamps between pipelines: published times are nanoseconds of CLOCK_MONOTONIC.

use gst::prelude::*;

use cuframes::sync::clock::now_ns;

/// Drift of a clock against CLOCK_MONOTONIC at which its offset is measured again.
const MAX_DRIFT_NS: i64 = 2_000_000;

/// Offset from a pipeline's running time to CLOCK_MONOTONIC, in ns.
///
/// The usual pipeline clock is CLOCK_MONOTONIC itself, and needs no measurement. The offset of any
/// other clock is measured and kept, so that timestamps stay evenly spaced.
#[derive(Debug, Default)]
pub(crate) struct MonotonicOffset {
    clock: Option<MeasuredClock>,
}

#[derive(Debug)]
struct MeasuredClock {
    clock: gst::Clock,
    /// CLOCK_MONOTONIC minus this clock, in ns; `None` if this clock is CLOCK_MONOTONIC.
    offset_ns: Option<i64>,
}

impl MonotonicOffset {
    /// Returns the value to add to the element's running time to get CLOCK_MONOTONIC, in ns.
    ///
    /// Returns `None` while the element has no clock or no base time.
    pub(crate) fn get(&mut self, element: &impl IsA<gst::Element>) -> Option<i64> {
        let clock = element.clock()?;
        let base_ns = element.base_time()?.nseconds() as i64;
        // The type of a clock is queried once, because the query takes 10 µs.
        let same = self.clock.take().filter(|measured| measured.clock == clock);
        let measured = same.unwrap_or_else(|| MeasuredClock {
            offset_ns: (!is_monotonic(&clock)).then(|| offset_from(&clock)),
            clock,
        });
        let measured = self.clock.insert(measured);
        if let Some(kept_ns) = &mut measured.offset_ns {
            let offset_ns = offset_from(&measured.clock);
            if (*kept_ns - offset_ns).abs() >= MAX_DRIFT_NS {
                *kept_ns = offset_ns;
            }
        }
        Some(base_ns + measured.offset_ns.unwrap_or(0))
    }
}

/// Returns CLOCK_MONOTONIC minus the time of `clock`, in ns.
fn offset_from(clock: &gst::Clock) -> i64 {
    let before_ns = now_ns();
    let clock_ns = clock.time().nseconds() as i64;
    before_ns.midpoint(now_ns()) - clock_ns
}

/// Returns whether the clock is CLOCK_MONOTONIC.
///
/// Subclasses of the system clock are excluded: they count the samples of a sound card or follow
/// another host.
fn is_monotonic(clock: &gst::Clock) -> bool {
    clock.type_() == gst::SystemClock::static_type()
        && clock.property::<gst::ClockType>("clock-type") == gst::ClockType::Monotonic
}

/// Returns the published time of timestamp `t` in `segment`: CLOCK_MONOTONIC in ns.
///
/// `offset_ns` comes from [`MonotonicOffset::get`].
pub(crate) fn to_monotonic_ns(
    segment: &gst::FormattedSegment<gst::ClockTime>,
    offset_ns: i64,
    t: gst::ClockTime,
) -> Option<i64> {
    Some(offset_ns + to_running_ns(segment, t)?)
}

/// Returns the running time of timestamp `t` in `segment`, in ns. It may be negative.
pub(crate) fn to_running_ns(
    segment: &gst::FormattedSegment<gst::ClockTime>,
    t: gst::ClockTime,
) -> Option<i64> {
    segment.to_running_time_full(t).map(signed_ns)
}

fn signed_ns(t: gst::Signed<gst::ClockTime>) -> i64 {
    match t {
        gst::Signed::Positive(t) => t.nseconds() as i64,
        gst::Signed::Negative(t) => -(t.nseconds() as i64),
    }
}

/// A stream whose timestamps are this close to its time of publication is taken as live.
const LIVE_NS: i64 = 1_000_000_000;

/// Returns the value to add to a stream's timestamps so that they match real time, in ns.
///
/// This is 0 for a live stream, whose first timestamp is at most `latency_ns` (and a tolerance)
/// older than its publication. A file that is published faster or slower than real time is shifted as a
/// whole, so that it begins at its time of publication.
pub(crate) fn skew(published_ns: i64, timestamp_ns: i64, latency_ns: i64) -> i64 {
    // Saturating, because the values come from another process.
    let behind_ns = published_ns.saturating_sub(timestamp_ns);
    let live = -LIVE_NS..=latency_ns.saturating_add(LIVE_NS);
    if live.contains(&behind_ns) { 0 } else { behind_ns }
}

/// Returns the flags of a buffer that have a meaning in another process.
///
/// Flags about the buffer's memory are removed. Flags of a media type, such as interlacing, are
/// added by the caller.
pub(crate) fn portable_flags(flags: gst::BufferFlags) -> u32 {
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
