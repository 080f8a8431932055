/**
 * SECTION:element-cuframessink
 * @title: cuframessink
 * @short_description: publishes frames and packets to other processes
 *
 * Publishes raw video frames, and the encoded packets that they were decoded from, under a key. Any
 * number of `cuframessrc` and `cuframespacketsrc` on the same host get them, without a copy of the
 * frames and without being able to disturb the publisher or each other.
 *
 * The `sink` pad takes frames, each `packets_%u` pad takes a track of packets. Either kind alone is
 * fine. Upstream is offered the shared memory itself as a buffer pool; elements that use it publish
 * without any copy. Frames that come in other memory are copied once and counted in `stats`.
 *
 * The element posts the messages `cuframes-subscriber-added`, `cuframes-subscriber-removed` and
 * `cuframes-subscriber-stalled`, with the same fields as the subscribers in `stats`.
 *
 * ## Example
 *
 * |[
 * gst-launch-1.0 videotestsrc is-live=true ! video/x-raw,format=NV12,width=1280,height=720 ! cuframessink key=cam1
 * ]|
 *
 * A camera, with its frames and its packets:
 *
 * |[
 * gst-launch-1.0 cuframessink name=pub key=cam1 \
 *     rtspsrc location=rtsp://127.0.0.1:8554/cam ! rtph264depay \
 *     ! video/x-h264,stream-format=avc,alignment=au ! h264parse config-interval=-1 ! tee name=t \
 *     t. ! queue ! avdec_h264 ! pub.sink   t. ! queue ! pub.packets_0
 * ]|
 */
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::BaseSinkExt;

use super::{FrameSink, Memory, PacketSink, Policy, SyncMode};
use crate::gstcuda::GstCuda;
use crate::log::CAT;
use crate::properties::{post_error, runtime_dir};
use cuframes as core;
use cuframes::memory::Backend;
use cuframes::memory::host::HostBackend;
use cuframes::sync::lock;
use cuframes::{Mode, PacketId, PublisherEvent, SocketAccess, SubscriberInfo, TrackConfig};
use cuframes::{Publisher, PublisherConfig};

const DEFAULT_POLICY: Policy = Policy::Drop;
const DEFAULT_MEMORY: Memory = Memory::Auto;
const DEFAULT_SYNC_MODE: SyncMode = SyncMode::Auto;
const DEFAULT_WAIT_TIMEOUT: gst::ClockTime = gst::ClockTime::from_seconds(5);
const DEFAULT_WINDOW: u32 = 2;
const DEFAULT_MAX_SUBSCRIBERS: u32 = 32;
const DEFAULT_MAX_CREDIT: u32 = 8;
const DEFAULT_STALL_TIMEOUT: gst::ClockTime = gst::ClockTime::ZERO;
const DEFAULT_PACKET_BUFFER_TIME: gst::ClockTime = gst::ClockTime::from_seconds(10);
const DEFAULT_PACKET_BUFFER_BYTES: u64 = 16 << 20;
const DEFAULT_SOCKET_MODE: u32 = 0o660;
const DEFAULT_SYNC: bool = false;
const DEFAULT_FORWARD_EOS: bool = true;

#[derive(Debug, Clone)]
struct Settings {
    key: Option<String>,
    runtime_dir: Option<String>,
    policy: Policy,
    wait_timeout: gst::ClockTime,
    window: u32,
    max_subscribers: u32,
    max_frames_per_subscriber: u32,
    stall_timeout: gst::ClockTime,
    packet_buffer_time: gst::ClockTime,
    packet_buffer_bytes: u64,
    socket: SocketAccess,
    allowed_uids: Vec<u32>,
    sync: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            key: None,
            runtime_dir: None,
            policy: DEFAULT_POLICY,
            wait_timeout: DEFAULT_WAIT_TIMEOUT,
            window: DEFAULT_WINDOW,
            max_subscribers: DEFAULT_MAX_SUBSCRIBERS,
            max_frames_per_subscriber: DEFAULT_MAX_CREDIT,
            stall_timeout: DEFAULT_STALL_TIMEOUT,
            packet_buffer_time: DEFAULT_PACKET_BUFFER_TIME,
            packet_buffer_bytes: DEFAULT_PACKET_BUFFER_BYTES,
            socket: SocketAccess { mode: DEFAULT_SOCKET_MODE, group: None },
            allowed_uids: Vec::new(),
            sync: DEFAULT_SYNC,
        }
    }
}

