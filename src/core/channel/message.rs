//! What the two sides tell each other over the socket.
//!
//! One message a packet: a type (u32), then the fields in order, little-endian; a text is its length
//! (u32) and UTF-8. Nothing may follow. How many fds travel along is fixed by the type.

use std::fmt;

use super::status::Status;

/// Versions of the protocol that this code speaks.
pub const VERSIONS: std::ops::RangeInclusive<u16> = 2..=2;
/// First field of HELLO and ASK.
pub const HELLO_MAGIC: u64 = super::super::layout::MAGIC;
/// Bytes of a message at most.
pub const MAX_MESSAGE: usize = 64 << 10;
/// Bytes of a name at most; a longer one is cut by the sender and refused by the receiver.
pub const MAX_NAME: usize = 255;

/// Why a peer is sent away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// All places are taken.
    Full = 1,
    /// No version in common.
    Version = 2,
    /// The message made no sense, or came at the wrong time.
    Malformed = 3,
    /// More claims than the credit allows.
    OverCredit = 4,
    /// It held frames and did not move for too long.
    Stalled = 5,
    /// The publisher ends.
    Closing = 6,
    /// No memory for the credit asked for.
    NoMemory = 7,
    /// The peer did not read its messages.
    Slow = 8,
    /// The publisher does not serve this user.
    Denied = 9,
    /// A code that this version does not know.
    Other = u32::MAX,
}

impl From<u32> for Code {
    fn from(code: u32) -> Self {
        use Code::*;
        [Full, Version, Malformed, OverCredit, Stalled, Closing, NoMemory, Slow, Denied]
            .into_iter()
            .find(|c| *c as u32 == code)
            .unwrap_or(Other)
    }
}

/// Which frames a subscriber takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u32)]
pub enum Mode {
    /// The newest at the time of asking; those that came between are skipped.
    #[default]
    Newest = 0,
    /// Each in order, as far as the publisher still has it.
    Strict = 1,
}

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
        code: Code,
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
        code: Code,
        text: String,
    },
    /// The subscriber takes no more frames; it closes the connection when it has released the last.
    Leave,
    /// An observer's question, instead of HELLO: what the publisher is. `from` is the entry to begin with.
    Ask {
        versions: (u16, u16),
        from: u64,
    },
    /// The answer. `next` is the entry to ask for next; 0 if that was all.
    Status {
        version: u16,
        next: u64,
        status: Box<Status>,
    },
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    Short,
    Long,
    Type(u32),
    Text,
    Magic,
    /// HELLO of a peer that speaks these versions, none of which is known here.
    Versions(u16, u16),
    Mode(u32),
    Kind(u32),
    Fds {
        expected: usize,
        got: usize,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("the message ends too early"),
            Self::Long => f.write_str("the message has bytes behind its end"),
            Self::Type(t) => write!(f, "unknown message type {t}"),
            Self::Text => f.write_str("a text is too long, no UTF-8, or has control characters"),
            Self::Magic => f.write_str("the peer does not speak the cuframes protocol"),
            Self::Versions(first, last) => {
                write!(f, "the peer speaks versions {first} to {last} of the protocol")
            }
            Self::Mode(m) => write!(f, "unknown mode {m}"),
            Self::Kind(k) => write!(f, "unknown memory kind {k}"),
            Self::Fds { expected, got } => {
                write!(f, "{got} fds came with it instead of {expected}")
            }
        }
    }
}

impl std::error::Error for Malformed {}

pub(super) struct Writer(Vec<u8>);

impl Writer {
    fn u16(mut self, v: u16) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    pub(super) fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    pub(super) fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    pub(super) fn text(self, s: &str) -> Self {
        let mut this = self.u32(s.len() as u32);
        this.0.extend(s.as_bytes());
        this
    }
}

pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        Ok(self.bytes(N)?.try_into().expect("as many as asked for"))
    }
    fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    pub(super) fn text(&mut self, max: usize) -> Result<String, Malformed> {
        let len = self.u32()? as usize;
        if len > max {
            return Err(Malformed::Text);
        }
        let text = String::from_utf8(self.bytes(len)?.to_vec()).map_err(|_| Malformed::Text)?;
        // Texts end up in logs, and in C strings.
        if text.contains(char::is_control) { Err(Malformed::Text) } else { Ok(text) }
    }
    pub(super) fn mode(&mut self) -> Result<Mode, Malformed> {
        match self.u32()? {
            0 => Ok(Mode::Newest),
            1 => Ok(Mode::Strict),
            other => Err(Malformed::Mode(other)),
        }
    }
    /// The magic comes first, so that a stranger is told as such whatever version it has.
    fn versions(&mut self) -> Result<(u16, u16), Malformed> {
        if self.u64()? != HELLO_MAGIC {
            return Err(Malformed::Magic);
        }
        Ok((self.u16()?, self.u16()?))
    }
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
const ASK: u32 = 11;
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
            Self::Ask { versions, from } => {
                w(ASK).u64(HELLO_MAGIC).u16(versions.0).u16(versions.1).u64(*from)
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
            ASK => Self::Ask { versions: r.versions()?, from: r.u64()? },
            STATUS => Self::Status {
                version: r.u16()?,
                next: r.u64()?,
                status: Box::new(Status::decode(&mut r)?),
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
