// SPDX-License-Identifier: LGPL-2.1-or-later
//! Encoded packets through the elements.

use std::sync::Mutex;

use gst::prelude::*;
use testing_gst::TestPipeline;

mod codecs;
mod identity;
mod loss;
mod recording;
mod sessions;

pub(crate) const SIZE: (usize, usize) = (320, 240);

/// Bytes. A failed assertion prints only their number.
#[derive(Clone, PartialEq)]
pub(crate) struct Bytes(Vec<u8>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// All parts of a buffer that have to arrive.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    bytes: Bytes,
    pts: Option<i64>,
    dts: Option<i64>,
    duration: Option<gst::ClockTime>,
    delta: bool,
    caps: gst::Caps,
    references: Vec<(gst::Caps, gst::ClockTime, Option<gst::ClockTime>)>,
}

impl Seen {
    fn of(buffer: &gst::Buffer, pad: &gst::Pad) -> Self {
        let ns = |t: Option<gst::ClockTime>| t.map(|t| t.nseconds() as i64);
        Self {
            bytes: Bytes(buffer.map_readable().unwrap().to_vec()),
            pts: ns(buffer.pts()),
            dts: ns(buffer.dts()),
            duration: buffer.duration(),
            delta: buffer.flags().contains(gst::BufferFlags::DELTA_UNIT),
            caps: pad.current_caps().unwrap(),
            references: buffer
                .iter_meta::<gst::ReferenceTimestampMeta>()
                .map(|m| (m.reference().to_owned(), m.timestamp(), m.duration()))
                .collect(),
        }
    }

    /// Returns the same with times relative to `zero`.
    fn since(&self, zero: i64) -> Self {
        let since = |t: Option<i64>| t.map(|t| t - zero);
        Self { pts: since(self.pts), dts: since(self.dts), ..self.clone() }
    }
}

pub(crate) fn zero(all: &[Seen]) -> i64 {
    let first = all.first().expect("there is a packet");
    first.dts.or(first.pts).unwrap_or(0)
}

/// Checks that two streams differ only in the begin of their times, and that times agree to `exact` ns.
#[track_caller]
pub(crate) fn same(sent: &[Seen], got: &[Seen], exact: i64) {
    let near = |a: Option<i64>, b: Option<i64>| match a.zip(b) {
        Some((a, b)) => (a - b).abs() < exact,
        None => a == b,
    };
    for (n, (sent_one, got_one)) in sent.iter().zip(got).enumerate() {
        let (sent_one, mut got_one) = (sent_one.since(zero(sent)), got_one.since(zero(got)));
        if near(sent_one.pts, got_one.pts) && near(sent_one.dts, got_one.dts) {
            (got_one.pts, got_one.dts) = (sent_one.pts, sent_one.dts);
        }
        assert!(sent_one == got_one, "packet {n}: {sent_one:?} became {got_one:?}");
    }
    assert_eq!(sent.len(), got.len());
}

pub(crate) fn take<T>(all: &Mutex<Vec<T>>) -> Vec<T> {
    std::mem::take(&mut all.lock().unwrap())
}

/// Plays a publisher once so many subscribers have joined.
pub(crate) fn play_for(publisher: &TestPipeline, subscribers: usize) {
    // Nothing is published before PLAYING.
    publisher.set_state(gst::State::Paused).unwrap();
    for _ in 0..subscribers {
        publisher.wait_for("cuframes-subscriber-added");
    }
    publisher.play();
}

pub(crate) fn picture(frames: u32) -> String {
    format!(
        "videotestsrc name=camera num-buffers={frames} pattern=ball \
         ! video/x-raw,format=I420,width={},height={},framerate=30/1",
        SIZE.0, SIZE.1
    )
}

/// Adds reference timestamps as rtspsrc does with add-reference-timestamp-meta, and one more.
pub(crate) fn add_references(pipeline: &TestPipeline, element: &str) {
    let pad = pipeline.get(element).static_pad("src").unwrap();
    let count = std::sync::atomic::AtomicU64::new(0);
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let time = |ns| gst::ClockTime::from_nseconds(ns);
        let buffer = info.buffer_mut().unwrap().make_mut();
        let clock = |name| gst::Caps::new_empty_simple(name);
        if [1, 2].contains(&(n % 3)) {
            let ntp = time(3_941_000_000_000_000_001 + n * 33_366_667);
            gst::ReferenceTimestampMeta::add(buffer, &clock("timestamp/x-ntp"), ntp, None);
        }
        if n % 3 == 2 {
            let caps = "timestamp/x-ptp,version=(string)IEEE1588-2008,domain=(int)1";
            let length = Some(time(n));
            gst::ReferenceTimestampMeta::add(buffer, &caps.parse().unwrap(), time(n), length);
        }
        gst::PadProbeReturn::Ok
    });
}