/// What the bin and the sinks in it share: the publisher, between READY and PAUSED.
pub struct Published {
    publisher: Mutex<Option<Arc<Publisher>>>,
    /// Makes the slots in host memory.
    pub host: Arc<dyn Backend>,
    /// As asked for.
    memory: Mutex<(Memory, SyncMode)>,
    /// How subscribers learn that a frame is complete.
    pub sync_mode: Mutex<SyncMode>,
    /// Frames that did not come in a slot.
    pub copied: AtomicU64,
    no_eos: AtomicBool,
    tracks: Mutex<TrackConfig>,
    /// The newest packets, for frames to be told what they were decoded from.
    pub recent: Recent,
    /// Frames for which none of them had the time.
    pub unidentified: AtomicU64,
}

/// Packets by their running times.
#[derive(Default)]
pub struct Recent(Mutex<VecDeque<(i64, PacketId)>>);

impl Recent {
    /// Several seconds of a few tracks: longer than a decoder keeps a picture.
    const PACKETS: usize = 1024;

    pub fn note(&self, time: Option<i64>, packet: PacketId) {
        let Some(time) = time else { return };
        let mut recent = lock(&self.0);
        if recent.len() == Self::PACKETS {
            recent.pop_front();
        }
        recent.push_back((time, packet));
    }

    /// What a frame of this time was decoded from: decoders keep timestamps, whatever they reorder or
    /// drop. `Err` if there are packets, but none of that time. Of several tracks the first counts.
    pub fn find(&self, time: Option<i64>) -> Result<Option<PacketId>, ()> {
        let recent = lock(&self.0);
        let same = recent.iter().rev().filter(|(t, _)| Some(*t) == time);
        let found = same.map(|(_, packet)| *packet).min_by_key(|packet| packet.track);
        if found.is_none() && !recent.is_empty() { Err(()) } else { Ok(found) }
    }

    fn clear(&self) {
        lock(&self.0).clear();
    }
}

impl Default for Published {
    fn default() -> Self {
        Self {
            publisher: Mutex::default(),
            host: Arc::new(HostBackend),
            memory: Mutex::new((DEFAULT_MEMORY, DEFAULT_SYNC_MODE)),
            sync_mode: Mutex::new(SyncMode::Host),
            copied: AtomicU64::new(0),
            no_eos: AtomicBool::new(false),
            tracks: Mutex::default(),
            recent: Recent::default(),
            unidentified: AtomicU64::new(0),
        }
    }
}

impl Published {
    /// The kind of memory that was asked for, and how to wait for it.
    pub fn memory(&self) -> (Memory, SyncMode) {
        *lock(&self.memory)
    }

    pub fn get(&self) -> Option<Arc<Publisher>> {
        lock(&self.publisher).clone()
    }

    /// How tracks are made.
    pub fn track_config(&self) -> TrackConfig {
        *lock(&self.tracks)
    }

    /// Whether subscribers are to be told of the end of a stream.
    pub fn forwards_eos(&self) -> bool {
        !self.no_eos.load(Ordering::Relaxed)
    }
}

/// Ends a sink within, whatever the state of the bin.
fn end(sink: &impl IsA<gst::Element>) {
    sink.set_locked_state(true);
    let _ = sink.set_state(gst::State::Null);
}

/// Lock order: none is held while another is taken, nor while anything is posted or pushed.
#[derive(Default)]
pub struct CuframesSink {
    settings: Mutex<Settings>,
    published: Arc<Published>,
}

