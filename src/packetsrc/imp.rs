// SPDX-License-Identifier: LGPL-2.1-or-later
/**
 * SECTION:element-cuframespacketsrc
 * @title: cuframespacketsrc
 * @short_description: subscribes to the encoded packets of a cuframessink in another process
 *
 * Outputs the packets of one track that a `cuframessink` with the same key publishes. Packets are byte
 * for byte those of the publisher's parser, with caps, codec data, timestamps, reference timestamps and
 * flags. The first packet is the newest keyframe in the packet buffer or, with `preroll-time` or
 * `preroll-gops`, an older one.
 *
 * A reader that falls too far behind continues at the newest keyframe, with the flag DISCONT. Lost
 * packets are counted in `stats` and posted in the element message `cuframes-packets-lost` (`key`,
 * `track`, `lost`). Packets are always complete.
 *
 * The source waits for its publisher to start, and reconnects when it is lost. It posts the element
 * messages `cuframes-lost` and `cuframes-reconnected`, with the fields `key` and `reason`. From the next
 * publisher, it reads everything from the oldest keyframe on, so that as little as possible is missing.
 *
 * Sources in one bin that read tracks of the same key, such as video and audio, start together and stay
 * in sync. The source with the lowest track number starts at its keyframe, and the others at the packets
 * that belong to it.
 *
 * ## Example
 *
 * Record a camera without decoding:
 *
 * |[
 * gst-launch-1.0 -e cuframespacketsrc key=cam1 ! h264parse ! mp4mux ! filesink location=cam1.mp4
 * ]|
 *
 * Decode in this process, by a URI whose query sets properties:
 *
 * |[
 * gst-launch-1.0 uridecodebin3 uri=cuframes-packets://cam1?track=0 ! videoconvert ! autovideosink
 * ]|
 *
 * Record with audio, starting 5 s in the past:
 *
 * |[
 * gst-launch-1.0 -e mp4mux name=mux ! filesink location=cam1.mp4 \
 *     cuframespacketsrc key=cam1 track=0 preroll-time=5000000000 ! h264parse ! queue ! mux. \
 *     cuframespacketsrc key=cam1 track=1 ! aacparse ! queue ! mux.
 * ]|
 */
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use gst::glib;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;

use super::session::Session;
use super::settings::{PacketMode, Settings};
use super::stats::Stats;
use crate::caps::{always_template, packet_caps, parse_caps};
use crate::log::CAT;
use crate::messages::{post_error, post_message};
use crate::meta;
use crate::source::connection::{JoinRequest, PublisherLink, into_flow, wait};
use crate::source::element::{base_src_methods, check_key, impl_source, inherit_allocation};
use crate::source::negotiation::SourcePad;
use crate::time::{self, MonotonicOffset};
use cuframes::memory::Importer;
use cuframes::sync::clock::now_ns;
use cuframes::sync::lock;
use cuframes::{Error, Mode, Packet, PacketId, PacketReader, ResumePoint, Start, Subscriber};

#[derive(Default)]
struct State {
    /// The reader, and the subscriber that keeps it connected.
    reader: Option<(Subscriber, PacketReader)>,
    link: PublisherLink,
    /// Position of the last packet, where the next reader resumes.
    resume_point: Option<ResumePoint>,
    generation: Option<u32>,
    offset: MonotonicOffset,
    /// Packets are missing before the next buffer.
    discont: bool,
    /// This source leads its session, and has yet to set where the session starts.
    leads: bool,
}

/// Membership in a session, from start to stop.
struct Membership {
    session: Arc<Session>,
    track: u32,
}

/// Implementation of `cuframespacketsrc`.
///
/// Lock order: as in `cuframessrc`, then the lock of the session.
#[derive(Default)]
pub(crate) struct CuframesPacketSrc {
    membership: Mutex<Option<Membership>>,
    settings: Mutex<Settings>,
    state: Mutex<State>,
    stats: Mutex<Stats>,
    pad: SourcePad,
}

