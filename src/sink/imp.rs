// SPDX-License-Identifier: LGPL-2.1-or-later
/**
 * SECTION:element-cuframessink
 * @title: cuframessink
 * @short_description: publishes frames and packets to other processes
 *
 * Publishes raw video frames, and the encoded packets that they were decoded from, under a key. Any
 * number of `cuframessrc` and `cuframespacketsrc` on the same host can subscribe. They receive frames
 * without a copy, and can't slow down the publisher or each other, unless `policy=wait`.
 *
 * The `sink` pad accepts frames, and each `packets_%u` pad accepts one track of packets. Both kinds of
 * pads are optional. The element proposes its shared memory to upstream as a buffer pool. Elements that
 * use the pool publish without a copy. Frames in other memory are copied once and counted in `stats`.
 *
 * The element posts the element messages `cuframes-subscriber-added`, `cuframes-subscriber-removed` and
 * `cuframes-subscriber-stalled`, with the same fields as the subscribers in `stats`.
 *
 * ## Example
 *
 * |[
 * gst-launch-1.0 videotestsrc is-live=true ! video/x-raw,format=NV12,width=1280,height=720 ! cuframessink key=cam1
 * ]|
 *
 * A camera with its frames and its packets:
 *
 * |[
 * gst-launch-1.0 cuframessink name=pub key=cam1 \
 *     rtspsrc location=rtsp://127.0.0.1:8554/cam ! rtph264depay \
 *     ! video/x-h264,stream-format=avc,alignment=au ! h264parse config-interval=-1 ! tee name=t \
 *     t. ! queue ! avdec_h264 ! pub.sink   t. ! queue ! pub.packets_0
 * ]|
 */
use std::sync::{Arc, LazyLock, Mutex};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::BaseSinkExt;

use super::publication::Publication;
use super::settings::{Memory, Settings};
use super::stats::{sink_structure, subscriber_structure};
use super::{FrameSink, PacketSink};
use crate::caps::{frame_caps, packet_caps};
use crate::gstcuda::GstCuda;
use crate::log::CAT;
use crate::messages::{post_error, post_message};
use crate::properties::Alias;
use cuframes::sync::lock;
use cuframes::{Publisher, PublisherEvent};

/// Stops an inner sink, independent of the state of the bin.
fn stop(sink: &impl IsA<gst::Element>) {
    sink.set_locked_state(true);
    let _ = sink.set_state(gst::State::Null);
}

fn program_name() -> String {
    glib::prgname().map_or_else(|| "a program without a name".into(), |name| name.to_string())
}

/// Implementation of `cuframessink`.
///
/// Each lock is held on its own: never while another one is taken, a message is posted or data is
/// pushed.
#[derive(Default)]
pub(crate) struct CuframesSink {
    settings: Mutex<Settings>,
    publication: Arc<Publication>,
}

impl CuframesSink {
    /// Opens the publisher.
    fn open(&self) -> Result<(), cuframes::Error> {
        let settings = lock(&self.settings).clone();
        let obj = self.obj();
        let config = settings.publisher_config(format!("{} of {}", obj.name(), program_name()));
        let weak = obj.downgrade();
        let on_event = move |event| {
            if let Some(obj) = weak.upgrade() {
                obj.imp().post_event(event);
            }
        };
        let key = config.key.clone();
        let publisher = Publisher::open(config, self.publication.host.clone(), on_event)?;
        self.publication.open(publisher, key, settings.track_config());
        Ok(())
    }

    /// Posts an event of the publisher. Called from the publisher's thread.
    fn post_event(&self, event: PublisherEvent) {
        let (name, info, reason) = match event {
            PublisherEvent::SubscriberAdded(info) => ("cuframes-subscriber-added", info, None),
            PublisherEvent::SubscriberRemoved(info, reason) => {
                ("cuframes-subscriber-removed", info, reason)
            }
            PublisherEvent::SubscriberStalled(info) => ("cuframes-subscriber-stalled", info, None),
        };
        gst::info!(CAT, imp = self, "{name}: {} (pid {})", info.name, info.pid);
        let mut structure = subscriber_structure(name, &info, None);
        structure.set_if_some("reason", reason);
        post_message(self, structure);
    }

    /// Resets the inner sinks, and closes the publisher.
    fn close(&self) {
        for child in self.obj().children() {
            if let Some(sink) = child.downcast_ref::<FrameSink>() {
                sink.imp().reset();
            } else if let Some(sink) = child.downcast_ref::<PacketSink>() {
                sink.imp().reset();
            }
        }
        self.publication.close();
    }
}

#[glib::object_subclass]
impl ObjectSubclass for CuframesSink {
    const NAME: &'static str = "GstCuframesSink";
    type Type = super::CuframesSink;
    type ParentType = gst::Bin;
}