impl CuframesSink {
    fn open(&self) -> Result<(), cuframes::Error> {
        let settings = lock(&self.settings).clone();
        let obj = self.obj();
        let config = PublisherConfig {
            runtime_dir: runtime_dir(settings.runtime_dir.as_deref()),
            name: format!("{} of {}", obj.name(), program()),
            window: settings.window,
            policy: match settings.policy {
                Policy::Drop => core::Policy::Drop,
                Policy::Wait => core::Policy::Wait(settings.wait_timeout.into()),
            },
            max_subscribers: settings.max_subscribers,
            max_frames_per_subscriber: settings.max_frames_per_subscriber,
            socket: settings.socket,
            allowed_uids: settings.allowed_uids,
            stall_timeout: Some(settings.stall_timeout.into()).filter(|t| *t > Duration::ZERO),
            ..PublisherConfig::new(settings.key.unwrap_or_default())
        };
        let weak = obj.downgrade();
        let events = move |event| {
            if let Some(obj) = weak.upgrade() {
                obj.imp().announce(event);
            }
        };
        let publisher = Publisher::open(config, self.published.host.clone(), events)?;
        self.published.copied.store(0, Ordering::Relaxed);
        self.published.unidentified.store(0, Ordering::Relaxed);
        self.published.recent.clear();
        *lock(&self.published.sync_mode) = SyncMode::Host;
        *lock(&self.published.tracks) = TrackConfig {
            bytes: settings.packet_buffer_bytes,
            time: settings.packet_buffer_time.into(),
        };
        *lock(&self.published.publisher) = Some(Arc::new(publisher));
        Ok(())
    }

    /// Called from the publisher's thread.
    fn announce(&self, event: PublisherEvent) {
        let (name, info, reason) = match event {
            PublisherEvent::SubscriberAdded(info) => ("cuframes-subscriber-added", info, None),
            PublisherEvent::SubscriberRemoved(info, why) => {
                ("cuframes-subscriber-removed", info, why)
            }
            PublisherEvent::SubscriberStalled(info) => ("cuframes-subscriber-stalled", info, None),
        };
        gst::info!(CAT, imp = self, "{name}: {} (pid {})", info.name, info.pid);
        let mut structure = subscriber_structure(name, &info, None);
        structure.set_if_some("reason", reason);
        let obj = self.obj();
        let _ = obj.post_message(gst::message::Element::builder(structure).src(&*obj).build());
    }

    fn stats(&self) -> gst::Structure {
        let copied = self.published.copied.load(Ordering::Relaxed);
        let Some(stats) = self.published.get().map(|p| p.stats()) else {
            return gst::Structure::new_empty("cuframes-publisher-stats");
        };
        let head = stats.pool.published;
        let subscribers = stats
            .subscribers
            .iter()
            .map(|s| subscriber_structure("subscriber", s, Some(head)).to_send_value());
        let tracks = stats.tracks.iter().map(|t| {
            gst::Structure::builder("track")
                .field("track", t.track)
                .field("published", t.published)
                .field("in-ring", t.in_ring)
                .field("too-big", t.too_big)
                .field("undecodable", t.undecodable)
                .field("cut-gops", t.cut_gops)
                .field("bytes", t.bytes)
                .build()
                .to_send_value()
        });
        gst::Structure::builder("cuframes-publisher-stats")
            .field("published", stats.pool.published)
            .field("dropped", stats.pool.dropped)
            .field("copied", copied)
            .field("unidentified", self.published.unidentified.load(Ordering::Relaxed))
            .field("memory", stats.pool.memory.to_string())
            .field("sync-mode", nick(*lock(&self.published.sync_mode)))
            .field("slots", stats.pool.slots)
            .field("chunks", stats.pool.chunks)
            .field("bytes", stats.pool.bytes)
            .field("subscribers", gst::Array::from_values(subscribers))
            .field("tracks", gst::Array::from_values(tracks))
            .build()
    }
}