impl CuframesPacketSrc {
    /// Returns the next packet of the track. Waits for one, and for publishers to join.
    fn next_packet(
        &self,
        state: &mut State,
        settings: &Settings,
    ) -> Result<Packet, gst::FlowError> {
        loop {
            let (subscriber, reader) = match &mut state.reader {
                Some(reader) => reader,
                none => {
                    let request = JoinRequest {
                        mode: match settings.mode {
                            PacketMode::Live => Mode::Newest,
                            PacketMode::Lossless => Mode::Strict,
                        },
                        max_frames: 0,
                        importer: Importer::host(),
                    };
                    let interrupt = &self.pad.interrupt;
                    let joined = state.link.join(self, &settings.source, &request, interrupt)?;
                    lock(&self.stats).reconnects = state.link.reconnects();
                    let leader_start = self.session().leader_start(settings.track, joined.epoch());
                    state.leads = leader_start.is_none();
                    let start = match (state.resume_point, leader_start) {
                        // A reader resumes at its position if the publisher is still the same.
                        (Some(point), _) if point.epoch() == joined.epoch() => Start::After(point),
                        (_, Some(leader_start)) => Start::NotBefore(leader_start),
                        (Some(point), None) => Start::After(point),
                        (None, None) => settings.start(),
                    };
                    let reader = joined.packets(settings.track, start);
                    state.generation = None;
                    state.discont = true;
                    none.insert((joined, reader))
                }
            };
            let wait = wait(&settings.source, Duration::ZERO);
            let loss = match into_flow(reader.next(&wait))? {
                Ok(item) => {
                    self.pad.set_latency(&*self.obj(), subscriber.latency());
                    state.resume_point = reader.resume_point();
                    return Ok(item);
                }
                Err(loss) => loss,
            };
            state.reader = None;
            state.link.lost(self, &settings.source, &loss, &self.pad.interrupt)?;
        }
    }

    fn session(&self) -> Arc<Session> {
        let membership = lock(&self.membership);
        membership.as_ref().expect("set from start to stop").session.clone()
    }

    /// Leaves the session, so that no other source waits for this one. The common delay stays as it is.
    fn leave_session(&self) {
        if let Some(Membership { session, track }) = &*lock(&self.membership) {
            session.leave(*track, self.pad.interrupt.bell());
        }
    }

    /// Sends the caps of the packet if they have changed.
    fn set_format(&self, state: &mut State, packet: &Packet) -> Result<(), gst::FlowError> {
        if state.generation == Some(packet.generation) {
            return Ok(());
        }
        let template = self.obj().src_pad().pad_template_caps();
        let known = |caps: &gst::Caps| caps.is_fixed() && caps.is_subset(&template);
        let Some(caps) = parse_caps(&packet.caps).filter(known) else {
            let key = lock(&self.settings).source.key.clone().unwrap_or_default();
            let problem = "its caps are not supported by cuframespacketsrc".to_owned();
            post_error(self, &Error::Protocol { key, problem });
            return Err(gst::FlowError::Error);
        };
        self.pad.set_caps(self, &caps)?;
        state.generation = Some(packet.generation);
        Ok(())
    }

    /// Returns the value to add to the publisher's times to get running times, in ns.
    fn to_running_time(&self, state: &mut State, packet: &Packet) -> Option<i64> {
        let info = &packet.info;
        let first_ns = info.dts.or(info.pts).unwrap_or(packet.published_ns);
        let offset_ns = state.offset.get(&*self.obj())?;
        let epoch = state.resume_point?.epoch();
        let session = self.session();
        let latency_ns = self.pad.latency_ns();
        let skew_ns = || time::skew(packet.published_ns, first_ns, latency_ns);
        let shift_ns = session.to_running_time(epoch, first_ns, offset_ns, skew_ns);
        if std::mem::take(&mut state.leads) {
            session.set_start(epoch, info.pts.unwrap_or(first_ns));
        }
        Some(shift_ns)
    }

    /// Posts how many packets were lost before this one.
    fn post_lost(&self, settings: &Settings, packet: &Packet) {
        gst::warning!(CAT, imp = self, "{} packets lost before {}", packet.lost, packet.seq);
        let structure = gst::Structure::builder("cuframes-packets-lost")
            .field("key", settings.source.key.as_deref().unwrap_or_default())
            .field("track", settings.track)
            .field("lost", packet.lost)
            .build();
        post_message(self, structure);
    }

