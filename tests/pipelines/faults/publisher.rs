// SPDX-License-Identifier: LGPL-2.1-or-later
//! A publisher that numbers its frames and packets.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cuframes::sync::clock::now_ns;
use gst::prelude::*;
use testing::{report, stamp};
use testing_gst::TestPipeline;

use super::actors::{
    FPS, commands, error_of, number, objects, on_gpu, packet, report_errors, resources, settle,
    wait_for_first,
};

/// The time between two frames.
const PERIOD_NS: i64 = 1_000_000_000 / FPS as i64;

fn size_caps(wide: bool) -> gst::Caps {
    let (width, height) = if wide { (320, 240) } else { (160, 120) };
    let format = if on_gpu() { "NV12" } else { "GRAY8" };
    let caps =
        format!("video/x-raw,format={format},width={width},height={height},framerate={FPS}/1");
    caps.parse().unwrap()
}

fn pipeline(dir: &Path, key: &str, wide: bool) -> TestPipeline {
    let upload = if on_gpu() { "cudaupload !" } else { "" };
    // The caps change at any time, also while the camera negotiates the last ones.
    let pipeline = TestPipeline::parse(&format!(
        "videotestsrc name=camera is-live=true pattern=black ! capsfilter name=filter caps-change-mode=delayed \
         ! {upload} pub.sink \
         appsrc name=packets format=time is-live=true caps=video/x-h264,stream-format=byte-stream,alignment=au \
         ! pub.packets_0 cuframessink name=pub key={key} runtime-dir={}",
        dir.display()
    ));
    pipeline.get("filter").set_property("caps", size_caps(wide));
    pipeline
}

/// Creates what a process keeps from its first pipeline on; with a GPU, from its first frame on.
fn warm_up(dir: &Path, wide: bool) {
    let warm = pipeline(dir, &format!("warm-{}", std::process::id()), wide);
    if on_gpu() {
        warm.play();
        wait_for_first(&warm.get("pub"), "published");
    }
    warm.set_state(gst::State::Null).unwrap();
}

/// Publishes frames and packets of one life of a camera. Waits while the key is taken.
pub(super) fn publish(dir: &Path, key: &str, life: u32, mut wide: bool) {
    warm_up(dir, wide);
    let before = resources();
    let pipeline = pipeline(dir, key, wide);
    number_frames(&pipeline, life);
    acquire_key(&pipeline);
    // The socket exists from here on.
    report(format!("up {life} {}", now_ns()));
    report_errors(&pipeline);
    pipeline.set_state(gst::State::Playing).unwrap();
    for command in commands() {
        match &*command {
            "caps" => {
                wide = !wide;
                pipeline.get("filter").set_property("caps", size_caps(wide));
            }
            "end" => break,
            other => panic!("{other}?"),
        }
    }
    let objects = objects(&pipeline);
    pipeline.set_state(gst::State::Null).unwrap();
    drop(pipeline);
    settle(&format!("publisher {key} {life}"), &before, &objects);
}

/// Pauses the pipeline as soon as the publisher before it has released the key.
fn acquire_key(pipeline: &TestPipeline) {
    let bus = pipeline.bus().unwrap();
    while pipeline.set_state(gst::State::Paused).is_err() {
        let errors = std::iter::from_fn(|| bus.pop()).filter_map(|m| error_of(&m));
        for (_, text) in errors.filter(|(busy, _)| !busy) {
            report(format!("error {text}"));
        }
        pipeline.set_state(gst::State::Null).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Stamps each frame, and pushes a packet with the same number and time.
fn number_frames(pipeline: &TestPipeline, life: u32) {
    let packets = pipeline.get("packets");
    let next = AtomicU32::new(1);
    let pushed_ns = Mutex::new(0i64);
    let pad = pipeline.get("camera").static_pad("src").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let frame = next.fetch_add(1, Ordering::Relaxed);
        // A publisher that stalls is late for its next frame.
        let now = now_ns();
        let late = now - std::mem::replace(&mut *pushed_ns.lock().unwrap(), now);
        // The first frames appear while everything starts.
        if frame > FPS && late > PERIOD_NS {
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
}
