/**
 * SECTION:element-cuframespacketsrc
 * @title: cuframespacketsrc
 * @short_description: the encoded packets of a cuframessink in another process
 *
 * Emits the packets of one track that a `cuframessink` with the same key publishes: byte for byte what
 * its parser produced, with caps, codec data, timestamps, reference timestamps and flags. The first
 * packet is a keyframe, the newest that is there, or, with `preroll-time` or `preroll-gops`, one of the
 * past. A reader that falls too far behind goes on at the newest keyframe, with DISCONT set; what it lost
 * is counted in `stats` and posted in a message `cuframes-packets-lost` (key, track, lost). A packet is
 * never torn.
 *
 * The source waits for a publisher that is not there yet, and for the next when it goes away. It posts
 * the messages `cuframes-lost` and `cuframes-reconnected`, with the key and the reason. Of the next
 * publisher it takes everything from the oldest keyframe on, so that nothing is missing but the gap.
 *
 * Sources of one bin that read tracks of the same key, such as video and audio, begin together and stay
 * in sync: the one with the lowest track number begins at its keyframe, the others with what belongs to
 * it.
 *
 * ## Example
 *
 * Records a camera without decoding it:
 *
 * |[
 * gst-launch-1.0 -e cuframespacketsrc key=cam1 ! h264parse ! mp4mux ! filesink location=cam1.mp4
 * ]|
 *
 * Decodes it here, by a URI; what follows the question mark are properties:
 *
 * |[
 * gst-launch-1.0 uridecodebin3 uri=cuframes-packets://cam1?track=0 ! videoconvert ! autovideosink
 * ]|
 *
 * With its sound, and beginning 5 s ago:
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
use super::{PacketMode, Start};
use crate::log::CAT;
use crate::meta;
use crate::properties::{parse_caps, post_error};
use crate::source::{self, Latency, Life, Outlet};
use crate::time::{self, Origin};
use cuframes::memory::Importer;
use cuframes::sync::clock::now_ns;
use cuframes::sync::lock;
use cuframes::{Error, Mode, Packet, PacketId, PacketReader, ResumePoint, Subscriber};

const URI_SCHEME: &str = "cuframes-packets";

const DEFAULT_TRACK: u32 = 0;
const DEFAULT_START: Start = Start::LatestKeyframe;
const DEFAULT_PREROLL_TIME: gst::ClockTime = gst::ClockTime::ZERO;
const DEFAULT_PREROLL_GOPS: u32 = 0;
const DEFAULT_MODE: PacketMode = PacketMode::Live;

#[derive(Debug, Clone)]
struct Settings {
    source: source::Settings,
    track: u32,
    start: Start,
    preroll_time: gst::ClockTime,
    preroll_gops: u32,
    mode: PacketMode,
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
    fn start(&self) -> cuframes::Start {
        match self.start {
            Start::LatestKeyframe => {
                cuframes::Start::Preroll { time: self.preroll_time.into(), gops: self.preroll_gops }
            }
            Start::NextKeyframe => cuframes::Start::NextKeyframe,
            Start::OldestKeyframe => cuframes::Start::OldestKeyframe,
        }
    }
}

#[derive(Debug, Default)]
struct Stats {
    received: u64,
    lost: u64,
    bytes: u64,
    reconnects: u64,
    latency: Latency,
}

#[derive(Default)]
struct State {
    /// Kept for the reader, which is the one that is used.
    reader: Option<(Subscriber, PacketReader)>,
    life: Life,
    /// Where the last reader was.
    place: Option<ResumePoint>,
    generation: Option<u32>,
    origin: Origin,
    discont: bool,
    /// This is the leader of its session, and has not yet said where it begins.
    leads: bool,
}

/// A member of its session, from start to stop.
struct Member {
    session: Arc<Session>,
    track: u32,
}

/// Lock order: as in `cuframessrc`; the session's own lock last.
pub struct CuframesPacketSrc {
    member: Mutex<Option<Member>>,
    settings: Mutex<Settings>,
    state: Mutex<State>,
    stats: Mutex<Stats>,
    outlet: Outlet,
}

impl CuframesPacketSrc {
    /// The next packet of the track and its publisher's, however long that takes.
    fn next_packet(
        &self,
        state: &mut State,
        settings: &Settings,
    ) -> Result<Packet, gst::FlowError> {
        loop {
            let (subscriber, reader) = match &mut state.reader {
                Some(reader) => reader,
                none => {
                    let mode = match settings.mode {
                        PacketMode::Live => Mode::Newest,
                        PacketMode::Lossless => Mode::Strict,
                    };
                    let asked = (mode, 0, Importer::host());
                    let joined =
                        state.life.join(self, &settings.source, asked, &self.outlet.interrupt)?;
                    lock(&self.stats).reconnects = state.life.reconnects();
                    let follows = self.session().follow(settings.track, joined.epoch());
                    state.leads = follows.is_none();
                    let start = match (state.place, follows) {
                        // The same publisher goes on where it was.
                        (Some(place), _) if place.epoch() == joined.epoch() => {
                            cuframes::Start::After(place)
                        }
                        (_, Some(begin)) => cuframes::Start::NotBefore(begin),
                        (Some(place), None) => cuframes::Start::After(place),
                        (None, None) => settings.start(),
                    };
                    let reader = joined.packets(settings.track, start);
                    state.generation = None;
                    state.discont = true;
                    none.insert((joined, reader))
                }
            };
            let wait = source::wait(&self.outlet.interrupt, &settings.source, Duration::ZERO);
            let (code, text) = match source::taken(reader.next(&wait))? {
                Ok(item) => {
                    self.outlet.note_latency(&*self.obj(), subscriber.latency());
                    state.place = reader.place();
                    return Ok(item);
                }
                Err(lost) => lost,
            };
            state.reader = None;
            state.life.lost(self, &settings.source, code, &text, &self.outlet.interrupt)?;
        }
    }

    fn session(&self) -> Arc<Session> {
        let member = lock(&self.member);
        member.as_ref().expect("there is one from start to stop").session.clone()
    }

    /// Nobody waits for this source any more. What it has in common with the others stays as it is.
    fn leave_session(&self) {
        if let Some(Member { session, track }) = &*lock(&self.member) {
            session.leave(*track, self.outlet.interrupt.bell());
        }
    }

    fn set_format(&self, state: &mut State, packet: &Packet) -> Result<(), gst::FlowError> {
        if state.generation == Some(packet.generation) {
            return Ok(());
        }
        let template = self.obj().src_pad().pad_template_caps();
        let known = |caps: &gst::Caps| caps.is_fixed() && caps.is_subset(&template);
        let Some(caps) = parse_caps(&packet.caps).filter(known) else {
            let key = lock(&self.settings).source.key.clone().unwrap_or_default();
            post_error(
                self,
                &Error::Protocol {
                    key,
                    problem: "its caps are none that a cuframespacketsrc has".into(),
                },
            );
            return Err(gst::FlowError::Error);
        };
        self.outlet.set_caps(self, &caps)?;
        state.generation = Some(packet.generation);
        Ok(())
    }

    /// What has to be added to the publisher's times to get running times.
    fn to_running_time(&self, state: &mut State, packet: &Packet) -> Option<i64> {
        let info = &packet.info;
        let first = info.dts.or(info.pts).unwrap_or(packet.published);
        let origin = state.origin.get(&*self.obj())?;
        let epoch = state.place?.epoch();
        let session = self.session();
        let latency = i64::try_from(self.outlet.latency().as_nanos()).unwrap_or(i64::MAX);
        let shift = || time::shift(packet.published, first, latency);
        let distance = session.distance(epoch, first, origin, shift);
        if std::mem::take(&mut state.leads) {
            session.begin(epoch, info.pts.unwrap_or(first));
        }
        Some(distance)
    }

    /// Tells of packets that were lost before this one.
    fn tell_lost(&self, settings: &Settings, packet: &Packet) {
        let obj = self.obj();
        gst::warning!(CAT, imp = self, "{} packets lost before {}", packet.lost, packet.seq);
        let structure = gst::Structure::builder("cuframes-packets-lost")
            .field("key", settings.source.key.as_deref().unwrap_or_default())
            .field("track", settings.track)
            .field("lost", packet.lost)
            .build();
        let _ = obj.post_message(gst::message::Element::builder(structure).src(&*obj).build());
    }
}

#[glib::object_subclass]
impl ObjectSubclass for CuframesPacketSrc {
    const NAME: &'static str = "GstCuframesPacketSrc";
    type Type = super::CuframesPacketSrc;
    type ParentType = gst_base::PushSrc;
    type Interfaces = (gst::URIHandler,);

    fn class_init(class: &mut Self::Class) {
        source::inherit_allocation::<Self>(class);
    }

    fn new() -> Self {
        Self {
            member: Mutex::default(),
            settings: Mutex::default(),
            state: Mutex::default(),
            stats: Mutex::default(),
            outlet: Outlet::new(),
        }
    }
}

impl ObjectImpl for CuframesPacketSrc {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
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
                    .blurb("Which keyframe to begin at")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt64::builder("preroll-time")
                    .nick("Preroll time")
                    .blurb("With start=latest-keyframe, begin so far in the past at least, if it is still there (ns)")
                    .maximum(crate::properties::MAX_TIME)
                    .default_value(DEFAULT_PREROLL_TIME.nseconds())
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("preroll-gops")
                    .nick("Preroll GOPs")
                    .blurb("With start=latest-keyframe, begin so many whole groups of pictures in the past at least, if they are still there")
                    .default_value(DEFAULT_PREROLL_GOPS)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("mode", DEFAULT_MODE)
                    .nick("Mode")
                    .blurb("What becomes of packets that this source has not yet taken")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                    .nick("Statistics")
                    .blurb("received, lost, bytes, reconnects; latency-p50 and latency-p99 from publishing to here over the last 512 packets (ns)")
                    .read_only()
                    .build(),
            ]);
            properties
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut settings = lock(&self.settings);
        match pspec.name() {
            // GObject has checked type and range.
            "track" => settings.track = value.get().unwrap(),
            "start" => settings.start = value.get().unwrap(),
            "preroll-time" => {
                settings.preroll_time = gst::ClockTime::from_nseconds(value.get().unwrap());
            }
            "preroll-gops" => settings.preroll_gops = value.get().unwrap(),
            "mode" => settings.mode = value.get().unwrap(),
            name => assert!(settings.source.set(name, value)),
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let settings = lock(&self.settings).clone();
        match pspec.name() {
            "track" => settings.track.to_value(),
            "start" => settings.start.to_value(),
            "preroll-time" => settings.preroll_time.nseconds().to_value(),
            "preroll-gops" => settings.preroll_gops.to_value(),
            "mode" => settings.mode.to_value(),
            "stats" => {
                let stats = lock(&self.stats);
                let [p50, p99] = stats.latency.quantiles([0.5, 0.99]);
                gst::Structure::builder("cuframes-packet-stats")
                    .field("received", stats.received)
                    .field("lost", stats.lost)
                    .field("bytes", stats.bytes)
                    .field("reconnects", stats.reconnects)
                    .field("latency-p50", p50)
                    .field("latency-p99", p99)
                    .build()
                    .to_value()
            }
            name => settings.source.get(name).expect("a property of this class"),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        let obj = self.obj();
        obj.set_live(true);
        obj.set_format(gst::Format::Time);
    }
}

impl GstObjectImpl for CuframesPacketSrc {}

impl ElementImpl for CuframesPacketSrc {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "cuframes packet source",
                "Source",
                "Takes the encoded packets that cuframessink publishes in another process",
                "The cuframes authors",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let (src, always) = (gst::PadDirection::Src, gst::PadPresence::Always);
            let caps = crate::properties::packet_caps();
            vec![gst::PadTemplate::new("src", src, always, &caps).expect("a valid template")]
        });
        &TEMPLATES
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        source::check_key(self, transition, lock(&self.settings).source.key.as_deref())?;
        self.parent_change_state(transition)
    }

    fn send_event(&self, event: gst::Event) -> bool {
        let ends = event.type_() == gst::EventType::Eos;
        let sent = self.parent_send_event(event);
        if ends {
            // The base class ends the stream by itself, without another call.
            self.leave_session();
        }
        sent
    }
}

impl URIHandlerImpl for CuframesPacketSrc {
    const URI_TYPE: gst::URIType = gst::URIType::Src;

    fn protocols() -> &'static [&'static str] {
        &[URI_SCHEME]
    }

    fn uri(&self) -> Option<String> {
        crate::uri::get(self.obj().upcast_ref(), URI_SCHEME)
    }

    fn set_uri(&self, uri: &str) -> Result<(), glib::Error> {
        crate::uri::set(self.obj().upcast_ref(), URI_SCHEME, uri)
    }
}

impl BaseSrcImpl for CuframesPacketSrc {
    fn start(&self) -> Result<(), gst::ErrorMessage> {
        *lock(&self.stats) = Stats::default();
        let Settings { track, source, .. } = lock(&self.settings).clone();
        let session = Session::of(&*self.obj(), &source.key.unwrap_or_default());
        // Before any of them joins, all members of a session know who leads.
        session.enter(track, self.outlet.interrupt.bell());
        *lock(&self.member) = Some(Member { session, track });
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        let state = std::mem::take(&mut *lock(&self.state));
        drop(state);
        self.leave_session();
        *lock(&self.member) = None;
        self.outlet.stop();
        Ok(())
    }

    fn is_seekable(&self) -> bool {
        false
    }

    fn unlock(&self) -> Result<(), gst::ErrorMessage> {
        self.outlet.interrupt.set();
        Ok(())
    }

    fn unlock_stop(&self) -> Result<(), gst::ErrorMessage> {
        self.outlet.interrupt.clear();
        Ok(())
    }

    fn caps(&self, filter: Option<&gst::Caps>) -> Option<gst::Caps> {
        Some(self.outlet.offer(&*self.obj(), filter))
    }

    fn negotiate(&self) -> Result<(), gst::LoggableError> {
        // The publisher decides, so there is nothing to negotiate before its first packet.
        Ok(())
    }

    fn query(&self, query: &mut gst::QueryRef) -> bool {
        self.outlet.answer(query) || BaseSrcImplExt::parent_query(self, query)
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
            // Whoever waits for it to begin would wait for ever.
            self.leave_session();
        }
        let packet = packet?;
        let distance = self.to_running_time(&mut state, &packet);
        let time = |t: Option<i64>| {
            let ns = u64::try_from(t?.saturating_add(distance?)).ok()?;
            Some(gst::ClockTime::from_nseconds(ns))
        };
        let flags = gst::BufferFlags::from_bits_truncate(packet.info.flags);
        let mut flags = gst::BufferFlags::from_bits_truncate(time::portable_flags(flags));
        flags.set(gst::BufferFlags::DELTA_UNIT, !packet.info.keyframe);
        if std::mem::take(&mut state.discont) || packet.lost > 0 {
            flags |= gst::BufferFlags::DISCONT;
        }
        if packet.lost > 0 {
            self.tell_lost(&settings, &packet);
        }
        {
            let mut stats = lock(&self.stats);
            stats.received += 1;
            stats.lost = stats.lost.saturating_add(packet.lost);
            stats.bytes += packet.data.len() as u64;
            stats.latency.add(now_ns().saturating_sub(packet.published));
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
            meta::add_packet(buffer, PacketId { track: settings.track, seq: packet.seq });
            meta::add_references(buffer, &packet.info.references);
        }
        Ok(gst_base::subclass::base_src::CreateSuccess::NewBuffer(buffer))
    }
}