    /// Returns the packet as a buffer. `shift_ns` converts its times to running times; without it, the
    /// buffer has no timestamps.
    fn buffer(packet: Packet, track: u32, shift_ns: Option<i64>, discont: bool) -> gst::Buffer {
        let time = |t: Option<i64>| {
            let ns = u64::try_from(t?.saturating_add(shift_ns?)).ok()?;
            Some(gst::ClockTime::from_nseconds(ns))
        };
        let flags = gst::BufferFlags::from_bits_truncate(packet.info.flags);
        let mut flags = gst::BufferFlags::from_bits_truncate(time::portable_flags(flags));
        flags.set(gst::BufferFlags::DELTA_UNIT, !packet.info.keyframe);
        if discont {
            flags |= gst::BufferFlags::DISCONT;
        }
        let mut buffer = gst::Buffer::from_mut_slice(packet.data);
        {
            let buffer = buffer.make_mut();
            buffer.set_flags(flags);
            buffer.set_pts(time(packet.info.pts));
            buffer.set_dts(time(packet.info.dts));
            buffer.set_duration(packet.info.duration.map(gst::ClockTime::from_nseconds));
            buffer.set_offset(packet.seq);
            buffer.set_offset_end(packet.seq.saturating_add(1));
            meta::add_packet(buffer, PacketId { track, seq: packet.seq });
            meta::add_references(buffer, &packet.info.references);
        }
        buffer
    }
}

#[glib::object_subclass]
impl ObjectSubclass for CuframesPacketSrc {
    const NAME: &'static str = "GstCuframesPacketSrc";
    type Type = super::CuframesPacketSrc;
    type ParentType = gst_base::PushSrc;
    type Interfaces = (gst::URIHandler,);

    fn class_init(class: &mut Self::Class) {
        inherit_allocation::<Self>(class);
    }
}

impl_source!(CuframesPacketSrc, settings: Settings, uri_scheme: "cuframes-packets");

impl ElementImpl for CuframesPacketSrc {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "cuframes packet source",
                "Source",
                "Receives the encoded packets that cuframessink publishes in another process",
                env!("CARGO_PKG_AUTHORS"),
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> =
            LazyLock::new(|| vec![always_template(gst::PadDirection::Src, &packet_caps())]);
        &TEMPLATES
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        check_key(self, transition, lock(&self.settings).source.key.as_deref())?;
        self.parent_change_state(transition)
    }

    fn send_event(&self, event: gst::Event) -> bool {
        let ends = event.type_() == gst::EventType::Eos;
        let sent = self.parent_send_event(event);
        if ends {
            // The base class ends the stream on its own, without calling `create` or `stop`.
            self.leave_session();
        }
        sent
    }
}

impl BaseSrcImpl for CuframesPacketSrc {
    base_src_methods!();

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        *lock(&self.stats) = Stats::default();
        let Settings { track, source, .. } = lock(&self.settings).clone();
        let session = Session::of(&*self.obj(), &source.key.unwrap_or_default());
        // All sources of a pipeline enter their session before the first one joins its publisher, so every
        // member knows the leader.
        session.enter(track, self.pad.interrupt.bell());
        *lock(&self.membership) = Some(Membership { session, track });
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        // Dropped outside the lock.
        let state = std::mem::take(&mut *lock(&self.state));
        drop(state);
        self.leave_session();
        *lock(&self.membership) = None;
        self.pad.reset();
        Ok(())
    }

    fn negotiate(&self) -> Result<(), gst::LoggableError> {
        // The publisher determines the caps, so they are set with its first packet.
        Ok(())
    }

    fn query(&self, query: &mut gst::QueryRef) -> bool {
        self.pad.query_latency(query) || BaseSrcImplExt::parent_query(self, query)
    }
}

impl PushSrcImpl for CuframesPacketSrc {
    fn create(
        &self,
        _buffer: Option<&mut gst::BufferRef>,
    ) -> Result<gst_base::subclass::base_src::CreateSuccess, gst::FlowError> {
        let settings = lock(&self.settings).clone();
        let mut state = lock(&self.state);
        let packet = self.next_packet(&mut state, &settings).and_then(|packet| {
            self.set_format(&mut state, &packet)?;
            Ok(packet)
        });
        if packet.as_ref().is_err_and(|e| *e != gst::FlowError::Flushing) {
            // This source has ended, so the others would wait forever for it to start.
            self.leave_session();
        }
        let packet = packet?;
        let shift_ns = self.to_running_time(&mut state, &packet);
        let discont = std::mem::take(&mut state.discont) || packet.lost > 0;
        if packet.lost > 0 {
            self.post_lost(&settings, &packet);
        }
        {
            let mut stats = lock(&self.stats);
            stats.received += 1;
            stats.lost = stats.lost.saturating_add(packet.lost);
            stats.bytes += packet.data.len() as u64;
            stats.latency.add_ns(now_ns().saturating_sub(packet.published_ns));
        }
        let buffer = Self::buffer(packet, settings.track, shift_ns, discont);
        Ok(gst_base::subclass::base_src::CreateSuccess::NewBuffer(buffer))
    }
}
