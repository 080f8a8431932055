// SPDX-License-Identifier: LGPL-2.1-or-later
//! The parts that processes play: publishers that number their frames and packets, and subscribers that
//! check each of them.

use std::io::BufRead;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use cuframes::sync::clock::now_ns;
use gst::glib;
use gst::prelude::*;

use testing::{report, stamp};

/// Bits of a frame's number that count frames; those above count the lives of a camera's publishers.
const FRAME_BITS: u32 = 20;
const FPS: u32 = 50;

fn number(life: u32, frame: u32) -> u32 {
    life << FRAME_BITS | frame
}

fn life_of(number: u32) -> u32 {
    number >> FRAME_BITS
}

/// Bytes that belong to a number and no other.
fn packet(number: u32) -> Vec<u8> {
    let mut state = u64::from(number) << 32 | 0x9e37_79b9;
    let mut bytes = number.to_ne_bytes().to_vec();
    for _ in 0..40 + number % 400 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_ne_bytes());
    }
    bytes
}

/// Frames are published in the memory of a GPU.
fn on_gpu() -> bool {
    std::env::var_os("CUFRAMES_FAULTS_ON_GPU").is_some()
}

fn size_caps(wide: bool) -> gst::Caps {
    let (width, height) = if wide { (320, 240) } else { (160, 120) };
    let format = if on_gpu() { "NV12" } else { "GRAY8" };
    let caps =
        format!("video/x-raw,format={format},width={width},height={height},framerate={FPS}/1");
    caps.parse().unwrap()
}

fn pipeline(description: &str) -> gst::Pipeline {
    gst::init().unwrap();
    gstcuframes::plugin_register_static().unwrap();
    gst::parse::launch(description).unwrap().downcast().unwrap()
}

/// Fds, shared mappings of ours, and threads of ours.
fn resources() -> String {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let maps = maps.lines().filter(|l| l.contains("memfd:cuframes")).count();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let comm = |t: std::fs::DirEntry| std::fs::read_to_string(t.path().join("comm")).ok();
    let threads = tasks.filter_map(comm).filter(|c| c.starts_with("cuframes-")).count();
    format!("{fds} fds, {maps} mappings, {threads} threads")
}

/// The objects of a pipeline, and what its elements share, such as CUDA contexts.
fn objects(pipeline: &gst::Pipeline) -> Vec<(String, glib::WeakRef<glib::Object>)> {
    let elements = pipeline.iterate_recurse().into_iter().flatten();
    let elements: Vec<gst::Element> = elements.chain([pipeline.clone().upcast()]).collect();
    let shared = elements.iter().flat_map(|e| e.contexts()).filter_map(|context| {
        let object = context.structure().iter().find_map(|(_, v)| v.get::<glib::Object>().ok())?;
        Some((format!("{} {:?}", context.context_type(), object), object.downgrade()))
    });
    let shared: Vec<_> = shared.collect();
    let name = |e: gst::Element| (e.name().into(), e.upcast::<glib::Object>().downgrade());
    elements.into_iter().map(name).chain(shared).collect()
}

