// SPDX-License-Identifier: LGPL-2.1-or-later
//! The error type of this crate. Its texts say what failed and what to do.

use std::io;
use std::path::PathBuf;

use crate::types::refusal::RefusalReason;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

/// Error of a publisher or subscriber.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The key is invalid, see [`check_key`](crate::check_key).
    Key {
        /// The key.
        key: String,
        /// The rule that it breaks, as the predicate of a sentence.
        problem: &'static str,
    },
    /// Another publisher has the key.
    Busy {
        /// The key.
        key: String,
        /// The other publisher, as far as it is known.
        owner: String,
    },
    /// The runtime directory cannot be used.
    RuntimeDir {
        /// The directory.
        path: PathBuf,
        /// Why not, as the predicate of a sentence.
        problem: String,
    },
    /// The publisher refused or evicted the subscriber, or exited.
    Refused {
        /// The key.
        key: String,
        /// Why.
        reason: RefusalReason,
        /// The reason as a sentence.
        text: String,
    },
    /// The peer broke the protocol.
    Protocol {
        /// The key.
        key: String,
        /// How, as a sentence.
        problem: String,
    },
    /// No publisher of the key started within the timeout.
    NoPublisher {
        /// The key.
        key: String,
        /// The directories that were searched.
        searched: Vec<PathBuf>,
    },
    /// The [`Interrupt`](crate::Interrupt) was set.
    Interrupted,
    /// A value of the configuration is invalid.
    InvalidConfig {
        /// The value, as the subject of a sentence.
        what: &'static str,
        /// Why, as the predicate of a sentence.
        problem: String,
    },
    /// The GPU that has the frames, or its driver, failed.
    Device(Box<dyn std::error::Error + Send + Sync>),
    /// The operating system refused a request.
    System {
        /// The action that failed.
        what: &'static str,
        /// The error of the system.
        source: io::Error,
    },
}

impl Error {
    /// Returns whether another attempt can succeed later, without a change of configuration: the publisher
    /// refused for a reason that may pass ([`Full`](RefusalReason::Full), [`Closing`](RefusalReason::Closing),
    /// [`NoMemory`](RefusalReason::NoMemory), [`Slow`](RefusalReason::Slow),
    /// [`Stalled`](RefusalReason::Stalled)), or the system has no file descriptors or memory left.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused { reason, .. } => reason.is_transient(),
            Self::System { source, .. } => is_exhausted(source),
            _ => false,
        }
    }
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
            Self::InvalidConfig { what, problem } => write!(f, "{what} {problem}"),
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

/// Returns what to do about an error of the system.
fn advice(source: &io::Error) -> &'static str {
    use nix::errno::Errno::{self, EAGAIN, EMFILE, ENFILE, ENOMEM, ENOSPC};
    match Errno::from_raw(source.raw_os_error().unwrap_or(0)) {
        EMFILE => "raise this process's limit of open files (ulimit -n)",
        ENFILE => "raise the system's limit of open files (fs.file-max)",
        ENOMEM | ENOSPC => {
            "free memory, or lower max-subscribers, max-frames-per-subscriber or packet-buffer-bytes of the publisher"
        }
        EAGAIN => "raise this user's limit of processes (ulimit -u)",
        _ => "run cuframes doctor to check this system",
    }
}

/// Returns whether the system had no file descriptor or memory left, which may pass.
pub(crate) fn is_exhausted(e: &io::Error) -> bool {
    use nix::errno::Errno::{EMFILE, ENFILE, ENOBUFS, ENOMEM, ETOOMANYREFS};
    [EMFILE, ENFILE, ENOBUFS, ENOMEM, ETOOMANYREFS]
        .iter()
        .any(|n| e.raw_os_error() == Some(*n as i32))
}

/// Adds the action that failed to an error of the system.
pub(crate) trait Context<T> {
    /// Names the action, as the completion of "Can't …".
    fn context(self, what: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|e| Error::System { what, source: e.into() })
    }
}

/// Result with the [`Error`] of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<crate::cuda::Error> for Error {
    fn from(e: crate::cuda::Error) -> Self {
        Self::Device(Box::new(e))
    }
}
