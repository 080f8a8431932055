// SPDX-License-Identifier: LGPL-2.1-or-later
//! The device: frames or a track of a live key, and the source element for it.

use std::sync::OnceLock;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use crate::caps::parse_caps;
use cuframes::LiveKey;
use cuframes::info::PublisherStatus;

/// The stream that the device represents. Equal targets make equal devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) key: LiveKey,
    /// Number of a track of packets; `None` for the frames.
    track: Option<u32>,
    caps: String,
    publisher: String,
    pid: i32,
}

impl Target {
    /// Returns the frames and the tracks of a publisher that have caps.
    pub(super) fn all_of(key: &LiveKey, status: &PublisherStatus) -> Vec<Self> {
        let frames = std::iter::once((None, &status.caps));
        let tracks = status.tracks.iter().map(|t| (Some(t.track), &t.caps));
        let target = |(track, caps): (Option<u32>, &String)| Self {
            key: key.clone(),
            track,
            caps: caps.clone(),
            publisher: status.name.clone(),
            pid: status.pid,
        };
        frames.chain(tracks).filter(|(_, caps)| !caps.is_empty()).map(target).collect()
    }

    /// Returns whether both have the same name. Their publisher and caps may differ.
    pub(super) fn has_same_name(&self, other: &Self) -> bool {
        (&self.key, self.track) == (&other.key, other.track)
    }

    /// Returns the device, or `None` if the caps that the publisher wrote are invalid.
    pub(super) fn device(&self) -> Option<super::CuframesDevice> {
        let caps = parse_caps(&self.caps)?;
        let key = &self.key.key;
        let name = match self.track {
            None => key.clone(),
            Some(track) => format!("{key} (packets_{track})"),
        };
        let properties = gst::Structure::builder("cuframes-proplist")
            .field("device.api", "cuframes")
            .field("cuframes.key", key)
            .field("cuframes.runtime-dir", self.dir())
            .field_if_some("cuframes.track", self.track)
            .field("cuframes.publisher", &self.publisher)
            .field("cuframes.pid", self.pid)
            .build();
        // Applications that list cameras filter by `Source/Video`.
        let class = match self.caps.split('/').next() {
            Some("video") => "Source/Video",
            Some("audio") => "Source/Audio",
            _ => "Source",
        };
        let device: super::CuframesDevice = glib::Object::builder()
            .property("display-name", name)
            .property("device-class", class)
            .property("caps", caps)
            .property("properties", properties)
            .build();
        let _ = device.imp().target.set(self.clone());
        Some(device)
    }

    fn dir(&self) -> &str {
        // Element properties are UTF-8, so any other path is unusable anyway.
        self.key.dir.to_str().unwrap_or_default()
    }

    fn factory(&self) -> &'static str {
        if self.track.is_some() { "cuframespacketsrc" } else { "cuframessrc" }
    }

    fn configure(&self, element: &gst::Element) {
        element.set_property("key", &self.key.key);
        element.set_property("runtime-dir", self.dir());
        if let Some(track) = self.track {
            element.set_property("track", track);
        }
    }
}

/// Implementation of the device.
#[derive(Default)]
pub(crate) struct CuframesDevice {
    /// Set when the device is created.
    target: OnceLock<Target>,
}

#[glib::object_subclass]
impl ObjectSubclass for CuframesDevice {
    const NAME: &'static str = "GstCuframesDevice";
    type Type = super::CuframesDevice;
    type ParentType = gst::Device;
}

impl ObjectImpl for CuframesDevice {}

impl GstObjectImpl for CuframesDevice {}

impl DeviceImpl for CuframesDevice {
    fn create_element(&self, name: Option<&str>) -> Result<gst::Element, gst::LoggableError> {
        let unset = || {
            gst::loggable_error!(
                crate::log::CAT,
                "The device has no key: use a device that the device monitor lists"
            )
        };
        let target = self.target.get().ok_or_else(unset)?;
        let element = gst::ElementFactory::make(target.factory()).name_if_some(name).build()?;
        target.configure(&element);
        Ok(element)
    }

    fn reconfigure_element(&self, element: &gst::Element) -> Result<(), gst::LoggableError> {
        let target = self.target.get();
        let fits = |t: &&Target| element.factory().is_some_and(|f| f.name() == t.factory());
        let Some(target) = target.filter(fits) else {
            return Err(gst::loggable_error!(
                crate::log::CAT,
                "'{}' is not an element of this device: create one with the device",
                element.name()
            ));
        };
        target.configure(element);
        Ok(())
    }
}
