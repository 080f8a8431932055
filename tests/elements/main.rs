// SPDX-License-Identifier: LGPL-2.1-or-later
//! The elements in pipelines of one process. Frames carry their numbers in their pixels.

use testing::stamp;

mod backpressure;
mod caps;
mod devices;
mod frames;
mod hostile;
mod lifecycle;
mod limits;
mod packets;
mod sessions;
mod states;
mod uris;

pub(crate) const WIDTH: usize = 320;
pub(crate) const HEIGHT: usize = 240;

pub(crate) fn frame_number(buffer: &gst::Buffer) -> u32 {
    let map = buffer.map_readable().unwrap();
    stamp::read(&map, WIDTH, WIDTH, HEIGHT).expect("a whole picture with one number")
}

pub(crate) fn source(frames: u32) -> String {
    format!(
        "videotestsrc name=camera is-live=true num-buffers={frames} pattern=ball \
         ! video/x-raw,format=NV12,width={WIDTH},height={HEIGHT},framerate=100/1"
    )
}
