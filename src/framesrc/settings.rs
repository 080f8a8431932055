// SPDX-License-Identifier: LGPL-2.1-or-later
//! Properties of `cuframessrc`.

use std::time::Duration;

use gst::glib;
use gst::prelude::*;

use crate::properties::Alias;
use crate::source::settings as source;

const DEFAULT_MODE: Mode = Mode::Newest;
const DEFAULT_MAX_FRAMES: u32 = 5;
const DEFAULT_BUSY_POLL: Duration = Duration::ZERO;
const DEFAULT_IO_MODE: IoMode = IoMode::Auto;
const DEFAULT_CUDA_DEVICE_ID: i32 = -1;

/// Which frames a source delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesMode")]
pub(crate) enum Mode {
    #[default]
    #[enum_value(
        name = "The newest frame each time, skipping the frames in between",
        nick = "newest"
    )]
    Newest,
    #[enum_value(name = "Every frame in order, as long as the publisher keeps it", nick = "strict")]
    Strict,
}

/// How frames in device memory reach downstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesIoMode")]
pub(crate) enum IoMode {
    #[default]
    #[enum_value(
        name = "Without a copy, or as a copy while downstream holds one frame less than max-frames",
        nick = "auto"
    )]
    Auto,
    #[enum_value(
        name = "Without a copy, waiting while downstream holds max-frames",
        nick = "import"
    )]
    Import,
    #[enum_value(name = "As a copy, for elements that reject imported memory", nick = "copy")]
    Copy,
}

/// Values of the properties.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) source: source::Settings,
    pub(crate) mode: Mode,
    pub(crate) max_frames: u32,
    pub(crate) busy_poll: Duration,
    pub(crate) io_mode: IoMode,
    pub(crate) cuda_device_id: i32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            source: Default::default(),
            mode: DEFAULT_MODE,
            max_frames: DEFAULT_MAX_FRAMES,
            busy_poll: DEFAULT_BUSY_POLL,
            io_mode: DEFAULT_IO_MODE,
            cuda_device_id: DEFAULT_CUDA_DEVICE_ID,
        }
    }
}

impl Settings {
    pub(crate) const ALIASES: &[Alias] = &[
        // The old property did not count the frame in hand.
        Alias { name: "max-held", target: "max-frames", offset: 1 },
        Alias { name: "spin", target: "busy-poll", offset: 0 },
    ];

    pub(crate) fn properties() -> Vec<glib::ParamSpec> {
        let mut properties = source::Settings::properties();
        properties.extend([
            glib::ParamSpecEnum::builder_with_default("mode", DEFAULT_MODE)
                .nick("Mode")
                .blurb("Which frames to deliver")
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt::builder("max-frames")
                .nick("Maximum Frames")
                .blurb("Number of published frames to hold at a time, including the frame in hand, which is copied while downstream holds all others")
                .minimum(1)
                .maximum(64)
                .default_value(DEFAULT_MAX_FRAMES)
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt::builder("busy-poll")
                .nick("Busy Poll")
                .blurb("Time in microseconds to poll for a frame around its expected arrival instead of sleeping, which lowers latency and costs CPU time")
                .maximum(1_000_000)
                .default_value(DEFAULT_BUSY_POLL.as_micros() as u32)
                .mutable_playing()
                .build(),
            glib::ParamSpecEnum::builder_with_default("io-mode", DEFAULT_IO_MODE)
                .nick("I/O Mode")
                .blurb("How frames in GPU memory reach downstream")
                .mutable_ready()
                .build(),
            glib::ParamSpecInt::builder("cuda-device-id")
                .nick("CUDA Device ID")
                .blurb("GPU that maps frames in GPU memory (-1 = the GPU of the pipeline's CUDA context, or else the publisher's)")
                .minimum(-1)
                .default_value(DEFAULT_CUDA_DEVICE_ID)
                .mutable_ready()
                .build(),
            glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                .nick("Statistics")
                .blurb("Statistics of the current run: received, skipped, duplicates, copied, downloaded, reconnects, and latency-p50 and latency-p99, the nanoseconds from publication to delivery over the last 512 frames")
                .read_only()
                .build(),
        ]);
        Alias::append(Self::ALIASES, &mut properties);
        properties
    }

    /// Sets a property.
    ///
    /// # Panics
    ///
    /// Panics if the element has no such property.
    pub(crate) fn set(&mut self, name: &str, value: &glib::Value) {
        // GObject has checked type and range.
        match name {
            "mode" => self.mode = value.get().unwrap(),
            "max-frames" => self.max_frames = value.get().unwrap(),
            "busy-poll" => {
                self.busy_poll = Duration::from_micros(value.get::<u32>().unwrap().into());
            }
            "io-mode" => self.io_mode = value.get().unwrap(),
            "cuda-device-id" => self.cuda_device_id = value.get().unwrap(),
            name => assert!(self.source.set(name, value)),
        }
    }

    /// Returns a property's value.
    ///
    /// # Panics
    ///
    /// Panics if the element has no such property.
    pub(crate) fn get(&self, name: &str) -> glib::Value {
        match name {
            "mode" => self.mode.to_value(),
            "max-frames" => self.max_frames.to_value(),
            "busy-poll" => (self.busy_poll.as_micros() as u32).to_value(),
            "io-mode" => self.io_mode.to_value(),
            "cuda-device-id" => self.cuda_device_id.to_value(),
            name => self.source.get(name).expect("a property of this class"),
        }
    }
}
