// SPDX-License-Identifier: LGPL-2.1-or-later
//! The inner sink of `cuframessink` for one track of packets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use gst::glib;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;

use super::publication::Publication;
use crate::caps::{always_template, caps_text, packet_caps};
use crate::log::CAT;
use crate::messages::post_error;
use crate::meta;
use crate::time::{self, MonotonicOffset};
use cuframes::sync::lock;
use cuframes::{PacketId, PacketInfo, PushError, Track};

#[derive(Default)]
struct State {
    track: Option<Track>,
    offset: MonotonicOffset,
    /// The last packet was rejected, so the next one is discontinuous.
    gap: bool,
    /// Subscribers would reject the caps, so packets are left out until there are others.
    caps_rejected: bool,
    /// Packets are left out until a keyframe, because they depend on packets that were.
    awaits_keyframe: bool,
    /// The warning about truncated groups of pictures was posted.
    warned_truncated: bool,
}

/// The fixed part of a [`PacketSink`].
struct Setup {
    publication: Arc<Publication>,
    track: u32,
}

/// Implementation of the inner sink for packets.
#[derive(Default)]
pub(crate) struct PacketSink {
    setup: OnceLock<Setup>,
    state: Mutex<State>,
    /// `render` has to return: set by `unlock`, cleared by `unlock_stop`.
    unlocked: AtomicBool,
}

impl super::PacketSink {
    /// Returns a sink that publishes packets as track number `track`.
    pub(super) fn new(publication: Arc<Publication>, track: u32) -> Self {
        let sink: Self = glib::Object::new();
        let _ = sink.imp().setup.set(Setup { publication, track });
        sink
    }
}

impl PacketSink {
    fn setup(&self) -> &Setup {
        self.setup.get().expect("set by new")
    }

    /// Leaves out all packets until the caps change. The other pads of the bin are unaffected.
    fn reject_caps(&self, problem: &cuframes::Error) {
        if std::mem::replace(&mut lock(&self.state).caps_rejected, true) {
            return;
        }
        let Setup { publication, track } = self.setup();
        let key = publication.key();
        gst::element_imp_warning!(
            self,
            gst::StreamError::Format,
            ("The packets of pad packets_{track} of '{key}' are left out until their caps change. {problem}")
        );
    }

    /// Drops the track. The bin calls this when it leaves PAUSED, because GstBaseSink calls `stop` only on
    /// the way from READY to NULL.
    pub(super) fn reset(&self) {
        *lock(&self.state) = State::default();
    }
}

#[glib::object_subclass]
impl ObjectSubclass for PacketSink {
    const NAME: &'static str = "GstCuframesPacketSink";
    type Type = super::PacketSink;
    type ParentType = gst_base::BaseSink;
}

impl ObjectImpl for PacketSink {
    fn constructed(&self) {
        self.parent_constructed();
        self.obj().set_enable_last_sample(false);
    }
}

impl GstObjectImpl for PacketSink {}

impl ElementImpl for PacketSink {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "cuframes packet sink",
                "Sink",
                "Publishes packets; part of cuframessink",
                env!("CARGO_PKG_AUTHORS"),
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> =
            LazyLock::new(|| vec![always_template(gst::PadDirection::Sink, &packet_caps())]);
        &TEMPLATES
    }
}

