//! What the tests of elements share: pipelines of one process that find each other, and a watchdog.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gst::glib;
use gst::prelude::*;

use crate::stamp;

/// A runtime directory of one test's own, and a watchdog for it.
pub struct Setup {
    pub dir: PathBuf,
    _watchdog: Watchdog,
}

/// Ends the process when a test hangs: a hung pipeline can't be told to stop.
struct Watchdog {
    _alive: std::sync::mpsc::Sender<()>,
}

impl Watchdog {
    fn new(name: &str) -> Self {
        let (alive, gone) = std::sync::mpsc::channel();
        let name = name.to_owned();
        std::thread::spawn(move || {
            use std::sync::mpsc::RecvTimeoutError::Timeout;
            if gone.recv_timeout(Duration::from_secs(60)) == Err(Timeout) {
                eprintln!("{name} hangs");
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}

impl Setup {
    pub fn new(name: &str) -> Self {
        gst::init().unwrap();
        gstcuframes::plugin_register_static().unwrap();
        // Two tests may have the same name.
        static SETUPS: AtomicU32 = AtomicU32::new(0);
        let (own, n) = (std::process::id(), SETUPS.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(format!("cuframes-{name}-{own}-{n}"));
        std::fs::create_dir_all(&dir).unwrap();
        Self { dir, _watchdog: Watchdog::new(name) }
    }

    /// A pipeline whose cuframes elements use this directory.
    pub fn pipeline(&self, description: &str) -> Pipeline {
        let parsed = gst::parse::launch(description).unwrap();
        let pipeline = parsed.downcast::<gst::Pipeline>().unwrap_or_else(|element| {
            let pipeline = gst::Pipeline::new();
            pipeline.add(&element).unwrap();
            pipeline
        });
        for element in pipeline.iterate_recurse().into_iter().flatten() {
            if element.has_property("runtime-dir") {
                element.set_property("runtime-dir", self.dir.to_str().unwrap());
            }
        }
        Pipeline(pipeline)
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A pipeline that ends with its scope.
pub struct Pipeline(pub gst::Pipeline);

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.0.set_state(gst::State::Null).unwrap();
    }
}

/// A gate in front of an element; open once it is dropped.
pub struct Gate(Arc<AtomicBool>);

impl Drop for Gate {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Pipeline {
    #[track_caller]
    pub fn play(&self) -> &Self {
        if self.0.set_state(gst::State::Playing).is_err() {
            let why = self.0.bus().unwrap().pop_filtered(&[gst::MessageType::Error]);
            panic!("it does not play: {why:?}");
        }
        self
    }

    pub fn get(&self, name: &str) -> gst::Element {
        self.0.by_name(name).unwrap()
    }

    /// Waits for a message that `wanted` takes; an error that is not wanted fails the test.
    pub fn message<T>(&self, wanted: impl Fn(&gst::MessageView<'_>) -> Option<T>) -> T {
        let bus = self.0.bus().unwrap();
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

    pub fn error(&self) -> glib::Error {
        self.message(|m| match m {
            gst::MessageView::Error(e) => Some(e.error()),
            _ => None,
        })
    }

    pub fn stats(&self, element: &str) -> gst::Structure {
        self.get(element).property("stats")
    }

    pub fn stat(&self, element: &str, field: &str) -> u64 {
        self.stats(element).get(field).unwrap()
    }

    /// Collects what arrives at an element's pad.
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
    pub fn until_it_stands(&self, sink: &str) {
        until(|| {
            let before = self.stat(sink, "published");
            std::thread::sleep(Duration::from_millis(100));
            before > 0 && self.stat(sink, "published") == before
        });
    }

    /// Writes the number of each buffer into its pixels, before it goes on from this pad.
    pub fn stamp(&self, element: &str, (width, height): (usize, usize)) {
        let next = std::sync::atomic::AtomicU32::new(1);
        let pad = self.get(element).static_pad("src").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let buffer = info.buffer_mut().unwrap().make_mut();
            let mut map = buffer.map_writable().unwrap();
            stamp::write(&mut map, width, width, height, number);
            gst::PadProbeReturn::Ok
        });
    }
}

pub fn until(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_millis(2));
    }
}
