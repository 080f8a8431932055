// SPDX-License-Identifier: LGPL-2.1-or-later
//! Encoding of values as bytes of a message: little-endian, texts prefixed with their length.

use std::fmt;

use crate::error::{Error, Result};
use crate::types::mode::Mode;

/// Maximum size of a message in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

/// Maximum size of the caps of a format in bytes: FORMAT and TRACK_FORMAT have room for them and their other fields.
pub const MAX_CAPS: usize = 60 << 10;

/// Maximum size of a name in bytes. The sender truncates a longer one, the receiver rejects it.
pub const MAX_NAME: usize = 255;

/// Why bytes are not a valid message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// It ends before its last field.
    Short,
    /// It is longer than its fields, or than [`MAX_MESSAGE`].
    Long,
    /// This version does not know the type.
    Type(u32),
    /// A text is too long, not UTF-8, or contains control characters.
    Text,
    /// It does not start with [`HELLO_MAGIC`].
    Magic,
    /// The peer speaks no version of this side. The values are its oldest and newest version.
    Versions(u16, u16),
    /// This version does not know the mode.
    Mode(u32),
    /// This version does not know the kind of memory.
    Kind(u32),
    /// The number of fds differs from that of the message's type.
    Fds {
        /// Number of fds that the type has.
        expected: usize,
        /// Number of fds that came with the message.
        got: usize,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("the message ends too early"),
            Self::Long => f.write_str("the message has bytes after its end"),
            Self::Type(t) => write!(f, "unknown message type {t}"),
            Self::Text => {
                f.write_str("a text is too long, not UTF-8, or contains control characters")
            }
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

/// Checks that subscribers accept caps. One that gets other caps ends its connection.
///
/// # Errors
/// [`Error::InvalidConfig`] if the caps are longer than [`MAX_CAPS`] or contain control characters.
pub fn check_caps(caps: &str) -> Result<()> {
    let problem = if caps.len() > MAX_CAPS {
        let len = caps.len();
        format!("have {len} bytes: shorten them to {MAX_CAPS}, for example their streamheader")
    } else if let Some(c) = caps.chars().find(|c| c.is_control()) {
        format!("contain the control character {c:?}: remove or escape it")
    } else {
        return Ok(());
    };
    Err(Error::InvalidConfig { what: "The caps", problem })
}

/// First field of HELLO and STATUS_REQUEST.
pub const HELLO_MAGIC: u64 = crate::shm::layout::MAGIC;

/// Appends values to a message.
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u16(mut self, v: u16) -> Self {
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

/// Takes values from the start of a message.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(head)
    }
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        Ok(self.bytes(N)?.try_into().expect("as many as asked for"))
    }
    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
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
        // Texts end up in logs and in C strings, which cannot contain control characters.
        if text.contains(char::is_control) { Err(Malformed::Text) } else { Ok(text) }
    }
    pub(super) fn mode(&mut self) -> Result<Mode, Malformed> {
        match self.u32()? {
            0 => Ok(Mode::Newest),
            1 => Ok(Mode::Strict),
            other => Err(Malformed::Mode(other)),
        }
    }
    /// Reads the magic and the oldest and newest version that a peer speaks. The magic is checked first, so
    /// that a peer of another protocol is recognized in any case.
    pub(super) fn versions(&mut self) -> Result<(u16, u16), Malformed> {
        if self.u64()? != HELLO_MAGIC {
            return Err(Malformed::Magic);
        }
        Ok((self.u16()?, self.u16()?))
    }
}
