// SPDX-License-Identifier: LGPL-2.1-or-later
//! Common parts of publishers and subscribers: numbered frames and packets, and resources of a process.

use std::io::BufRead;

use gst::glib;
use gst::prelude::*;
use testing::report;

/// Bits of a frame's number that count frames. The bits above count the publishers of a camera.
const FRAME_BITS: u32 = 20;
/// Frames per second.
pub(super) const FPS: u32 = 50;

pub(super) fn number(life: u32, frame: u32) -> u32 {
    life << FRAME_BITS | frame
}

pub(super) fn life_of(number: u32) -> u32 {
    number >> FRAME_BITS
}

/// Returns a packet whose bytes belong to this number only.
pub(super) fn packet(number: u32) -> Vec<u8> {
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

/// Whether frames are published in GPU memory.
pub(super) fn on_gpu() -> bool {
    std::env::var_os("CUFRAMES_FAULTS_ON_GPU").is_some()
}

/// Returns fds, shared mappings and threads of the library in this process.
pub(super) fn resources() -> String {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let maps = maps.lines().filter(|l| l.contains("memfd:cuframes")).count();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let comm = |t: std::fs::DirEntry| std::fs::read_to_string(t.path().join("comm")).ok();
    let threads = tasks.filter_map(comm).filter(|c| c.starts_with("cuframes-")).count();
    format!("{fds} fds, {maps} mappings, {threads} threads")
}

/// The objects of a pipeline, by name.
pub(super) type Objects = Vec<(String, glib::WeakRef<glib::Object>)>;

/// Returns the objects of a pipeline, and the objects that its elements share, such as CUDA contexts.
pub(super) fn objects(pipeline: &gst::Pipeline) -> Objects {
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

/// Waits until this process has the same resources as `before`. Reports the difference after 5 s.
pub(super) fn settle(actor: &str, before: &str, objects: &Objects) {
    for _ in 0..500 {
        if resources() == before {
            return report("clean");
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let alive = objects.iter().filter_map(|(name, o)| Some((name, o.upgrade()?.ref_count() - 1)));
    let alive: Vec<_> = alive.collect();
    report(format!("leak of {actor}: {before} became {}, {alive:?}", resources()));
}

/// Returns the lines that the parent sends.
pub(super) fn commands() -> impl Iterator<Item = String> {
    std::io::stdin().lock().lines().map_while(Result::ok)
}

/// Returns the text of an error, and whether the key is taken.
pub(super) fn error_of(message: &gst::Message) -> Option<(bool, String)> {
    match message.view() {
        gst::MessageView::Error(e) => {
            let text = format!("{} {:?}", e.error(), e.debug());
            Some((e.error().matches(gst::ResourceError::Busy), text))
        }
        _ => None,
    }
}

/// Reports each error of a pipeline from now on.
pub(super) fn report_errors(pipeline: &gst::Pipeline) {
    pipeline.bus().unwrap().set_sync_handler(|_, message| {
        if let Some((_, text)) = error_of(message) {
            report(format!("error {text}"));
        }
        gst::BusSyncReply::Drop
    });
}

/// Waits until a counter of an element is above zero.
pub(super) fn wait_for_first(element: &gst::Element, counter: &str) {
    while element.property::<gst::Structure>("stats").get::<u64>(counter).unwrap() == 0 {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}