impl BaseSinkImpl for PacketSink {
    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        self.reset();
        Ok(())
    }

    fn set_caps(&self, caps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let Setup { publication, track: number } = self.setup();
        let publisher = publication.get().ok_or_else(|| {
            gst::loggable_error!(CAT, "Not started: set the element to PAUSED first")
        })?;
        let caps = match caps_text(caps) {
            Ok(caps) => caps,
            Err(e) => {
                self.reject_caps(&e);
                return Ok(());
            }
        };
        let mut state = lock(&self.state);
        state.caps_rejected = false;
        let set = match &state.track {
            Some(track) => track.set_caps(&caps),
            None => publisher
                .add_track(*number, &caps, publication.track_config())
                .map(|track| state.track = Some(track)),
        };
        drop(state);
        set.map_err(|e| {
            post_error(self, &e);
            gst::loggable_error!(CAT, "{e}")
        })
    }

    fn render(&self, buffer: &gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let obj = self.obj();
        let segment = obj.segment();
        let segment = segment.downcast_ref::<gst::ClockTime>();
        let mut flags = buffer.flags();
        let keyframe = !flags.contains(gst::BufferFlags::DELTA_UNIT);
        let mut state = lock(&self.state);
        let awaited = state.awaits_keyframe;
        state.awaits_keyframe = state.caps_rejected || awaited && !keyframe;
        if state.awaits_keyframe {
            return Ok(gst::FlowSuccess::Ok);
        }
        let gap = state.gap || awaited;
        let offset_ns = state.offset.get(&*obj);
        let timestamp = |t: Option<gst::ClockTime>| {
            segment
                .zip(offset_ns.zip(t))
                .and_then(|(segment, (offset_ns, t))| time::to_monotonic_ns(segment, offset_ns, t))
        };
        flags.set(gst::BufferFlags::DISCONT, flags.contains(gst::BufferFlags::DISCONT) || gap);
        let info = PacketInfo {
            pts: timestamp(buffer.pts()),
            dts: timestamp(buffer.dts()),
            duration: buffer.duration().map(|d| d.nseconds()),
            keyframe,
            flags: time::portable_flags(flags),
            references: meta::references(buffer),
        };
        let track = state.track.clone().ok_or(gst::FlowError::NotNegotiated)?;
        drop(state);
        let data = buffer.map_readable().map_err(|_| gst::FlowError::Error)?;
        // SYNC(unlock/render): pairs with the stores in `unlock` and `unlock_stop`.
        let unlocked = || self.unlocked.load(Ordering::Acquire);
        let pushed = loop {
            match track.push_unless(info.clone(), &data, &unlocked) {
                // A pause or a flush has ended the wait for a reader. `wait_preroll` returns an error after a
                // flush.
                Err(PushError::WouldBlock) if unlocked() => obj.wait_preroll()?,
                Err(PushError::WouldBlock) => return Err(gst::FlowError::Flushing),
                other => break other,
            };
        };
        if let (Some(segment), Some(pts), Ok(seq)) = (segment, buffer.pts(), &pushed) {
            let Setup { publication, track } = self.setup();
            let packet = PacketId { track: *track, seq: *seq };
            publication.recent.record(time::to_running_ns(segment, pts), packet);
        }
        let mut state = lock(&self.state);
        let first_rejected = !std::mem::replace(&mut state.gap, pushed.is_err());
        let first_truncated = track.stats().truncated_gops > 0
            && !std::mem::replace(&mut state.warned_truncated, true);
        drop(state);
        if pushed == Err(PushError::TooBig) && first_rejected {
            gst::element_imp_warning!(
                self,
                gst::ResourceError::NoSpaceLeft,
                (
                    "A packet of {} bytes does not fit into the packet buffer; it is left out, with all packets that depend on it: raise packet-buffer-bytes",
                    data.len()
                )
            );
        }
        if first_truncated {
            gst::element_imp_warning!(
                self,
                gst::ResourceError::NoSpaceLeft,
                ("A group of pictures does not fit into the packet buffer, so new subscribers have to wait for the next keyframe: raise packet-buffer-bytes")
            );
        }
        Ok(gst::FlowSuccess::Ok)
    }

    fn event(&self, event: gst::Event) -> bool {
        if event.type_() == gst::EventType::Eos
            && self.setup().publication.forwards_eos()
            && let Some(track) = &lock(&self.state).track
        {
            track.end();
        }
        self.parent_event(event)
    }

    fn unlock(&self) -> Result<(), gst::ErrorMessage> {
        // SYNC(unlock/render): pairs with the load in `render`.
        self.unlocked.store(true, Ordering::Release);
        Ok(())
    }

    fn unlock_stop(&self) -> Result<(), gst::ErrorMessage> {
        // SYNC(unlock/render): pairs with the load in `render`.
        self.unlocked.store(false, Ordering::Release);
        Ok(())
    }
}
