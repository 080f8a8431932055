// SPDX-License-Identifier: LGPL-2.1-or-later
//! The messages that publisher and subscriber exchange over the socket.
//!
//! Each packet is one message: its type (u32), then its fields in order, little-endian. A text is its
//! length in bytes (u32) and UTF-8. The last field ends the message. The type determines the number of fds.

use super::status::PublisherStatus;
use super::wire::{HELLO_MAGIC, MAX_CAPS, MAX_MESSAGE, MAX_NAME, Malformed, Reader, Writer};
use crate::types::mode::Mode;
use crate::types::refusal::RefusalReason;

/// Versions of the protocol that this side speaks.
pub const VERSIONS: std::ops::RangeInclusive<u16> = 2..=2;

/// Request of a subscriber: the content of HELLO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Oldest and newest version that the subscriber speaks.
    pub versions: (u16, u16),
    /// Which frames it takes.
    pub mode: Mode,
    /// Number of frames that it holds at a time; 0 for a subscriber of packets only.
    pub credit: u32,
    /// UUID of the GPU that it maps memory for; zeros for none.
    pub gpu: [u8; 16],
    /// Its name, for statistics.
    pub name: String,
}

/// A message of either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Subscriber: asks to be accepted. The first message of a connection.
    Hello(Hello),
    /// Publisher: accepts the subscriber. Two fds: the control segment and the subscriber's page.
    Welcome {
        /// Version of the protocol that the publisher chose.
        version: u16,
        /// Number of this run of the publisher.
        epoch: u64,
        /// Number of the subscriber in the publisher's statistics.
        id: u32,
        /// Number of slots of the control segment and of the page.
        slots: u32,
        /// Number of index entries of the control segment.
        index: u32,
    },
    /// Publisher: refuses a HELLO or STATUS_REQUEST.
    Refused {
        /// The reason.
        reason: RefusalReason,
        /// The reason as a sentence for a log.
        text: String,
    },
    /// Publisher: announces the format of a generation of frames.
    Format {
        /// Number of the format.
        generation: u32,
        /// GStreamer caps.
        caps: String,
    },
    /// Publisher: announces a chunk of memory. One fd: the memory.
    Chunk {
        /// Number of the chunk.
        id: u32,
        /// Kind of memory, see [`Kind`](crate::memory::Kind).
        kind: u32,
        /// UUID of the GPU that has the memory; zeros for host memory.
        device: [u8; 16],
        /// Number of slots in the chunk.
        slots: u32,
        /// Distance from one slot to the next, in bytes.
        stride: u64,
        /// Maximum size of a frame, in bytes.
        size: u64,
    },
    /// Publisher: announces that no more frames are published in a chunk.
    Retire {
        /// Number of the chunk.
        chunk: u32,
    },
    /// Publisher: announces a track. One fd: the track's segment.
    Track {
        /// Number of the track.
        track: u32,
        /// Size of the ring, in bytes.
        bytes: u64,
    },
    /// Publisher: announces the format of a generation of packets of a track.
    TrackFormat {
        /// Number of the track.
        track: u32,
        /// Number of the format.
        generation: u32,
        /// GStreamer caps.
        caps: String,
    },
    /// Publisher: evicts the subscriber, or exits.
    Bye {
        /// The reason.
        reason: RefusalReason,
        /// The reason as a sentence for a log.
        text: String,
    },
    /// Subscriber: takes no more frames. It closes the connection when it has released the last one.
    Leave,
    /// Observer: asks for the publisher's status. The first message of a connection, instead of HELLO.
    StatusRequest {
        /// Oldest and newest version that the observer speaks.
        versions: (u16, u16),
        /// Entry to start with.
        from: u64,
    },
    /// Publisher: answers a STATUS_REQUEST.
    Status {
        /// Version of the protocol that the publisher chose.
        version: u16,
        /// Entry to start the next request with; 0 after the last one.
        next: u64,
        /// The part of the status that fits into one message.
        status: Box<PublisherStatus>,
    },
}

const HELLO: u32 = 1;
const WELCOME: u32 = 2;
const REFUSED: u32 = 3;
const FORMAT: u32 = 4;
const CHUNK: u32 = 5;
const RETIRE: u32 = 6;
const TRACK: u32 = 7;
const TRACK_FORMAT: u32 = 8;
const BYE: u32 = 9;
const LEAVE: u32 = 10;
const STATUS_REQUEST: u32 = 11;
const STATUS: u32 = 12;