/// `head` is the sequence number of the newest frame, where the lag is wanted.
fn subscriber_structure(name: &str, s: &SubscriberInfo, head: Option<u64>) -> gst::Structure {
    let mode = match s.mode {
        Mode::Newest => "newest",
        Mode::Strict => "strict",
    };
    let packets = s.packets.iter().map(|p| {
        gst::Structure::builder("packets")
            .field("track", p.track)
            .field("received", p.received)
            .field("lost", p.lost)
            .build()
            .to_send_value()
    });
    gst::Structure::builder(name)
        .field("id", s.id)
        .field("name", &s.name)
        .field("pid", s.pid)
        .field("uid", s.uid)
        .field("gid", s.gid)
        .field("mode", mode)
        .field("credit", s.max_frames)
        .field("held", s.held)
        .field("received", s.received)
        .field("skipped", s.skipped)
        .field("copied", s.copied)
        .field("packets", gst::Array::from_values(packets))
        .field_if_some("lag", head.map(|head| head.saturating_sub(s.cursor)))
        .build()
}

/// An enum's value as a pipeline writes it.
fn nick(value: impl ToValue) -> String {
    let value = value.to_value();
    glib::EnumValue::from_value(&value).map_or_else(String::new, |(_, value)| value.nick().into())
}

fn program() -> String {
    glib::prgname().map_or_else(|| "a program without a name".into(), |name| name.to_string())
}

#[glib::object_subclass]
impl ObjectSubclass for CuframesSink {
    const NAME: &'static str = "GstCuframesSink";
    type Type = super::CuframesSink;
    type ParentType = gst::Bin;
}

