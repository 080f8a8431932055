// SPDX-License-Identifier: LGPL-2.1-or-later
//! Properties of `cuframessink`.

use std::time::Duration;

use gst::glib;
use gst::prelude::*;

use crate::properties::{Alias, MAX_TIME, runtime_dir, runtime_dir_spec};
use cuframes::{PublisherConfig, SocketAccess, TrackConfig};

const DEFAULT_POLICY: Policy = Policy::Drop;
pub(super) const DEFAULT_MEMORY: Memory = Memory::Auto;
pub(super) const DEFAULT_SYNC_MODE: SyncMode = SyncMode::Auto;
const DEFAULT_WAIT_TIMEOUT: gst::ClockTime = gst::ClockTime::from_seconds(5);
const DEFAULT_WINDOW: u32 = 2;
const DEFAULT_MAX_SUBSCRIBERS: u32 = 32;
const DEFAULT_MAX_FRAMES_PER_SUBSCRIBER: u32 = 8;
const DEFAULT_STALL_TIMEOUT: gst::ClockTime = gst::ClockTime::ZERO;
const DEFAULT_PACKET_BUFFER_TIME: gst::ClockTime = gst::ClockTime::from_seconds(10);
const DEFAULT_PACKET_BUFFER_BYTES: u64 = 16 << 20;
const DEFAULT_SOCKET_MODE: u32 = 0o660;
const DEFAULT_SYNC: bool = false;
const DEFAULT_FORWARD_EOS: bool = true;

/// What the publisher does with a new frame or packet while subscribers still use the old ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesPolicy")]
pub(crate) enum Policy {
    /// Drops frames that find no free slot.
    #[default]
    #[enum_value(name = "Never wait, and drop a frame if no slot is free", nick = "drop")]
    Drop,
    /// Waits, so that strict subscribers get every frame.
    #[enum_value(
        name = "Wait for strict and lossless subscribers, up to wait-timeout for each frame or packet",
        nick = "wait"
    )]
    Wait,
}

/// Memory of published frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesMemory")]
pub(crate) enum Memory {
    #[default]
    #[enum_value(
        name = "The kind of memory that upstream produces; GPU memory is shared as vmm if the driver supports it",
        nick = "auto"
    )]
    Auto,
    #[enum_value(name = "GPU memory, shared as file descriptors of the driver", nick = "vmm")]
    Vmm,
    #[enum_value(
        name = "GPU memory, shared by the driver's older IPC handles within the same PID and IPC namespaces",
        nick = "ipc"
    )]
    Ipc,
    #[enum_value(name = "Host memory; upstream downloads", nick = "host")]
    Host,
}

/// How subscribers detect that a frame in GPU memory is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesSyncMode")]
pub(crate) enum SyncMode {
    #[default]
    #[enum_value(name = "The best mode that the device and the memory support", nick = "auto")]
    Auto,
    #[enum_value(name = "The GPU writes the number of each complete frame", nick = "timeline")]
    Timeline,
    #[enum_value(name = "The driver has an event for each slot, with memory=ipc", nick = "event")]
    Event,
    #[enum_value(name = "The publisher's CPU waits for the GPU", nick = "host")]
    Host,
}

/// Values of the properties that take effect when the publisher opens.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) key: Option<String>,
    pub(super) runtime_dir: Option<String>,
    pub(super) policy: Policy,
    pub(super) wait_timeout: gst::ClockTime,
    pub(super) window: u32,
    pub(super) max_subscribers: u32,
    pub(super) max_frames_per_subscriber: u32,
    pub(super) stall_timeout: gst::ClockTime,
    pub(super) packet_buffer_time: gst::ClockTime,
    pub(super) packet_buffer_bytes: u64,
    pub(super) socket: SocketAccess,
    pub(super) allowed_uids: Vec<u32>,
    pub(super) sync: bool,
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
            max_frames_per_subscriber: DEFAULT_MAX_FRAMES_PER_SUBSCRIBER,
            stall_timeout: DEFAULT_STALL_TIMEOUT,
            packet_buffer_time: DEFAULT_PACKET_BUFFER_TIME,
            packet_buffer_bytes: DEFAULT_PACKET_BUFFER_BYTES,
            socket: SocketAccess { mode: DEFAULT_SOCKET_MODE, group: None },
            allowed_uids: Vec::new(),
            sync: DEFAULT_SYNC,
        }
    }
}

