// SPDX-License-Identifier: LGPL-2.1-or-later
//! What a subscriber can do to frames in GPU memory, and how a relay contains it.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use cuframes::cuda::{Access, Context, Device, Stream, VmmAllocation, VmmMapping};
use cuframes::protocol::message::Message;
use testing::raw::{RawPeer, hello};
use testing::{TestDir, until};

use crate::support::{launch, pixels, play};

type Mappings = Arc<Mutex<Vec<(VmmMapping, usize)>>>;

/// A subscriber of the key `cam` that maps all announced memory for writing.
struct Writer {
    mappings: Mappings,
    stream: Stream,
}

impl Writer {
    fn join(test: &TestDir) -> Self {
        let context = Context::primary(&Device::by_ordinal(0).unwrap()).unwrap();
        let stream = Stream::new(&context).unwrap();
        let peer = RawPeer::connect(&test.dir);
        assert!(peer.send(&hello(1, "writer"), &[]));
        let mappings = Mappings::default();
        let announced = mappings.clone();
        // Ends with the publisher.
        std::thread::spawn(move || {
            let granularity = VmmAllocation::granularity(&context).unwrap();
            while let Some((message, fds)) = peer.receive() {
                let Message::Chunk { slots, stride, .. } = message else { continue };
                let len = (slots as usize * stride as usize).next_multiple_of(granularity);
                let allocation = VmmAllocation::import(&context, fds[0].as_fd()).unwrap();
                let access = Access::ReadWrite;
                let mapping = VmmMapping::new(&context, &allocation, len, access).unwrap();
                announced.lock().unwrap().push((mapping, len));
            }
        });
        Self { mappings, stream }
    }

    /// Writes to every byte.
    fn scribble(&self) {
        for (mapping, len) in &*self.mappings.lock().unwrap() {
            // SAFETY: the range is this mapping, and no Rust object is in it.
            unsafe { self.stream.fill(mapping.address(), 0x55, *len) }.unwrap();
        }
        self.stream.synchronize().unwrap();
    }
}

/// The descriptor of device memory has no seals: a subscriber that maps it for writing can change what the other
/// subscribers of that key read. A relay has memory of its own, so the key that it reads from is unaffected.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn relay_contains_subscriber_that_writes() {
    let test = TestDir::slow("isolation");
    let source = "videotestsrc is-live=true pattern=white \
         ! video/x-raw,format=NV12,width=320,height=240,framerate=50/1 ! cudaupload";
    let _publisher = launch(&test, &format!("{source} ! cuframessink key=cam1"));
    let _relay = launch(&test, "cuframessrc key=cam1 ! cuframessink key=cam");
    let watched = play(
        &test,
        "cuframessrc name=own key=cam1 ! video/x-raw ! fakesink name=origin sync=false \
         cuframessrc key=cam ! video/x-raw ! fakesink name=guest sync=false",
    );
    let scribbled = |buffer: &gst::Buffer, pad: &gst::Pad| pixels(buffer, pad).contains(&0x55);
    let origin = watched.collect("origin", "sink", scribbled);
    let guest = watched.collect("guest", "sink", scribbled);
    until(|| !guest.lock().unwrap().is_empty() && !origin.lock().unwrap().is_empty());
    let writer = Writer::join(&test);
    until(|| {
        writer.scribble();
        guest.lock().unwrap().contains(&true)
    });
    let seen = origin.lock().unwrap().len();
    until(|| {
        writer.scribble();
        origin.lock().unwrap().len() >= seen + 50
    });
    assert!(!origin.lock().unwrap().contains(&true), "the relay's memory is its own");
}