impl ObjectImpl for CuframesSink {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            vec![
                glib::ParamSpecString::builder("key")
                    .nick("Key")
                    .blurb("What subscribers ask for: 1 to 63 of A-Z a-z 0-9 _ . - and no dot at the start (required)")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecString::builder("runtime-dir")
                    .nick("Runtime directory")
                    .blurb("Where the socket is (unset: $CUFRAMES_RUNTIME_DIR, /run/cuframes, $XDG_RUNTIME_DIR/cuframes or /tmp/cuframes-UID)")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("policy", DEFAULT_POLICY)
                    .nick("Policy")
                    .blurb("What happens to a new frame when subscribers are not done with the old ones")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("memory", DEFAULT_MEMORY)
                    .nick("Memory")
                    .blurb("Where published frames lie: what is not possible is not negotiated with upstream")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("sync-mode", DEFAULT_SYNC_MODE)
                    .nick("Sync mode")
                    .blurb("How subscribers learn that a frame on a GPU is complete")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt64::builder("wait-timeout")
                    .nick("Wait timeout")
                    .blurb("With policy=wait, a subscriber that does not take a frame or packet for this long is sent away (ns)")
                    .maximum(crate::properties::MAX_TIME)
                    .default_value(DEFAULT_WAIT_TIMEOUT.nseconds())
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("window")
                    .nick("Window")
                    .blurb("Newest frames that are kept for subscribers that are just waking up")
                    .minimum(1)
                    .maximum(256)
                    .default_value(DEFAULT_WINDOW)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("max-subscribers")
                    .nick("Maximum subscribers")
                    .blurb("Subscribers at a time")
                    .minimum(1)
                    .maximum(1024)
                    .default_value(DEFAULT_MAX_SUBSCRIBERS)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("max-credit")
                    .nick("Maximum credit")
                    .blurb("Frames that one subscriber may hold at a time: its max-held and one in hand")
                    .minimum(1)
                    .maximum(64)
                    .default_value(DEFAULT_MAX_CREDIT)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt64::builder("stall-timeout")
                    .nick("Stall timeout")
                    .blurb("A subscriber that holds frames and takes no new one for this long is sent away (ns, 0 = never)")
                    .maximum(crate::properties::MAX_TIME)
                    .default_value(DEFAULT_STALL_TIMEOUT.nseconds())
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt64::builder("packet-buffer-time")
                    .nick("Packet buffer time")
                    .blurb("As many whole groups of pictures as it takes for this much are kept; older packets are given up (ns)")
                    .maximum(crate::properties::MAX_TIME)
                    .default_value(DEFAULT_PACKET_BUFFER_TIME.nseconds())
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt64::builder("packet-buffer-bytes")
                    .nick("Packet buffer bytes")
                    .blurb("Memory for the packets of each track, with 128 bytes a packet for what is known of it")
                    .minimum(64 << 10)
                    .maximum(1 << 40)
                    .default_value(DEFAULT_PACKET_BUFFER_BYTES)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("socket-mode")
                    .nick("Socket mode")
                    .blurb("Permissions of the socket, such as 0600: who may write to it may subscribe; 432 is 0660")
                    .maximum(0o777)
                    .default_value(DEFAULT_SOCKET_MODE)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecString::builder("socket-group")
                    .nick("Socket group")
                    .blurb("Group of the socket, by name or number (unset: the publisher's); it has to be able to enter the runtime directory, too")
                    .mutable_ready()
                    .build(),
                gst::ParamSpecArray::builder("allowed-uids")
                    .nick("Allowed users")
                    .blurb("Numbers of the users who may subscribe, such as <0,1000> (empty: all who may write to the socket)")
                    .element_spec(
                        &glib::ParamSpecUInt::builder("uid")
                            .nick("User")
                            .blurb("Number of a user")
                            .build(),
                    )
                    .mutable_ready()
                    .build(),
                glib::ParamSpecBoolean::builder("sync")
                    .nick("Sync")
                    .blurb("Publish at the time of the timestamps instead of at once: for files")
                    .default_value(DEFAULT_SYNC)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("forward-eos")
                    .nick("Forward EOS")
                    .blurb("Tell subscribers of the end of the stream; without, they wait for the next publisher: for cameras, which do not end but drop")
                    .default_value(DEFAULT_FORWARD_EOS)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                    .nick("Statistics")
                    .blurb("published, dropped, copied, unidentified (frames: without their packet), memory, sync-mode, slots, chunks, bytes; subscribers: name, pid, uid, credit, held, lag, skipped …; tracks")
                    .read_only()
                    .build(),
            ]
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut settings = lock(&self.settings);
        // GObject has checked type and range.
        let time = || gst::ClockTime::from_nseconds(value.get().unwrap());
        match pspec.name() {
            "key" => settings.key = value.get().unwrap(),
            "runtime-dir" => settings.runtime_dir = value.get().unwrap(),
            "policy" => settings.policy = value.get().unwrap(),
            "memory" => lock(&self.published.memory).0 = value.get().unwrap(),
            "sync-mode" => lock(&self.published.memory).1 = value.get().unwrap(),
            "wait-timeout" => settings.wait_timeout = time(),
            "window" => settings.window = value.get().unwrap(),
            "max-subscribers" => settings.max_subscribers = value.get().unwrap(),
            "max-credit" => settings.max_frames_per_subscriber = value.get().unwrap(),
            "stall-timeout" => settings.stall_timeout = time(),
            "packet-buffer-time" => settings.packet_buffer_time = time(),
            "packet-buffer-bytes" => settings.packet_buffer_bytes = value.get().unwrap(),
            "socket-mode" => settings.socket.mode = value.get().unwrap(),
            "socket-group" => {
                let group: Option<String> = value.get().unwrap();
                settings.socket.group = group.filter(|g| !g.is_empty());
            }
            "allowed-uids" => {
                let uids: gst::ArrayRef<'_> = value.get().unwrap();
                settings.allowed_uids = uids.iter().filter_map(|uid| uid.get().ok()).collect();
            }
            "forward-eos" => {
                self.published.no_eos.store(!value.get::<bool>().unwrap(), Ordering::Relaxed);
            }
            "sync" => {
                let sync: bool = value.get().unwrap();
                settings.sync = sync;
                drop(settings);
                for child in self.obj().children() {
                    child.set_property("sync", sync);
                }
            }
            _ => unimplemented!(),
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        if pspec.name() == "stats" {
            return self.stats().to_value();
        }
        let settings = lock(&self.settings);
        match pspec.name() {
            "key" => settings.key.to_value(),
            "runtime-dir" => settings.runtime_dir.to_value(),
            "policy" => settings.policy.to_value(),
            "memory" => self.published.memory().0.to_value(),
            "sync-mode" => self.published.memory().1.to_value(),
            "wait-timeout" => settings.wait_timeout.nseconds().to_value(),
            "window" => settings.window.to_value(),
            "max-subscribers" => settings.max_subscribers.to_value(),
            "max-credit" => settings.max_frames_per_subscriber.to_value(),
            "stall-timeout" => settings.stall_timeout.nseconds().to_value(),
            "packet-buffer-time" => settings.packet_buffer_time.nseconds().to_value(),
            "packet-buffer-bytes" => settings.packet_buffer_bytes.to_value(),
            "socket-mode" => settings.socket.mode.to_value(),
            "socket-group" => settings.socket.group.to_value(),
            "allowed-uids" => gst::Array::new(settings.allowed_uids.iter().copied()).to_value(),
            "sync" => settings.sync.to_value(),
            "forward-eos" => self.published.forwards_eos().to_value(),
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
                "The cuframes authors",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let template = |name, caps| {
                let (sink, request) = (gst::PadDirection::Sink, gst::PadPresence::Request);
                gst::PadTemplate::new(name, sink, request, &caps).expect("a valid template")
            };
            vec![
                template("sink", crate::properties::frame_caps()),
                template("packets_%u", crate::properties::packet_caps()),
            ]
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
                FrameSink::new(self.published.clone()).upcast::<gst_base::BaseSink>(),
                "sink".to_owned(),
            )
        } else {
            let track = match name.and_then(|name| name.strip_prefix("packets_")) {
                Some(number) => number.parse().ok()?,
                None => (0..).find(|n| obj.static_pad(&format!("packets_{n}")).is_none())?,
            };
            let sink = PacketSink::new(self.published.clone(), track);
            (sink.upcast(), format!("packets_{track}"))
        };
        if obj.static_pad(&name).is_some() {
            gst::warning!(CAT, imp = self, "There is a pad {name} already: request another number");
            return None;
        }
        sink.set_property("sync", lock(&self.settings).sync);
        // A sink that publishes has nothing to show in advance; PAUSED is reached without a frame.
        sink.set_async(false);
        // Before its pad has a link, which a bin would undo.
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
                gst::warning!(CAT, imp = self, "No pad {name}: {e}");
                end(&sink);
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
        // First, as it ends what its pad's thread waits for, which holds the pad meanwhile.
        if let Some(sink) = &sink {
            end(sink);
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
                let on_gpu = matches!(self.published.memory().0, Memory::Vmm | Memory::Ipc);
                let gpu = if on_gpu { GstCuda::get().err() } else { None };
                cuframes::check_key(&key).and(gpu.map_or(Ok(()), |e| Err(e.into())))
            }
            gst::StateChange::ReadyToPaused => self.open(),
            _ => Ok(()),
        };
        if let Err(e) = opened {
            post_error(self, &e);
            return Err(gst::StateChangeError);
        }
        if transition == gst::StateChange::PausedToReady
            && let Some(publisher) = self.published.get()
        {
            // Upstream may be waiting for a slot, out of reach of its own state change.
            publisher.stop_waiting();
        }
        let changed = self.parent_change_state(transition);
        if transition == gst::StateChange::PausedToReady
            || transition == gst::StateChange::ReadyToPaused && changed.is_err()
        {
            for child in self.obj().children() {
                if let Some(sink) = child.downcast_ref::<FrameSink>() {
                    sink.imp().reset();
                } else if let Some(sink) = child.downcast_ref::<PacketSink>() {
                    sink.imp().reset();
                }
            }
            // Dropped outside the lock: it waits for the publisher's thread.
            let publisher = lock(&self.published.publisher).take();
            drop(publisher);
        }
        changed
    }
}

impl BinImpl for CuframesSink {}
