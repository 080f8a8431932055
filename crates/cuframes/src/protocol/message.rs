//! What the two sides tell each other over the socket.
//!
//! One message a packet: a type (u32), then the fields in order, little-endian; a text is its length
//! (u32) and UTF-8. Nothing may follow. How many fds travel along is fixed by the type.

use super::status::PublisherStatus;
use super::wire::{HELLO_MAGIC, MAX_MESSAGE, MAX_NAME, Malformed, Reader, Writer};
use crate::types::code::{Mode, RefusalReason};

/// Versions of the protocol that this code speaks.
pub const VERSIONS: std::ops::RangeInclusive<u16> = 2..=2;
/// What a subscriber asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub versions: (u16, u16),
    pub mode: Mode,
    /// Frames that it may hold at a time; 0 where it wants none.
    pub credit: u32,
    /// The GPU that it can map memory for; zeros for none.
    pub gpu: [u8; 16],
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Hello(Hello),
    /// Two fds: the control segment and the subscriber's page.
    Welcome {
        version: u16,
        epoch: u64,
        id: u32,
        slots: u32,
        index: u32,
    },
    Refused {
        code: RefusalReason,
        text: String,
    },
    /// The frames of this generation have these caps.
    Format {
        generation: u32,
        caps: String,
    },
    /// One fd: the memory. `device` is the UUID of the GPU that it is on, zeros for host memory.
    Chunk {
        id: u32,
        kind: u32,
        device: [u8; 16],
        slots: u32,
        stride: u64,
        size: u64,
    },
    /// No frame of this chunk will come any more.
    Retire {
        chunk: u32,
    },
    /// One fd: the track's segment.
    Track {
        track: u32,
        bytes: u64,
    },
    /// The packets of this generation of the track have these caps.
    TrackFormat {
        track: u32,
        generation: u32,
        caps: String,
    },
    /// The publisher sends the subscriber away.
    Bye {
        code: RefusalReason,
        text: String,
    },
    /// The subscriber takes no more frames; it closes the connection when it has released the last.
    Leave,
    /// An observer's question, instead of HELLO: what the publisher is. `from` is the entry to begin with.
    StatusRequest {
        versions: (u16, u16),
        from: u64,
    },
    /// The answer. `next` is the entry to ask for next; 0 if that was all.
    Status {
        version: u16,
        next: u64,
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
            Self::Refused { code, text } => w(REFUSED).u32(*code as u32).text(text),
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
            Self::Bye { code, text } => w(BYE).u32(*code as u32).text(text),
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

    /// Parses what a peer sent; `fds` is how many fds came with it.
    pub fn decode(bytes: &[u8], fds: usize) -> Result<Self, Malformed> {
        let mut r = Reader(bytes);
        let message = match r.u32()? {
            HELLO => {
                let versions = r.versions()?;
                // What follows is known for these versions only.
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
            REFUSED => Self::Refused { code: r.u32()?.into(), text: r.text(MAX_MESSAGE)? },
            FORMAT => Self::Format { generation: r.u32()?, caps: r.text(MAX_MESSAGE)? },
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
            TRACK_FORMAT => Self::TrackFormat {
                track: r.u32()?,
                generation: r.u32()?,
                caps: r.text(MAX_MESSAGE)?,
            },
            BYE => Self::Bye { code: r.u32()?.into(), text: r.text(MAX_MESSAGE)? },
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

    /// How many fds travel with the message.
    pub fn fds(&self) -> usize {
        match self {
            Self::Welcome { .. } => 2,
            Self::Chunk { .. } | Self::Track { .. } => 1,
            _ => 0,
        }
    }
}