impl Settings {
    pub(super) const ALIASES: &[Alias] =
        &[Alias { name: "max-credit", target: "max-frames-per-subscriber", offset: 0 }];

    /// Returns the configuration of a publisher called `name`.
    pub(super) fn publisher_config(&self, name: String) -> PublisherConfig {
        PublisherConfig {
            runtime_dir: runtime_dir(self.runtime_dir.as_deref()),
            name,
            window: self.window,
            policy: match self.policy {
                Policy::Drop => cuframes::Policy::Drop,
                Policy::Wait => cuframes::Policy::Wait(self.wait_timeout.into()),
            },
            max_subscribers: self.max_subscribers,
            max_frames_per_subscriber: self.max_frames_per_subscriber,
            socket: self.socket.clone(),
            allowed_uids: self.allowed_uids.clone(),
            stall_timeout: Some(self.stall_timeout.into()).filter(|t| *t > Duration::ZERO),
            ..PublisherConfig::new(self.key.clone().unwrap_or_default())
        }
    }

    /// Returns the configuration of its tracks.
    pub(super) fn track_config(&self) -> TrackConfig {
        TrackConfig { bytes: self.packet_buffer_bytes, time: self.packet_buffer_time.into() }
    }

    pub(super) fn properties() -> Vec<glib::ParamSpec> {
        let mut properties = vec![
            glib::ParamSpecString::builder("key")
                .nick("Key")
                .blurb("Key that subscribers ask for: 1 to 63 of A-Z a-z 0-9 _ . - without a dot at the start (required)")
                .mutable_ready()
                .build(),
            runtime_dir_spec(),
            glib::ParamSpecEnum::builder_with_default("policy", DEFAULT_POLICY)
                .nick("Policy")
                .blurb("What to do with a new frame or packet while subscribers still use the old ones")
                .mutable_ready()
                .build(),
            glib::ParamSpecEnum::builder_with_default("memory", DEFAULT_MEMORY)
                .nick("Memory")
                .blurb("Memory of published frames, which limits what is negotiated with upstream")
                .mutable_ready()
                .build(),
            glib::ParamSpecEnum::builder_with_default("sync-mode", DEFAULT_SYNC_MODE)
                .nick("Sync Mode")
                .blurb("How subscribers detect that a frame in GPU memory is complete")
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt64::builder("wait-timeout")
                .nick("Wait Timeout")
                .blurb("With policy=wait, time in nanoseconds after which a subscriber that takes no frame or packet is disconnected")
                .maximum(MAX_TIME)
                .default_value(DEFAULT_WAIT_TIMEOUT.nseconds())
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt::builder("window")
                .nick("Window")
                .blurb("Number of the newest frames that stay available for subscribers that are waking up")
                .minimum(1)
                .maximum(256)
                .default_value(DEFAULT_WINDOW)
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt::builder("max-subscribers")
                .nick("Maximum Subscribers")
                .blurb("Maximum number of subscribers at a time")
                .minimum(1)
                .maximum(1024)
                .default_value(DEFAULT_MAX_SUBSCRIBERS)
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt::builder("max-frames-per-subscriber")
                .nick("Maximum Frames Per Subscriber")
                .blurb("Maximum number of frames that each subscriber may hold at a time, the upper limit of max-frames of cuframessrc")
                .minimum(1)
                .maximum(64)
                .default_value(DEFAULT_MAX_FRAMES_PER_SUBSCRIBER)
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt64::builder("stall-timeout")
                .nick("Stall Timeout")
                .blurb("Time in nanoseconds after which a subscriber that holds frames and takes no new one is disconnected (0 = never)")
                .maximum(MAX_TIME)
                .default_value(DEFAULT_STALL_TIMEOUT.nseconds())
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt64::builder("packet-buffer-time")
                .nick("Packet Buffer Time")
                .blurb("Time in nanoseconds of packets to keep for each track, rounded up to whole groups of pictures")
                .maximum(MAX_TIME)
                .default_value(DEFAULT_PACKET_BUFFER_TIME.nseconds())
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt64::builder("packet-buffer-bytes")
                .nick("Packet Buffer Bytes")
                .blurb("Memory in bytes for the packets of each track, including 128 bytes of metadata for each packet")
                .minimum(64 << 10)
                .maximum(1 << 40)
                .default_value(DEFAULT_PACKET_BUFFER_BYTES)
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt::builder("socket-mode")
                .nick("Socket Mode")
                .blurb("Permissions of the socket, such as 432 for 0660, of which subscribers need write permission")
                .maximum(0o777)
                .default_value(DEFAULT_SOCKET_MODE)
                .mutable_ready()
                .build(),
            glib::ParamSpecString::builder("socket-group")
                .nick("Socket Group")
                .blurb("Group of the socket by name or number, which also needs access to the runtime directory (unset: the publisher's group)")
                .mutable_ready()
                .build(),
            gst::ParamSpecArray::builder("allowed-uids")
                .nick("Allowed Users")
                .blurb("Numbers of the users that may subscribe, such as <0,1000> (empty: all users with write permission for the socket)")
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
                .blurb("Publish at the time of the timestamps instead of immediately, as needed for files")
                .default_value(DEFAULT_SYNC)
                .mutable_playing()
                .build(),
            glib::ParamSpecBoolean::builder("forward-eos")
                .nick("Forward EOS")
                .blurb("Announce the end of the stream to subscribers; if false, they wait for the next publisher, as needed for cameras that drop out")
                .default_value(DEFAULT_FORWARD_EOS)
                .mutable_playing()
                .build(),
            glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                .nick("Statistics")
                .blurb("Statistics since PAUSED: published, dropped, copied, unmatched-frames (frames without a matching packet), memory, sync-mode, slots, chunks, bytes, subscribers (name, pid, uid, max-frames, held, lag, skipped and others) and tracks")
                .read_only()
                .build(),
        ];
        Alias::append(Self::ALIASES, &mut properties);
        properties
    }

