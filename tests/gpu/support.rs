// SPDX-License-Identifier: LGPL-2.1-or-later
//! Helpers of the tests with a GPU.

use std::path::PathBuf;

use gst::prelude::*;
use gst_video::prelude::*;
use testing::{Camera, ChildGroup, TestDir, stamp};
use testing_gst::{TestPipeline, TestPipelineExt};

const SIZE: (usize, usize) = (640, 360);

/// Returns a pipeline of this process that plays.
pub(crate) fn play(test: &TestDir, description: &str) -> TestPipeline {
    test.pipeline(description).playing()
}

/// Starts a pipeline in a process of its own.
pub(crate) fn launch(test: &TestDir, pipeline: &str) -> ChildGroup {
    ChildGroup::start(&mut test.launch(pipeline))
}

/// Starts a strict subscriber in a process of its own, and returns the file that it writes frames to.
pub(crate) fn subscriber(test: &TestDir, name: &str, properties: &str) -> (ChildGroup, PathBuf) {
    let file = test.path(name);
    let pipeline = format!(
        "cuframessrc key=cam1 mode=strict num-buffers=90 {properties} ! video/x-raw(memory:CUDAMemory) \
         ! cudadownload ! video/x-raw,format=NV12 ! filesink location={}",
        file.display()
    );
    (launch(test, &pipeline), file)
}

/// Starts a camera, and a publisher that decodes it with NVDEC.
pub(crate) fn publish_camera(test: &TestDir, options: &str, codec: &str) -> (Camera, ChildGroup) {
    let (camera, decode) = decoder(options, codec);
    let sink = "cuframessink key=cam1 forward-eos=false";
    (camera, launch(test, &format!("{decode} ! {sink}")))
}

/// Starts a camera, and returns the elements that decode it with NVDEC.
pub(crate) fn decoder(options: &str, codec: &str) -> (Camera, String) {
    let camera = Camera::start(options);
    let packed = if codec == "h264" { "avc" } else { "hvc1" };
    let decode = format!(
        "rtspsrc location={} protocols=tcp latency=100 ! rtp{codec}depay \
         ! video/x-{codec},stream-format={packed},alignment=au ! {codec}parse ! nv{codec}dec",
        camera.url
    );
    (camera, decode)
}

/// Returns the numbers in raw NV12 frames. All frames have to be whole and in order.
pub(crate) fn numbers(raw: &[u8]) -> Vec<u32> {
    let frames = raw.chunks(SIZE.0 * SIZE.1 * 3 / 2);
    let numbers: Vec<u32> =
        frames.map(|f| stamp::read(f, SIZE.0, SIZE.0, SIZE.1).expect("a whole frame")).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] > pair[0]), "{numbers:?}");
    numbers
}

/// Waits for the end of a subscriber, and checks that it got every frame, in order and whole.
pub(crate) fn every_frame((subscriber, file): (ChildGroup, PathBuf)) {
    subscriber.success();
    let numbers = numbers(&std::fs::read(file).unwrap());
    assert_eq!(numbers.len(), 90);
    assert_eq!(numbers[89] - numbers[0], 89, "every frame in order");
}

/// Returns the number in a frame, which has to be whole.
pub(crate) fn number(buffer: &gst::Buffer, pad: &gst::Pad) -> u32 {
    testing_gst::read_number(buffer, pad).expect("a whole frame")
}

pub(crate) fn rising(numbers: &[u32]) {
    assert!(numbers.windows(2).all(|pair| pair[1] > pair[0]), "{numbers:?}");
}

pub(crate) const DOWNLOADED: &str =
    "cuframessrc name=src key=cam1 ! video/x-raw,format=NV12 ! fakesink name=out sync=false";

/// Returns the pixels without padding, plane by plane.
pub(crate) fn pixels(buffer: &gst::Buffer, pad: &gst::Pad) -> Vec<u8> {
    let info = gst_video::VideoInfo::from_caps(&pad.current_caps().unwrap()).unwrap();
    let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info).unwrap();
    let mut pixels = Vec::new();
    for plane in 0..info.n_planes() {
        let of_plane = |c: &u32| info.format_info().plane()[*c as usize] == plane;
        let component = (0..info.n_components()).find(of_plane).unwrap();
        let row = (frame.comp_width(component) * frame.comp_pstride(component) as u32) as usize;
        let rows =
            frame.plane_data(plane).unwrap().chunks(frame.plane_stride()[plane as usize] as usize);
        for data in rows.take(frame.comp_height(component) as usize) {
            pixels.extend_from_slice(&data[..row]);
        }
    }
    pixels
}