/// Waits until what the process has is what it had; the parent is told what is left after a while.
fn settle(who: &str, before: &str, objects: &[(String, glib::WeakRef<glib::Object>)]) {
    for _ in 0..500 {
        if resources() == before {
            return report("clean");
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let alive = objects.iter().filter_map(|(name, o)| Some((name, o.upgrade()?.ref_count() - 1)));
    let alive: Vec<_> = alive.collect();
    report(format!("leak of {who}: {before} became {}, {alive:?}", resources()));
}

/// What the parent says, line by line.
fn commands() -> impl Iterator<Item = String> {
    std::io::stdin().lock().lines().map_while(Result::ok)
}

fn error_of(message: &gst::Message) -> Option<(bool, String)> {
    match message.view() {
        gst::MessageView::Error(e) => {
            let text = format!("{} {:?}", e.error(), e.debug());
            Some((e.error().matches(gst::ResourceError::Busy), text))
        }
        _ => None,
    }
}

/// Publishes frames and packets of one life of a camera. If the key is taken it waits until it is free.
pub fn publish(dir: &Path, key: &str, life: u32, wide: bool) {
    // The caps change at any time, also while the camera negotiates the last ones.
    let upload = if on_gpu() { "cudaupload !" } else { "" };
    let describe = |key: &str| {
        format!(
            "videotestsrc name=camera is-live=true pattern=black ! capsfilter name=filter caps-change-mode=delayed ! {upload} pub.sink \
             appsrc name=packets format=time is-live=true caps=video/x-h264,stream-format=byte-stream,alignment=au \
             ! pub.packets_0 cuframessink name=pub key={key} runtime-dir={}",
            dir.display()
        )
    };
    // What a process keeps from its first pipeline on; with a GPU, from its first frame on.
    let warm = pipeline(&describe(&format!("warm-{}", std::process::id())));
    if on_gpu() {
        warm.by_name("filter").unwrap().set_property("caps", size_caps(wide));
        warm.set_state(gst::State::Playing).unwrap();
        let sink = warm.by_name("pub").unwrap();
        while sink.property::<gst::Structure>("stats").get::<u64>("published").unwrap() == 0 {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
    warm.set_state(gst::State::Null).unwrap();
    drop(warm);
    let before = resources();
    let pipeline = pipeline(&describe(key));
    let by_name = |name| pipeline.by_name(name).unwrap();
    let (camera, filter, packets) = (by_name("camera"), by_name("filter"), by_name("packets"));
    filter.set_property("caps", size_caps(wide));
    let next = AtomicU32::new(1);
    let pushed = Mutex::new(0i64);
    let pad = camera.static_pad("src").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let frame = next.fetch_add(1, Ordering::Relaxed);
        // A publisher that stalls comes late for its next frame.
        let now = now_ns();
        let late = now - std::mem::replace(&mut *pushed.lock().unwrap(), now);
        // The first ones come when everything starts.
        if frame > FPS && late > 1_000_000_000 / i64::from(FPS) {
            report(format!("slowest {late} {now}"));
        }
        let video = gst_video::VideoInfo::from_caps(&pad.current_caps().unwrap()).unwrap();
        let (width, height) = (video.width() as usize, video.height() as usize);
        let number = number(life, frame);
        let buffer = info.buffer_mut().unwrap().make_mut();
        let mut map = buffer.map_writable().unwrap();
        stamp::write(&mut map, video.stride()[0] as usize, width, height, number);
        drop(map);
        let mut packet = gst::Buffer::from_slice(packet(number));
        let inner = packet.get_mut().unwrap();
        inner.set_pts(buffer.pts());
        if !frame.is_multiple_of(10) {
            inner.set_flags(gst::BufferFlags::DELTA_UNIT);
        }
        let _ = packets.emit_by_name::<gst::FlowReturn>("push-buffer", &[&packet]);
        gst::PadProbeReturn::Ok
    });
    let bus = pipeline.bus().unwrap();
    // Its predecessor may hold it up; who starts it is patient.
    while pipeline.set_state(gst::State::Paused).is_err() {
        let errors = std::iter::from_fn(|| bus.pop()).filter_map(|m| error_of(&m));
        for (_, text) in errors.filter(|(busy, _)| !busy) {
            report(format!("error {text}"));
        }
        pipeline.set_state(gst::State::Null).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    // Its socket is there from here on.
    report(format!("up {life} {}", now_ns()));
    bus.set_sync_handler(|_, message| {
        if let Some((_, text)) = error_of(message) {
            report(format!("error {text}"));
        }
        gst::BusSyncReply::Drop
    });
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut wide = wide;
    for command in commands() {
        match &*command {
            "caps" => {
                wide = !wide;
                filter.set_property("caps", size_caps(wide));
            }
            "end" => break,
            other => panic!("{other}?"),
        }
    }
    let objects = objects(&pipeline);
    pipeline.set_state(gst::State::Null).unwrap();
    drop((camera, filter, bus, pipeline));
    settle(&format!("publisher {key} {life}"), &before, &objects);
}

/// What a subscriber saw in one run of its pipeline.
#[derive(Default)]
struct Seen {
    last: Option<u32>,
    seq: u64,
    pts: Option<gst::ClockTime>,
    received: u64,
    /// In the numbers of the publisher, within one life.
    gaps: u64,
    /// The answer to this is due.
    ping: Option<String>,
    held: Vec<gst::Buffer>,
}

/// The number in a buffer; `None` if it is not whole.
type Read = fn(&gst::Buffer, &gst::Caps) -> Option<u32>;

fn read_frame(buffer: &gst::Buffer, caps: &gst::Caps) -> Option<u32> {
    use gst_video::prelude::*;
    let info = gst_video::VideoInfo::from_caps(caps).unwrap();
    let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info).unwrap();
    let stride = frame.plane_stride()[0] as usize;
    let luma = frame.plane_data(0).unwrap();
    stamp::read(luma, stride, info.width() as usize, info.height() as usize)
}

fn read_packet(buffer: &gst::Buffer, _: &gst::Caps) -> Option<u32> {
    let map = buffer.map_readable().unwrap();
    let number = u32::from_ne_bytes(map.get(..4)?.try_into().unwrap());
    (*map == *packet(number)).then_some(number)
}

impl Seen {
    fn note(&mut self, buffer: &gst::Buffer, number: u32) {
        let seq = buffer.offset();
        let again = self.last.is_some_and(|last| life_of(last) == life_of(number));
        if again {
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
        self.received += 1;
        if let Some(ping) = self.ping.take() {
            report(format!("pong {ping} {}", life_of(number)));
        }
    }
}

/// Plays a source for as long as its parent likes, and checks all that comes.
pub fn subscribe(dir: &Path, key: &str, kind: &str) {
    let (source, read, missed): (_, Read, _) = match kind {
        "strict" => ("cuframessrc mode=strict", read_frame, "skipped"),
        "newest" => ("cuframessrc", read_frame, "skipped"),
        "packets" => ("cuframespacketsrc", read_packet, "lost"),
        other => panic!("{other}?"),
    };
    let description = format!(
        "{source} name=src key={key} runtime-dir={} ! fakesink name=out sync=false",
        dir.display()
    );
    let pipeline = pipeline(&description);
    let source = pipeline.by_name("src").unwrap();
    // What an element keeps from its first run on.
    pipeline.set_state(gst::State::Playing).unwrap();
    while source.property::<gst::Structure>("stats").get::<u64>("received").unwrap() == 0 {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    pipeline.set_state(gst::State::Ready).unwrap();
    let before = resources();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let holding = Arc::new(AtomicBool::new(false));
    let pad = pipeline.by_name("out").unwrap().static_pad("sink").unwrap();
    let (into, holds) = (seen.clone(), holding.clone());
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let buffer = info.buffer().unwrap();
        let mut seen = into.lock().unwrap();
        match read(buffer, &pad.current_caps().unwrap()) {
            Some(number) => seen.note(buffer, number),
            None => report("wrong torn"),
        }
        // More than it may hold without copies.
        if holds.load(Ordering::Relaxed) && seen.held.len() < 10 {
            seen.held.push(buffer.clone());
        }
        gst::PadProbeReturn::Ok
    });
    let bus = pipeline.bus().unwrap();
    bus.set_sync_handler(|_, message| {
        if let Some((_, text)) = error_of(message) {
            report(format!("error {text}"));
        }
        gst::BusSyncReply::Drop
    });
    // What was missed is counted, to the last one.
    let account = || {
        let stats: gst::Structure = source.property("stats");
        let count = |field| stats.get::<u64>(field).unwrap();
        let mut seen = seen.lock().unwrap();
        // A buffer may have been on its way when the pipeline stopped.
        if seen.received == count("received") && seen.gaps != count(missed) {
            report(format!("wrong count {} of {} missed", count(missed), seen.gaps));
        }
        report(format!("account {} {}", seen.received, seen.gaps));
        *seen = Seen { held: std::mem::take(&mut seen.held), ..Seen::default() };
    };
    pipeline.set_state(gst::State::Playing).unwrap();
    report("ready");
    for command in commands() {
        match command.split_once(' ').unwrap_or((&command, "")) {
            ("ping", which) => seen.lock().unwrap().ping = Some(which.to_owned()),
            ("cycle", _) => {
                pipeline.set_state(gst::State::Ready).unwrap();
                account();
                pipeline.set_state(gst::State::Playing).unwrap();
            }
            ("hold", _) => holding.store(true, Ordering::Relaxed),
            ("let go", _) | ("let", _) => {
                holding.store(false, Ordering::Relaxed);
                let held = std::mem::take(&mut seen.lock().unwrap().held);
                drop(held);
            }
            ("end", _) => break,
            other => panic!("{other:?}?"),
        }
    }
    pipeline.set_state(gst::State::Ready).unwrap();
    account();
    seen.lock().unwrap().held.clear();
    settle(kind, &before, &objects(&pipeline));
    pipeline.set_state(gst::State::Null).unwrap();
    let _ = glib::prgname();
}