    /// Sets a property. Returns false if its value is stored elsewhere.
    pub(super) fn set(&mut self, name: &str, value: &glib::Value) -> bool {
        // GObject has checked type and range.
        let time = || gst::ClockTime::from_nseconds(value.get().unwrap());
        match name {
            "key" => self.key = value.get().unwrap(),
            "runtime-dir" => self.runtime_dir = value.get().unwrap(),
            "policy" => self.policy = value.get().unwrap(),
            "wait-timeout" => self.wait_timeout = time(),
            "window" => self.window = value.get().unwrap(),
            "max-subscribers" => self.max_subscribers = value.get().unwrap(),
            "max-frames-per-subscriber" => self.max_frames_per_subscriber = value.get().unwrap(),
            "stall-timeout" => self.stall_timeout = time(),
            "packet-buffer-time" => self.packet_buffer_time = time(),
            "packet-buffer-bytes" => self.packet_buffer_bytes = value.get().unwrap(),
            "socket-mode" => self.socket.mode = value.get().unwrap(),
            "socket-group" => {
                let group: Option<String> = value.get().unwrap();
                self.socket.group = group.filter(|g| !g.is_empty());
            }
            "allowed-uids" => {
                let uids: gst::ArrayRef<'_> = value.get().unwrap();
                self.allowed_uids = uids.iter().filter_map(|uid| uid.get().ok()).collect();
            }
            "sync" => self.sync = value.get().unwrap(),
            _ => return false,
        }
        true
    }

    /// Returns a property's value, or `None` if it is stored elsewhere.
    pub(super) fn get(&self, name: &str) -> Option<glib::Value> {
        Some(match name {
            "key" => self.key.to_value(),
            "runtime-dir" => self.runtime_dir.to_value(),
            "policy" => self.policy.to_value(),
            "wait-timeout" => self.wait_timeout.nseconds().to_value(),
            "window" => self.window.to_value(),
            "max-subscribers" => self.max_subscribers.to_value(),
            "max-frames-per-subscriber" => self.max_frames_per_subscriber.to_value(),
            "stall-timeout" => self.stall_timeout.nseconds().to_value(),
            "packet-buffer-time" => self.packet_buffer_time.nseconds().to_value(),
            "packet-buffer-bytes" => self.packet_buffer_bytes.to_value(),
            "socket-mode" => self.socket.mode.to_value(),
            "socket-group" => self.socket.group.to_value(),
            "allowed-uids" => gst::Array::new(self.allowed_uids.iter().copied()).to_value(),
            "sync" => self.sync.to_value(),
            _ => return None,
        })
    }
}
