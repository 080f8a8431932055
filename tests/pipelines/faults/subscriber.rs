// SPDX-License-Identifier: LGPL-2.1-or-later
//! A subscriber that checks every frame or packet.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cuframes::sync::clock::now_ns;
use gst::prelude::*;
use testing::report;
use testing_gst::{TestPipeline, read_number};

use super::actors::{
    commands, life_of, objects, packet, report_errors, resources, settle, wait_for_first,
};

/// Reads the number in a buffer; `None` if the buffer is not whole.
type Read = fn(&gst::Buffer, &gst::Pad) -> Option<u32>;

fn read_packet(buffer: &gst::Buffer, _: &gst::Pad) -> Option<u32> {
    let map = buffer.map_readable().unwrap();
    let number = u32::from_ne_bytes(map.get(..4)?.try_into().unwrap());
    (*map == *packet(number)).then_some(number)
}

/// What a subscriber received in one run of its pipeline.
#[derive(Default)]
struct Received {
    last: Option<u32>,
    seq: u64,
    pts: Option<gst::ClockTime>,
    count: u64,
    /// In the numbers of the publisher, within one life.
    gaps: u64,
    /// The next frame answers this.
    ping: Option<String>,
    held: Vec<gst::Buffer>,
}

impl Received {
    fn note(&mut self, buffer: &gst::Buffer, number: u32) {
        let seq = buffer.offset();
        let same_life = self.last.is_some_and(|last| life_of(last) == life_of(number));
        if same_life {
            if self.last >= Some(number) || self.seq >= seq {
                report(format!("wrong order {:?} {number}", self.last));
            }
            self.gaps += (seq - self.seq).saturating_sub(1);
        } else {
            report(format!("life {} {}", life_of(number), now_ns()));
            if !buffer.flags().contains(gst::BufferFlags::DISCONT) {
                report("wrong new life without DISCONT");
            }
        }
        if self.pts.is_some_and(|before| buffer.pts().is_none_or(|pts| pts < before)) {
            report(format!("wrong time {:?} {:?}", self.pts, buffer.pts()));
        }
        self.pts = buffer.pts();
        self.last = Some(number);
        self.seq = seq;
        self.count += 1;
        if let Some(ping) = self.ping.take() {
            report(format!("pong {ping} {}", life_of(number)));
        }
    }
}

/// A source, and the buffers that it received.
struct Subscriber {
    pipeline: TestPipeline,
    received: Arc<Mutex<Received>>,
    /// Keeps more buffers than it may hold without copies.
    holding: Arc<AtomicBool>,
    /// The statistic that counts missed items.
    missed: &'static str,
}

impl Subscriber {
    fn new(pipeline: TestPipeline, read: Read, missed: &'static str) -> Self {
        let (received, holding) = (Arc::new(Mutex::new(Received::default())), Arc::default());
        let (into, holds): (_, Arc<AtomicBool>) = (received.clone(), Arc::clone(&holding));
        let pad = pipeline.get("out").static_pad("sink").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            let buffer = info.buffer().unwrap();
            let mut received = into.lock().unwrap();
            match read(buffer, pad) {
                Some(number) => received.note(buffer, number),
                None => report("wrong torn"),
            }
            if holds.load(Ordering::Relaxed) && received.held.len() < 10 {
                received.held.push(buffer.clone());
            }
            gst::PadProbeReturn::Ok
        });
        report_errors(&pipeline);
        Self { pipeline, received, holding, missed }
    }

    /// Checks that every missed item was counted, and starts a new count.
    fn account(&self) {
        let stats = self.pipeline.stats("src");
        let count = |field| stats.get::<u64>(field).unwrap();
        let mut received = self.received.lock().unwrap();
        // A buffer may have been on its way when the pipeline stopped.
        if received.count == count("received") && received.gaps != count(self.missed) {
            report(format!("wrong count {} of {} missed", count(self.missed), received.gaps));
        }
        report(format!("account {} {}", received.count, received.gaps));
        *received = Received { held: std::mem::take(&mut received.held), ..Received::default() };
    }

    fn release(&self) {
        let held = std::mem::take(&mut self.received.lock().unwrap().held);
        // Without the lock, which the probe takes.
        drop(held);
    }

    /// Does what the parent asks for. Returns false at the end.
    fn obey(&self, command: &str) -> bool {
        match command.split_once(' ').unwrap_or((command, "")) {
            ("ping", which) => self.received.lock().unwrap().ping = Some(which.to_owned()),
            ("cycle", _) => {
                self.pipeline.set_state(gst::State::Ready).unwrap();
                self.account();
                self.pipeline.set_state(gst::State::Playing).unwrap();
            }
            ("hold", _) => self.holding.store(true, Ordering::Relaxed),
            ("release", _) => {
                self.holding.store(false, Ordering::Relaxed);
                self.release();
            }
            ("end", _) => return false,
            other => panic!("{other:?}?"),
        }
        true
    }
}

/// Plays a source until its parent ends it, and checks everything that arrives.
pub(super) fn subscribe(dir: &Path, key: &str, kind: &str) {
    let (source, read, missed): (_, Read, _) = match kind {
        "strict" => ("cuframessrc mode=strict", read_number, "skipped"),
        "newest" => ("cuframessrc", read_number, "skipped"),
        "packets" => ("cuframespacketsrc", read_packet, "lost"),
        other => panic!("{other}?"),
    };
    let pipeline = TestPipeline::parse(&format!(
        "{source} name=src key={key} runtime-dir={} ! fakesink name=out sync=false",
        dir.display()
    ));
    // What an element keeps from its first run on.
    pipeline.play();
    wait_for_first(&pipeline.get("src"), "received");
    pipeline.set_state(gst::State::Ready).unwrap();
    let before = resources();
    let subscriber = Subscriber::new(pipeline, read, missed);
    subscriber.pipeline.set_state(gst::State::Playing).unwrap();
    report("ready");
    for _ in commands().take_while(|command| subscriber.obey(command)) {}
    subscriber.pipeline.set_state(gst::State::Ready).unwrap();
    subscriber.account();
    subscriber.release();
    settle(kind, &before, &objects(&subscriber.pipeline));
}
