//! What can go wrong, in sentences that say what to do.

use std::io;
use std::path::PathBuf;

use crate::types::code::RefusalReason;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The key breaks the rules for keys.
    Key { key: String, problem: &'static str },
    /// Another publisher has the key.
    Busy { key: String, owner: String },
    /// The runtime directory can't be used.
    RuntimeDir { path: PathBuf, problem: String },
    /// The publisher sent the subscriber away, or this side refused what it sent.
    Refused { key: String, code: RefusalReason, text: String },
    /// The peer broke the protocol.
    Protocol { key: String, problem: String },
    /// No publisher came within the time given.
    NoPublisher { key: String, searched: Vec<PathBuf> },
    /// A wait was ended by [`crate::Interrupt`].
    Interrupted,
    /// A number is out of its range.
    Value { what: &'static str, problem: String },
    /// The device that has the frames, or what it is reached by, refused.
    Device(Box<dyn std::error::Error + Send + Sync>),
    /// The operating system refused.
    System { what: &'static str, source: io::Error },
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key { key, problem } => write!(
                f,
                "The key '{key}' {problem}: use 1 to 63 of the characters A-Z a-z 0-9 _ . - and no dot at the start, such as key=cam1"
            ),
            Self::Busy { key, owner } => write!(
                f,
                "The key '{key}' is already published by {owner}: stop that publisher or choose another key"
            ),
            Self::RuntimeDir { path, problem } => write!(
                f,
                "The runtime directory {} {problem}: make it usable, or name another one with the property runtime-dir or the environment variable CUFRAMES_RUNTIME_DIR",
                path.display()
            ),
            Self::Refused { key, text, .. } => {
                write!(f, "The publisher of '{key}' refused: {text}")
            }
            Self::Protocol { key, problem } => write!(
                f,
                "The publisher of '{key}' broke the protocol ({problem}): run the same version of cuframes on both sides"
            ),
            Self::NoPublisher { key, searched } => {
                write!(f, "No publisher of '{key}' in")?;
                for path in searched {
                    write!(f, " {}", path.display())?;
                    if access(path, AccessFlags::X_OK) == Err(Errno::EACCES) {
                        f.write_str(" (which this user may not enter)")?;
                    }
                }
                f.write_str(
                    ": start one with cuframessink, under the same key and runtime directory",
                )
            }
            Self::Interrupted => f.write_str("The wait was interrupted"),
            Self::Value { what, problem } => write!(f, "{what} {problem}"),
            Self::Device(e) => write!(f, "{e}"),
            Self::System { what, source } => {
                write!(f, "Can't {what} ({source}): {}", advice(source))
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System { source, .. } => Some(source),
            Self::Device(e) => e.source(),
            _ => None,
        }
    }
}

/// What to do when the system refused something that it usually does not.
fn advice(source: &io::Error) -> &'static str {
    use nix::errno::Errno::{self, EAGAIN, EMFILE, ENFILE, ENOMEM, ENOSPC};
    match Errno::from_raw(source.raw_os_error().unwrap_or(0)) {
        EMFILE => "raise this process's limit of open files (ulimit -n)",
        ENFILE => "raise the system's limit of open files (fs.file-max)",
        ENOMEM | ENOSPC => {
            "free memory, or lower max-subscribers, max-frames-per-subscriber or packet-buffer-bytes of the publisher"
        }
        EAGAIN => "raise this user's limit of processes (ulimit -u)",
        _ => "cuframes doctor tells what this system lacks",
    }
}

/// Whether the system had no fd or memory left, which may pass.
pub fn is_exhausted(e: &io::Error) -> bool {
    use nix::errno::Errno::{EMFILE, ENFILE, ENOMEM};
    [EMFILE, ENFILE, ENOMEM].iter().any(|n| e.raw_os_error() == Some(*n as i32))
}

/// Says what was tried when the system refused it.
pub(crate) trait Context<T> {
    fn context(self, what: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|e| Error::System { what, source: e.into() })
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<crate::cuda::Error> for Error {
    fn from(e: crate::cuda::Error) -> Self {
        Self::Device(Box::new(e))
    }
}
