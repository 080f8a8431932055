// SPDX-License-Identifier: LGPL-2.1-or-later
//! Helpers for tests of the GStreamer plugin. They are separate from `cuframes-testing`, so that tests of the
//! library do not link GStreamer.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use gst::glib;
use gst::prelude::*;
use gst_video::prelude::*;

use testing::{TestDir, stamp, until};

/// Initializes GStreamer and registers the plugin, once: a second registration would replace the factories
/// that other threads are using.
pub fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        gst::init().unwrap();
        gstcuframes::plugin_register_static().unwrap();
    });
}

/// Creates pipelines in the directory of a test.
pub trait TestPipelineExt {
    /// Creates a pipeline whose elements of the plugin use this directory.
    fn pipeline(&self, description: &str) -> TestPipeline;
}

impl TestPipelineExt for TestDir {
    fn pipeline(&self, description: &str) -> TestPipeline {
        let pipeline = TestPipeline::parse(description);
        for element in pipeline.iterate_recurse().into_iter().flatten() {
            if element.has_property("runtime-dir") {
                element.set_property("runtime-dir", self.dir.to_str().unwrap());
            }
        }
        pipeline
    }
}

/// A pipeline of this process that stops with its scope.
#[derive(Debug)]
pub struct TestPipeline(gst::Pipeline);

impl Deref for TestPipeline {
    type Target = gst::Pipeline;

    fn deref(&self) -> &gst::Pipeline {
        &self.0
    }
}

impl Drop for TestPipeline {
    fn drop(&mut self) {
        let _ = self.0.set_state(gst::State::Null);
    }
}

impl TestPipeline {
    /// Creates a pipeline that uses the usual runtime directory, or names one itself.
    pub fn parse(description: &str) -> Self {
        init();
        let parsed = gst::parse::launch(description).unwrap();
        Self(parsed.downcast::<gst::Pipeline>().unwrap_or_else(|element| {
            let pipeline = gst::Pipeline::new();
            pipeline.add(&element).unwrap();
            pipeline
        }))
    }

    /// Starts the pipeline.
    #[track_caller]
    pub fn play(&self) -> &Self {
        if self.set_state(gst::State::Playing).is_err() {
            let why = self.bus().unwrap().pop_filtered(&[gst::MessageType::Error]);
            panic!("it does not play: {why:?}");
        }
        self
    }

    /// Starts the pipeline, and returns it.
    #[track_caller]
    pub fn playing(self) -> Self {
        self.play();
        self
    }

    /// Returns an element.
    #[track_caller]
    pub fn get(&self, name: &str) -> gst::Element {
        self.by_name(name).unwrap()
    }

    /// Waits for a message that `wanted` takes. Any other error fails the test.
    pub fn message<T>(&self, wanted: impl Fn(&gst::MessageView<'_>) -> Option<T>) -> T {
        let bus = self.bus().unwrap();
        for message in bus.iter_timed(gst::ClockTime::NONE) {
            let view = message.view();
            if let Some(found) = wanted(&view) {
                return found;
            }
            if let gst::MessageView::Error(e) = view {
                panic!("{}: {}", e.error(), e.debug().unwrap_or_default());
            }
        }
        unreachable!("the iterator ends with the bus only")
    }

    /// Waits for the end of the stream.
    pub fn wait_eos(&self) {
        self.message(|m| matches!(m, gst::MessageView::Eos(_)).then_some(()));
    }

    /// Waits for an element message.
    pub fn wait_for(&self, name: &str) -> gst::Structure {
        self.message(|m| match m {
            gst::MessageView::Element(e) => {
                e.structure().filter(|s| s.name() == name).map(|s| s.to_owned())
            }
            _ => None,
        })
    }

    /// Waits for an error.
    pub fn error(&self) -> glib::Error {
        self.message(|m| match m {
            gst::MessageView::Error(e) => Some(e.error()),
            _ => None,
        })
    }

    /// Waits for the state that was set last.
    #[track_caller]
    pub fn wait_state(&self) {
        self.state(gst::ClockTime::NONE).0.unwrap();
    }

    /// Returns the statistics of an element of the plugin.
    pub fn stats(&self, element: &str) -> gst::Structure {
        self.get(element).property("stats")
    }

    /// Returns one counter of the statistics.
    pub fn stat(&self, element: &str, field: &str) -> u64 {
        self.stats(element).get(field).unwrap()
    }

    /// Collects `of` each buffer that passes an element's pad.
    pub fn collect<T: Send + 'static>(
        &self,
        element: &str,
        pad: &str,
        of: impl Fn(&gst::Buffer, &gst::Pad) -> T + Send + Sync + 'static,
    ) -> Arc<Mutex<Vec<T>>> {
        let all = Arc::new(Mutex::new(Vec::new()));
        let into = all.clone();
        let pad = self.get(element).static_pad(pad).unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            into.lock().unwrap().push(of(info.buffer().unwrap(), pad));
            gst::PadProbeReturn::Ok
        });
        all
    }

    /// Collects the numbers that are stamped into the frames at the sink pad of an element.
    pub fn collect_numbers(&self, element: &str) -> Arc<Mutex<Vec<Option<u32>>>> {
        self.collect(element, "sink", read_number)
    }

    /// Keeps buffers from reaching an element until the gate is dropped.
    pub fn hold(&self, element: &str) -> Gate {
        let gate = Gate(Arc::default());
        let open = gate.0.clone();
        let pad = self.get(element).static_pad("sink").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
            until(|| open.load(Ordering::Acquire));
            gst::PadProbeReturn::Ok
        });
        gate
    }

    /// Waits until a sink that has published something publishes no more.
    pub fn wait_blocked(&self, sink: &str) {
        until(|| {
            let before = self.stat(sink, "published");
            std::thread::sleep(Duration::from_millis(100));
            before > 0 && self.stat(sink, "published") == before
        });
    }

    /// Writes the number of each buffer, from 1 on, into its pixels before it leaves an element. The rows
    /// of the luma plane have no padding.
    pub fn stamp(&self, element: &str, (width, height): (usize, usize)) {
        let next = AtomicU32::new(1);
        let pad = self.get(element).static_pad("src").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let buffer = info.buffer_mut().unwrap().make_mut();
            let mut map = buffer.map_writable().unwrap();
            stamp::write(&mut map, width, width, height, number);
            gst::PadProbeReturn::Ok
        });
    }
}

/// A gate in front of an element; open once it is dropped.
#[derive(Debug)]
pub struct Gate(Arc<AtomicBool>);

impl Drop for Gate {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Returns the number that is stamped into a frame of 8-bit luma; `None` if the frame is torn.
pub fn read_number(buffer: &gst::Buffer, pad: &gst::Pad) -> Option<u32> {
    let info = gst_video::VideoInfo::from_caps(&pad.current_caps().unwrap()).unwrap();
    let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info).unwrap();
    let stride = frame.plane_stride()[0] as usize;
    let luma = frame.plane_data(0).unwrap();
    stamp::read(luma, stride, info.width() as usize, info.height() as usize)
}
