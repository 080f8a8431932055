//! The sink for one track of packets inside `cuframessink`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use gst::glib;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;

use super::imp::Published;
use crate::log::CAT;
use crate::meta;
use crate::properties::post_error;
use crate::time::{self, Origin};
use cuframes::sync::lock;
use cuframes::{PacketId, PacketInfo, PushError, Track};

#[derive(Default)]
struct State {
    track: Option<Track>,
    origin: Origin,
    /// A packet was refused, so the next one does not follow on the last.
    gap: bool,
    /// What was said once.
    said_cut: bool,
}

#[derive(Default)]
pub struct PacketSink {
    setup: OnceLock<(Arc<Published>, u32)>,
    state: Mutex<State>,
    /// Render is to return.
    unlocked: AtomicBool,
}

impl super::PacketSink {
    pub fn new(published: Arc<Published>, track: u32) -> Self {
        let sink: Self = glib::Object::new();
        let _ = sink.imp().setup.set((published, track));
        sink
    }
}

impl PacketSink {
    /// Forgets the publisher. It goes with PAUSED, but a base sink stops with READY.
    pub fn reset(&self) {
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
                "The cuframes authors",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let (sink, always) = (gst::PadDirection::Sink, gst::PadPresence::Always);
            let caps = crate::properties::packet_caps();
            vec![gst::PadTemplate::new("sink", sink, always, &caps).expect("a valid template")]
        });
        &TEMPLATES
    }
}

impl BaseSinkImpl for PacketSink {
    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        self.reset();
        Ok(())
    }

    fn set_caps(&self, caps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let (published, number) = self.setup.get().expect("set by new");
        let publisher = published.get().ok_or_else(|| {
            gst::loggable_error!(CAT, "Not started: set the element to PAUSED first")
        })?;
        let mut state = lock(&self.state);
        let caps = caps.to_string();
        if let Some(track) = &state.track {
            track.set_caps(&caps);
            return Ok(());
        }
        match publisher.add_track(*number, &caps, published.track_config()) {
            Ok(track) => state.track = Some(track),
            Err(e) => {
                drop(state);
                post_error(self, &e);
                return Err(gst::loggable_error!(CAT, "{e}"));
            }
        }
        Ok(())
    }

    fn render(&self, buffer: &gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let obj = self.obj();
        let segment = obj.segment();
        let segment = segment.downcast_ref::<gst::ClockTime>();
        let mut state = lock(&self.state);
        let origin = state.origin.get(&*obj);
        let timestamp = |t: Option<gst::ClockTime>| {
            segment
                .zip(origin.zip(t))
                .and_then(|(segment, (origin, t))| time::publish(segment, origin, t))
        };
        let mut flags = buffer.flags();
        flags
            .set(gst::BufferFlags::DISCONT, flags.contains(gst::BufferFlags::DISCONT) || state.gap);
        let info = PacketInfo {
            pts: timestamp(buffer.pts()),
            dts: timestamp(buffer.dts()),
            duration: buffer.duration().map(|d| d.nseconds()),
            keyframe: !flags.contains(gst::BufferFlags::DELTA_UNIT),
            flags: time::portable_flags(flags),
            references: meta::references(buffer),
        };
        let track = state.track.clone().ok_or(gst::FlowError::NotNegotiated)?;
        drop(state);
        let data = buffer.map_readable().map_err(|_| gst::FlowError::Error)?;
        let unlocked = || self.unlocked.load(Ordering::Acquire);
        let pushed = loop {
            match track.push_unless(info.clone(), &data, &unlocked) {
                // The wait for a reader was broken off for a pause, or for a flush, which is the error here.
                Err(PushError::WouldBlock) if unlocked() => obj.wait_preroll()?,
                Err(PushError::WouldBlock) => return Err(gst::FlowError::Flushing),
                other => break other,
            };
        };
        if let (Some(segment), Some(pts), Ok(seq)) = (segment, buffer.pts(), &pushed) {
            let (published, number) = self.setup.get().expect("set by new");
            let packet = PacketId { track: *number, seq: *seq };
            published.recent.note(time::running(segment, pts), packet);
        }
        let mut state = lock(&self.state);
        let said = std::mem::replace(&mut state.gap, pushed.is_err());
        let cut = track.stats().cut_gops > 0 && !std::mem::replace(&mut state.said_cut, true);
        drop(state);
        if pushed == Err(PushError::TooBig) && !said {
            gst::element_imp_warning!(
                self,
                gst::ResourceError::NoSpaceLeft,
                (
                    "A packet of {} bytes does not fit into the packet buffer; it is left out, with all that depends on it: raise packet-buffer-bytes",
                    data.len()
                )
            );
        }
        if cut {
            gst::element_imp_warning!(
                self,
                gst::ResourceError::NoSpaceLeft,
                ("A group of pictures does not fit into the packet buffer: raise packet-buffer-bytes, or who joins while it runs has to wait for the next keyframe")
            );
        }
        Ok(gst::FlowSuccess::Ok)
    }

    fn event(&self, event: gst::Event) -> bool {
        let (published, _) = self.setup.get().expect("set by new");
        if event.type_() == gst::EventType::Eos
            && published.forwards_eos()
            && let Some(track) = &lock(&self.state).track
        {
            track.end();
        }
        self.parent_event(event)
    }

    fn unlock(&self) -> Result<(), gst::ErrorMessage> {
        self.unlocked.store(true, Ordering::Release);
        Ok(())
    }

    fn unlock_stop(&self) -> Result<(), gst::ErrorMessage> {
        self.unlocked.store(false, Ordering::Release);
        Ok(())
    }
}
