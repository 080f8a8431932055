// SPDX-License-Identifier: LGPL-2.1-or-later
//! Properties of `cuframespacketsrc`.

use gst::glib;
use gst::prelude::*;

use crate::properties::{Alias, MAX_TIME};
use crate::source::settings as source;

const DEFAULT_TRACK: u32 = 0;
const DEFAULT_START: Start = Start::LatestKeyframe;
const DEFAULT_PREROLL_TIME: gst::ClockTime = gst::ClockTime::ZERO;
const DEFAULT_PREROLL_GOPS: u32 = 0;
const DEFAULT_MODE: PacketMode = PacketMode::Live;

/// The first packet that a source delivers.
#[allow(
    clippy::enum_variant_names,
    reason = "the variants are named like the nicks that users write"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesStart")]
pub(crate) enum Start {
    #[default]
    #[enum_value(name = "The newest keyframe in the packet buffer", nick = "latest-keyframe")]
    LatestKeyframe,
    #[enum_value(name = "The next keyframe that is published", nick = "next-keyframe")]
    NextKeyframe,
    #[enum_value(name = "The oldest keyframe in the packet buffer", nick = "oldest-keyframe")]
    OldestKeyframe,
}

/// Whether the publisher may overwrite packets that a source has not read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesPacketMode")]
pub(crate) enum PacketMode {
    #[default]
    #[enum_value(
        name = "The publisher overwrites unread packets, and reading continues at a keyframe",
        nick = "live"
    )]
    Live,
    #[enum_value(name = "A publisher with policy=wait keeps unread packets", nick = "lossless")]
    Lossless,
}

/// Values of the properties.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) source: source::Settings,
    pub(crate) track: u32,
    pub(crate) start: Start,
    pub(crate) preroll_time: gst::ClockTime,
    pub(crate) preroll_gops: u32,
    pub(crate) mode: PacketMode,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            source: Default::default(),
            track: DEFAULT_TRACK,
            start: DEFAULT_START,
            preroll_time: DEFAULT_PREROLL_TIME,
            preroll_gops: DEFAULT_PREROLL_GOPS,
            mode: DEFAULT_MODE,
        }
    }
}

impl Settings {
    pub(crate) const ALIASES: &[Alias] = &[];

    /// Returns where a reader starts that was not connected before.
    pub(crate) fn start(&self) -> cuframes::Start {
        match self.start {
            Start::LatestKeyframe => {
                cuframes::Start::Preroll { time: self.preroll_time.into(), gops: self.preroll_gops }
            }
            Start::NextKeyframe => cuframes::Start::NextKeyframe,
            Start::OldestKeyframe => cuframes::Start::OldestKeyframe,
        }
    }

    pub(crate) fn properties() -> Vec<glib::ParamSpec> {
        let mut properties = source::Settings::properties();
        properties.extend([
            glib::ParamSpecUInt::builder("track")
                .nick("Track")
                .blurb("Number of the publisher's packets_%u pad")
                .default_value(DEFAULT_TRACK)
                .mutable_ready()
                .build(),
            glib::ParamSpecEnum::builder_with_default("start", DEFAULT_START)
                .nick("Start")
                .blurb("Keyframe to start at")
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt64::builder("preroll-time")
                .nick("Preroll Time")
                .blurb("With start=latest-keyframe, start at least this many nanoseconds in the past, as far as the packet buffer reaches")
                .maximum(MAX_TIME)
                .default_value(DEFAULT_PREROLL_TIME.nseconds())
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt::builder("preroll-gops")
                .nick("Preroll GOPs")
                .blurb("With start=latest-keyframe, start at least this many whole groups of pictures in the past, as far as the packet buffer reaches")
                .default_value(DEFAULT_PREROLL_GOPS)
                .mutable_ready()
                .build(),
            glib::ParamSpecEnum::builder_with_default("mode", DEFAULT_MODE)
                .nick("Mode")
                .blurb("Whether the publisher may overwrite packets that this source has not read yet")
                .mutable_ready()
                .build(),
            glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                .nick("Statistics")
                .blurb("Statistics of the current run: received, lost, bytes, reconnects, and latency-p50 and latency-p99, the nanoseconds from publication to delivery over the last 512 packets")
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
            "track" => self.track = value.get().unwrap(),
            "start" => self.start = value.get().unwrap(),
            "preroll-time" => {
                self.preroll_time = gst::ClockTime::from_nseconds(value.get().unwrap());
            }
            "preroll-gops" => self.preroll_gops = value.get().unwrap(),
            "mode" => self.mode = value.get().unwrap(),
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
            "track" => self.track.to_value(),
            "start" => self.start.to_value(),
            "preroll-time" => self.preroll_time.nseconds().to_value(),
            "preroll-gops" => self.preroll_gops.to_value(),
            "mode" => self.mode.to_value(),
            name => self.source.get(name).expect("a property of this class"),
        }
    }
}
