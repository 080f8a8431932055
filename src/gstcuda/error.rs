//! Errors of GStreamer's CUDA library and of the driver beneath it.

use std::fmt;
use std::io;

use cuframes::cuda;

#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The driver refused a call or is missing.
    Driver(cuda::Error),
    /// GStreamer's CUDA library can't be used.
    NoLibrary { problem: String },
    /// GStreamer's CUDA library refused a call.
    Call { function: &'static str },
    /// Caps, memory or pixels don't fit together.
    Mismatch { problem: String },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Driver(e) => e.fmt(f),
            Self::NoLibrary { problem } => write!(
                f,
                "GStreamer's CUDA library can't be used ({problem}): frames in GPU memory need libgstcuda of GStreamer 1.24 or later (Debian and Ubuntu: libgstreamer-plugins-bad1.0-0)"
            ),
            Self::Call { function } => write!(
                f,
                "{function} failed: see what GStreamer's log says about it (GST_DEBUG=cuda*:5)"
            ),
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

    /// On a machine with a GPU the same call succeeds.
    #[test]
    fn missing_library_is_a_sentence() {
        gst::init().unwrap();
        let Err(e) = GstCuda::get() else { return };
        let text = e.to_string();
        assert!(text.contains(": ") && !text.contains('\n'), "{text}");
        if let Error::NoLibrary { .. } = e {
            assert!(text.contains("libgstcuda") && text.contains("1.24"), "{text}");
        }
    }
}
