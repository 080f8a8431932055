// SPDX-License-Identifier: LGPL-2.1-or-later
//! Errors of GStreamer's CUDA library and of the driver beneath it.

use std::fmt;
use std::io;

use cuframes::cuda;

/// Error of an operation on CUDA frames. Its text says what failed and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Error {
    /// The driver is missing or refused a call.
    Driver(cuda::Error),
    /// GStreamer's CUDA library can't be used.
    NoLibrary { problem: String },
    /// GStreamer's CUDA library refused a call.
    Call { function: &'static str },
    /// Caps, memory or pixels don't belong together.
    Mismatch { problem: String },
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Returns the error of a call to the library that failed.
pub(super) fn failed<T>(function: &'static str) -> Result<T> {
    Err(Error::Call { function })
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Driver(e) => e.fmt(f),
            Self::NoLibrary { problem } => write!(
                f,
                "GStreamer's CUDA library can't be used ({problem}): frames in GPU memory need libgstcuda of GStreamer 1.24 or later (Debian and Ubuntu: libgstreamer-plugins-bad1.0-0)"
            ),
            Self::Call { function } => {
                write!(f, "{function} failed: run with GST_DEBUG=cuda*:5 to see the reason")
            }
            Self::Mismatch { problem } => f.write_str(problem),
        }
    }
}

impl std::error::Error for Error {}

impl From<cuda::Error> for Error {
    fn from(e: cuda::Error) -> Self {
        Self::Driver(e)
    }
}

impl From<Error> for io::Error {
    fn from(e: Error) -> Self {
        match e {
            Error::Driver(e) => e.into(),
            e @ Error::NoLibrary { .. } => Self::new(io::ErrorKind::Unsupported, e),
            e => Self::other(e),
        }
    }
}

impl From<Error> for cuframes::Error {
    fn from(e: Error) -> Self {
        Self::Device(Box::new(e))
    }
}

#[cfg(test)]
mod tests {
    use super::Error;
    use crate::gstcuda::GstCuda;

    /// The call succeeds on a machine with a GPU and returns an error elsewhere.
    #[test]
    fn missing_library_has_advice() {
        gst::init().unwrap();
        let Err(e) = GstCuda::get() else { return };
        let text = e.to_string();
        assert!(text.contains(": ") && !text.contains('\n'), "{text}");
        if let Error::NoLibrary { .. } = e {
            assert!(text.contains("libgstcuda") && text.contains("1.24"), "{text}");
        }
    }
}
