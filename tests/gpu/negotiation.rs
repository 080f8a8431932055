// SPDX-License-Identifier: LGPL-2.1-or-later
//! Caps and memory that change while frames flow.

use gst::prelude::*;
use gst_video::prelude::*;
use testing::{TestDir, until};

use crate::support::play;

/// Frames grow and shrink while they are published, and move to host memory and back.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn caps_change_while_frames_flow() {
    let test = TestDir::slow("caps");
    let source = "videotestsrc is-live=true ! capsfilter name=size caps=video/x-raw,format=NV12,width=640,height=360,framerate=60/1";
    let watched = play(&test, "cuframessrc name=src key=cam1 ! fakesink name=out sync=false");
    let seen = watched.collect("out", "sink", |buffer, pad| {
        let caps = pad.current_caps().unwrap();
        let info = gst_video::VideoInfo::from_caps(&caps).unwrap();
        // The content agrees with the caps in every kind of memory.
        let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info).unwrap();
        assert_eq!(
            frame.plane_data(0).unwrap().len() / frame.plane_stride()[0] as usize,
            info.height() as usize
        );
        (info.width(), buffer.peek_memory(0).is_type("gst.cuda.memory"))
    });
    let last = |width, cuda| {
        let seen = seen.clone();
        move || {
            seen.lock().unwrap().iter().rev().take(20).filter(|s| **s == (width, cuda)).count()
                == 20
        }
    };
    for upload in ["cudaupload !", "", "cudaupload !"] {
        let publisher = play(
            &test,
            &format!("{source} ! {upload} cuframessink name=sink key=cam1 forward-eos=false"),
        );
        let size = publisher.by_name("size").unwrap();
        for width in [640, 1280, 320] {
            let caps = format!(
                "video/x-raw,format=NV12,width={width},height={},framerate=60/1",
                width * 9 / 16
            );
            size.set_property("caps", caps.parse::<gst::Caps>().unwrap());
            until(last(width, !upload.is_empty()));
        }
        assert_eq!(publisher.stat("sink", "dropped"), 0);
    }
}

/// Downstream changes to host memory and back while the source waits. The next frame that the source takes follows.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn renegotiation_downstream() {
    let test = TestDir::slow("mind");
    let watched = play(
        &test,
        "cuframessrc key=cam1 mode=strict ! capsfilter name=wish ! fakesink name=out sync=false",
    );
    let look =
        |b: &gst::Buffer, _: &gst::Pad| (b.peek_memory(0).is_type("gst.cuda.memory"), b.offset());
    let seen = watched.collect("out", "sink", look);
    let _publisher = play(
        &test,
        "videotestsrc is-live=true ! video/x-raw,format=NV12 ! cudaupload ! cuframessink key=cam1",
    );
    until(|| !seen.lock().unwrap().is_empty());
    for (wish, cuda) in [("video/x-raw", false), ("video/x-raw(memory:CUDAMemory)", true)] {
        let caps = wish.parse::<gst::Caps>().unwrap();
        watched.by_name("wish").unwrap().set_property("caps", caps);
        // One frame may be on its way at this moment.
        let next = seen.lock().unwrap().len() + 1;
        until(|| seen.lock().unwrap().len() > next);
        let first = seen.lock().unwrap()[next].0;
        assert_eq!(first, cuda, "{wish}");
    }
    let seen = seen.lock().unwrap();
    assert!(seen.windows(2).all(|pair| pair[1].1 == pair[0].1 + 1), "{seen:?}");
}