impl Message {
    /// Returns the bytes of the message.
    pub fn encode(&self) -> Vec<u8> {
        let w = |kind: u32| Writer(Vec::with_capacity(128)).u32(kind);
        match self {
            Self::Hello(h) => {
                let mut w = w(HELLO).u64(HELLO_MAGIC).u16(h.versions.0).u16(h.versions.1);
                w = w.u32(h.mode as u32).u32(h.credit);
                w.0.extend(h.gpu);
                w.text(&h.name)
            }
            Self::Welcome { version, epoch, id, slots, index } => {
                w(WELCOME).u16(*version).u64(*epoch).u32(*id).u32(*slots).u32(*index)
            }
            Self::Refused { reason, text } => w(REFUSED).u32(*reason as u32).text(text),
            Self::Format { generation, caps } => w(FORMAT).u32(*generation).text(caps),
            Self::Chunk { id, kind, device, slots, stride, size } => {
                let mut w = w(CHUNK).u32(*id).u32(*kind);
                w.0.extend(device);
                w.u32(*slots).u64(*stride).u64(*size)
            }
            Self::Retire { chunk } => w(RETIRE).u32(*chunk),
            Self::Track { track, bytes } => w(TRACK).u32(*track).u64(*bytes),
            Self::TrackFormat { track, generation, caps } => {
                w(TRACK_FORMAT).u32(*track).u32(*generation).text(caps)
            }
            Self::Bye { reason, text } => w(BYE).u32(*reason as u32).text(text),
            Self::Leave => w(LEAVE),
            Self::StatusRequest { versions, from } => {
                w(STATUS_REQUEST).u64(HELLO_MAGIC).u16(versions.0).u16(versions.1).u64(*from)
            }
            Self::Status { version, next, status } => {
                status.encode(w(STATUS).u16(*version).u64(*next))
            }
        }
        .0
    }

    /// Parses a message of a peer, which came with `fds` fds.
    ///
    /// # Errors
    /// [`Malformed`] if it is not a valid message.
    pub fn decode(bytes: &[u8], fds: usize) -> Result<Self, Malformed> {
        let mut r = Reader(bytes);
        let message = match r.u32()? {
            HELLO => {
                let versions = r.versions()?;
                // The format of the other fields is known for these versions only.
                if versions.0 > *VERSIONS.end() || versions.1 < *VERSIONS.start() {
                    return Err(Malformed::Versions(versions.0, versions.1));
                }
                Self::Hello(Hello {
                    versions,
                    mode: r.mode()?,
                    credit: r.u32()?,
                    gpu: r.array()?,
                    name: r.text(MAX_NAME)?,
                })
            }
            WELCOME => Self::Welcome {
                version: r.u16()?,
                epoch: r.u64()?,
                id: r.u32()?,
                slots: r.u32()?,
                index: r.u32()?,
            },
            REFUSED => Self::Refused { reason: r.u32()?.into(), text: r.text(MAX_MESSAGE)? },
            FORMAT => Self::Format { generation: r.u32()?, caps: r.text(MAX_CAPS)? },
            CHUNK => Self::Chunk {
                id: r.u32()?,
                kind: r.u32()?,
                device: r.array()?,
                slots: r.u32()?,
                stride: r.u64()?,
                size: r.u64()?,
            },
            RETIRE => Self::Retire { chunk: r.u32()? },
            TRACK => Self::Track { track: r.u32()?, bytes: r.u64()? },
            TRACK_FORMAT => {
                Self::TrackFormat { track: r.u32()?, generation: r.u32()?, caps: r.text(MAX_CAPS)? }
            }
            BYE => Self::Bye { reason: r.u32()?.into(), text: r.text(MAX_MESSAGE)? },
            LEAVE => Self::Leave,
            STATUS_REQUEST => Self::StatusRequest { versions: r.versions()?, from: r.u64()? },
            STATUS => Self::Status {
                version: r.u16()?,
                next: r.u64()?,
                status: Box::new(PublisherStatus::decode(&mut r)?),
            },
            other => return Err(Malformed::Type(other)),
        };
        if !r.0.is_empty() {
            return Err(Malformed::Long);
        }
        let expected = message.fds();
        if fds != expected {
            return Err(Malformed::Fds { expected, got: fds });
        }
        Ok(message)
    }

    /// Returns the number of fds that a message of this type has.
    pub fn fds(&self) -> usize {
        match self {
            Self::Welcome { .. } => 2,
            Self::Chunk { .. } | Self::Track { .. } => 1,
            _ => 0,
        }
    }
}
