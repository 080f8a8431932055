// SPDX-License-Identifier: LGPL-2.1-or-later
//! Properties that both sources have.

use gst::glib;
use gst::prelude::*;

use crate::properties::{MAX_TIME, OnEos, OnLost, runtime_dir_spec};

const DEFAULT_CONNECT_TIMEOUT: gst::ClockTime = gst::ClockTime::ZERO;

/// Values of the properties that both sources have.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) key: Option<String>,
    pub(crate) runtime_dir: Option<String>,
    pub(crate) connect_timeout: gst::ClockTime,
    pub(crate) on_lost: OnLost,
    pub(crate) on_eos: OnEos,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            key: None,
            runtime_dir: None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            on_lost: OnLost::default(),
            on_eos: OnEos::default(),
        }
    }
}

impl Settings {
    pub(crate) fn properties() -> Vec<glib::ParamSpec> {
        vec![
            glib::ParamSpecString::builder("key")
                .nick("Key")
                .blurb("Key of the publisher (required)")
                .mutable_ready()
                .build(),
            runtime_dir_spec(),
            glib::ParamSpecUInt64::builder("connect-timeout")
                .nick("Connect Timeout")
                .blurb("Time in nanoseconds to wait for a publisher before an error is posted (0 = wait forever)")
                .maximum(MAX_TIME)
                .default_value(DEFAULT_CONNECT_TIMEOUT.nseconds())
                .mutable_ready()
                .build(),
            glib::ParamSpecEnum::builder_with_default("on-lost", OnLost::default())
                .nick("On Lost")
                .blurb("Action when the publisher is lost")
                .mutable_playing()
                .build(),
            glib::ParamSpecEnum::builder_with_default("on-eos", OnEos::default())
                .nick("On End Of Stream")
                .blurb("Action when the publisher's stream ends")
                .mutable_playing()
                .build(),
        ]
    }

    /// Sets a property. Returns false if it is none of these.
    pub(crate) fn set(&mut self, name: &str, value: &glib::Value) -> bool {
        // GObject has checked type and range.
        match name {
            "key" => self.key = value.get().unwrap(),
            "runtime-dir" => self.runtime_dir = value.get().unwrap(),
            "connect-timeout" => {
                self.connect_timeout = gst::ClockTime::from_nseconds(value.get().unwrap());
            }
            "on-lost" => self.on_lost = value.get().unwrap(),
            "on-eos" => self.on_eos = value.get().unwrap(),
            _ => return false,
        }
        true
    }

    /// Returns a property's value, or `None` if it is none of these.
    pub(crate) fn get(&self, name: &str) -> Option<glib::Value> {
        Some(match name {
            "key" => self.key.to_value(),
            "runtime-dir" => self.runtime_dir.to_value(),
            "connect-timeout" => self.connect_timeout.nseconds().to_value(),
            "on-lost" => self.on_lost.to_value(),
            "on-eos" => self.on_eos.to_value(),
            _ => return None,
        })
    }
}
