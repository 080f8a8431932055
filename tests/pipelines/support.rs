// SPDX-License-Identifier: LGPL-2.1-or-later
//! Helpers of the tests of pipelines: cameras, and the numbers in received frames.

use std::path::Path;
use std::sync::{Arc, Mutex};

use testing::{Camera, ChildGroup, TestDir, until};
use testing_gst::{TestPipeline, TestPipelineExt};

/// Starts a camera, and returns its URL as well.
pub(crate) fn camera(options: &str) -> (Camera, String) {
    let camera = Camera::start(options);
    let url = camera.url.clone();
    (camera, url)
}

/// A source of this process, and the numbers in its frames.
pub(crate) struct FrameWatch {
    pub(crate) pipeline: TestPipeline,
    pub(crate) numbers: Arc<Mutex<Vec<Option<u32>>>>,
}

/// Plays a source that subscribes to a key.
pub(crate) fn watch(test: &TestDir, key: &str, mode: &str) -> FrameWatch {
    let pipeline = test.pipeline(&format!(
        "cuframessrc name=src key={key} mode={mode} ! fakesink name=out sync=false"
    ));
    let numbers = pipeline.collect_numbers("out");
    pipeline.play();
    FrameWatch { pipeline, numbers }
}

impl FrameWatch {
    pub(crate) fn count(&self) -> usize {
        self.numbers.lock().unwrap().len()
    }

    /// Waits for more frames.
    pub(crate) fn more(&self, frames: usize) {
        let before = self.count();
        until(|| self.count() >= before + frames);
    }

    /// Checks that every frame so far was whole, and that the numbers rise.
    pub(crate) fn check(&self) -> Vec<u32> {
        let numbers = self.numbers.lock().unwrap();
        let numbers: Vec<u32> = numbers.iter().map(|n| n.expect("a whole frame")).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] > pair[0]), "{numbers:?}");
        numbers
    }

    pub(crate) fn stat(&self, field: &str) -> u64 {
        self.pipeline.stat("src", field)
    }
}

/// Returns the numbers in the frames of a recording. All frames have to decode.
pub(crate) fn decode(file: &Path) -> Vec<Option<u32>> {
    let description = format!(
        "filesrc location={} ! parsebin ! decodebin ! videoconvert ! video/x-raw,format=NV12 ! fakesink name=out sync=false",
        file.display()
    );
    let pipeline = TestPipeline::parse(&description);
    let numbers = pipeline.collect_numbers("out");
    pipeline.play();
    pipeline.wait_eos();
    drop(pipeline);
    std::mem::take(&mut numbers.lock().unwrap())
}

/// Returns whether a subscriber takes packets of `cam1`, and no frames.
pub(crate) fn records(test: &TestDir) -> bool {
    let status = cuframes::status("cam1", Some(&test.dir));
    status.is_ok_and(|s| s.subscribers.iter().any(|s| s.max_frames == 0))
}

/// Returns the camera's numbers in a recording. Every frame decodes, and the numbers rise by one, with at
/// most so many gaps.
pub(crate) fn check_recording(file: &Path, gaps: usize) -> Vec<u32> {
    let numbers: Vec<u32> = decode(file).into_iter().map(|n| n.expect("a whole frame")).collect();
    let jumps: Vec<_> = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
    assert!(jumps.len() <= gaps && jumps.iter().all(|pair| pair[1] > pair[0]), "{numbers:?}");
    numbers
}

/// Publishes frames and packets of a camera as `cam1`, until both are dropped.
pub(crate) fn published(test: &TestDir, options: &str) -> (Camera, ChildGroup) {
    let (camera, url) = camera(&format!("--fps 30 --gop 15 --slices 3 {options}"));
    let mut publish = test.script("publish-rtsp.sh");
    let publisher = ChildGroup::start(publish.args(["--codec", "h264", &url, "cam1"]));
    (camera, publisher)
}