impl ObjectImpl for CuframesSink {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(Settings::properties);
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let name = pspec.name();
        if Alias::set(Settings::ALIASES, &*self.obj(), name, value)
            || lock(&self.settings).set(name, value) && name != "sync"
        {
            return;
        }
        // GObject has checked type and range.
        match name {
            // These take effect in the inner sinks.
            "memory" => self.publication.set_memory(value.get().unwrap()),
            "sync-mode" => self.publication.set_sync_mode(value.get().unwrap()),
            "forward-eos" => self.publication.set_forwards_eos(value.get().unwrap()),
            "sync" => {
                for child in self.obj().children() {
                    child.set_property_from_value("sync", value);
                }
            }
            _ => unimplemented!(),
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let name = pspec.name();
        let alias = Alias::get(Settings::ALIASES, &*self.obj(), name);
        if let Some(value) = alias.or_else(|| lock(&self.settings).get(name)) {
            return value;
        }
        match name {
            "memory" => self.publication.memory().0.to_value(),
            "sync-mode" => self.publication.memory().1.to_value(),
            "forward-eos" => self.publication.forwards_eos().to_value(),
            "stats" => sink_structure(&self.publication).to_value(),
            _ => unimplemented!(),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        let obj = self.obj();
        obj.set_suppressed_flags(gst::ElementFlags::SOURCE | gst::ElementFlags::SINK);
        obj.set_element_flags(gst::ElementFlags::SINK);
    }
}

impl GstObjectImpl for CuframesSink {}

impl ElementImpl for CuframesSink {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "cuframes sink",
                "Sink/Video",
                "Publishes video frames and encoded packets to other processes without copying them",
                env!("CARGO_PKG_AUTHORS"),
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let template = |name, caps| {
                let (sink, request) = (gst::PadDirection::Sink, gst::PadPresence::Request);
                gst::PadTemplate::new(name, sink, request, &caps).expect("the template is valid")
            };
            vec![template("sink", frame_caps()), template("packets_%u", packet_caps())]
        });
        &TEMPLATES
    }

    fn request_new_pad(
        &self,
        template: &gst::PadTemplate,
        name: Option<&str>,
        _caps: Option<&gst::Caps>,
    ) -> Option<gst::Pad> {
        let obj = self.obj();
        let (sink, name) = if template.name_template() == "sink" {
            (
                FrameSink::new(self.publication.clone()).upcast::<gst_base::BaseSink>(),
                "sink".to_owned(),
            )
        } else {
            let track = match name.and_then(|name| name.strip_prefix("packets_")) {
                Some(number) => number.parse().ok()?,
                None => (0..).find(|n| obj.static_pad(&format!("packets_{n}")).is_none())?,
            };
            let sink = PacketSink::new(self.publication.clone(), track);
            (sink.upcast(), format!("packets_{track}"))
        };
        if obj.static_pad(&name).is_some() {
            gst::warning!(CAT, imp = self, "Pad {name} exists already: request another number");
            return None;
        }
        sink.set_property("sync", lock(&self.settings).sync);
        // Reach PAUSED without a frame, because a publishing sink has no preroll to show.
        sink.set_async(false);
        // Added before its pad is linked, because a bin unlinks the pads of added elements.
        obj.add(&sink).ok()?;
        let expose = || -> Result<gst::GhostPad, glib::BoolError> {
            let target = sink.static_pad("sink").expect("a base sink has a sink pad");
            let pad = gst::GhostPad::builder_from_template_with_target(template, &target)?;
            let pad = pad.name(&name).build();
            sink.sync_state_with_parent()?;
            pad.set_active(true)?;
            obj.add_pad(&pad)?;
            Ok(pad)
        };
        match expose() {
            Ok(pad) => Some(pad.upcast()),
            Err(e) => {
                gst::warning!(
                    CAT,
                    imp = self,
                    "Can't add pad {name} ({e}): see the log before this line"
                );
                stop(&sink);
                let _ = obj.remove(&sink);
                None
            }
        }
    }

    fn release_pad(&self, pad: &gst::Pad) {
        let obj = self.obj();
        let sink = pad
            .downcast_ref::<gst::GhostPad>()
            .and_then(|ghost| ghost.target())
            .and_then(|target| target.parent_element());
        // Stopped first: this ends the waits of the streaming thread, which holds the pad's stream lock.
        if let Some(sink) = &sink {
            stop(sink);
        }
        let _ = pad.set_active(false);
        let _ = obj.remove_pad(pad);
        if let Some(sink) = sink {
            let _ = obj.remove(&sink);
        }
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        let opened = match transition {
            gst::StateChange::NullToReady => {
                let key = lock(&self.settings).key.clone().unwrap_or_default();
                let on_gpu = matches!(self.publication.memory().0, Memory::Vmm | Memory::Ipc);
                let gpu = if on_gpu { GstCuda::get().map(drop) } else { Ok(()) };
                cuframes::check_key(&key).and_then(|()| Ok(gpu?))
            }
            gst::StateChange::ReadyToPaused => self.open(),
            _ => Ok(()),
        };
        if let Err(e) = opened {
            post_error(self, &e);
            return Err(gst::StateChangeError);
        }
        if transition == gst::StateChange::PausedToReady
            && let Some(publisher) = self.publication.get()
        {
            // Upstream may wait for a slot in the pool, and its own state change can't end that wait.
            publisher.stop_waiting();
        }
        let changed = self.parent_change_state(transition);
        if transition == gst::StateChange::PausedToReady
            || transition == gst::StateChange::ReadyToPaused && changed.is_err()
        {
            self.close();
        }
        changed
    }
}

impl BinImpl for CuframesSink {}
