// SPDX-License-Identifier: LGPL-2.1-or-later
//! Errors of the NVIDIA driver, each with advice on what to do about it.

use std::fmt;
use std::io;

use super::driver::MIN_VERSION;

/// Error of a CUDA operation. Its text says what failed and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The driver's library can't be opened.
    NoDriver {
        /// Message of the dynamic loader.
        problem: String,
    },
    /// The driver is older than the oldest one that this crate supports.
    OldDriver {
        /// CUDA version of the driver: 11020 is CUDA 11.2.
        version: i32,
    },
    /// A library lacks a function.
    NoFunction {
        /// File name of the library.
        library: String,
        /// Symbol of the function.
        function: String,
    },
    /// No visible GPU matches the request.
    NoDevice {
        /// The GPU that was asked for.
        wanted: String,
        /// The GPUs that this process sees.
        present: Vec<String>,
    },
    /// The GPU, or the driver on this system, lacks a capability.
    Unsupported {
        /// Name of the GPU.
        device: String,
        /// The missing capability; completes the sentence "The GPU can't …".
        what: &'static str,
    },
    /// A call to the driver failed.
    Call {
        /// Name of the driver's function.
        function: &'static str,
        /// The `CUresult` of the call.
        code: u32,
        /// Name of the `CUresult`, such as `CUDA_ERROR_OUT_OF_MEMORY`.
        name: String,
    },
    /// The arguments of a call are out of range or don't belong together.
    InvalidArgument {
        /// A whole sentence.
        problem: String,
    },
}

/// Result of a CUDA operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns the driver's error number (`CUresult`) if a call to the driver failed.
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::Call { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// Returns advice for the driver errors that a user can do something about.
fn advice(code: u32) -> Option<&'static str> {
    Some(match code {
        2 => {
            "the GPU has no memory left: stop something that uses it, let one process have several cameras (each process takes some 500 MiB), or lower max-subscribers or max-frames-per-subscriber"
        }
        3 | 4 => {
            "the process is ending, or was forked after it had used the GPU: start another process instead of forking"
        }
        100 => {
            "no GPU is visible: in a container pass it in (--gpus all), and check CUDA_VISIBLE_DEVICES"
        }
        214 | 700 | 719 => {
            "the GPU reported a fault: see the kernel's log for Xid messages, and restart this process"
        }
        304 => {
            "the system has no file descriptors or address space left: raise the limits (ulimit -n, ulimit -v)"
        }
        802 => "the GPU fabric is not ready: start nvidia-fabricmanager",
        803 => {
            "the driver's library and kernel module have different versions: reboot, or reload the module"
        }
        804 => "this GPU does not support the compatibility package: update the driver itself",
        _ => return None,
    })
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDriver { problem } => write!(
                f,
                "The NVIDIA driver can't be used ({problem}): install it, or in a container pass the GPU in (--gpus all, with the capabilities compute and video)"
            ),
            Self::OldDriver { version } => write!(
                f,
                "The NVIDIA driver is too old (CUDA {}.{}): update it to version 470 (CUDA {}.{}) or later",
                version / 1000,
                version % 1000 / 10,
                MIN_VERSION / 1000,
                MIN_VERSION % 1000 / 10,
            ),
            Self::NoFunction { library, function } => {
                write!(f, "{library} has no function {function}: update it")
            }
            Self::NoDevice { wanted, present } if present.is_empty() => {
                write!(f, "There is no {wanted}, nor any other GPU: {}", advice(100).unwrap_or(""))
            }
            Self::NoDevice { wanted, present } => {
                write!(f, "There is no {wanted}: use one of {}", present.join(", "))
            }
            Self::Unsupported { device, what } => write!(f, "{device} can't {what}"),
            Self::Call { function, code, name } => {
                let advice = advice(*code)
                    .unwrap_or("run cuframes doctor, which checks the driver and the GPU");
                write!(f, "{function} failed with {name} ({code}): {advice}")
            }
            Self::InvalidArgument { problem } => f.write_str(problem),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(e: Error) -> Self {
        let kind = match &e {
            Error::Call { code: 2, .. } => io::ErrorKind::OutOfMemory,
            Error::InvalidArgument { .. } => io::ErrorKind::InvalidInput,
            Error::Call { .. } => io::ErrorKind::Other,
            _ => io::ErrorKind::Unsupported,
        };
        io::Error::new(kind, e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::driver::Driver;
    use crate::cuda::{Context, Device, Uuid};

    /// Checks that the text is one sentence with advice and contains `names`.
    fn assert_advice(e: &Error, names: &[&str]) {
        let text = e.to_string();
        assert!(text.contains(": ") && !text.contains('\n'), "{text}");
        for name in names {
            assert!(text.contains(name), "'{name}' in: {text}");
        }
    }

    #[test]
    fn missing_driver_has_advice() {
        let e = Driver::load("libcuda-that-is-not-there.so.1").err().unwrap();
        assert_advice(&e, &["libcuda-that-is-not-there.so.1", "install", "--gpus"]);
        assert_eq!(io::Error::from(e).kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn missing_function_has_advice() {
        // A library that exists and is not the driver.
        let e = Driver::load("libc.so.6").err().unwrap();
        assert_advice(&e, &["libc.so.6", "cuDriverGetVersion", "update"]);
    }

    #[test]
    fn errors_have_advice() {
        assert_advice(&Error::OldDriver { version: 11020 }, &["CUDA 11.2", "470", "CUDA 11.4"]);
        assert_advice(&Error::NoDevice { wanted: "GPU 3".into(), present: vec![] }, &["GPU 3"]);
        let name = "CUDA_ERROR_OUT_OF_MEMORY".to_owned();
        assert_advice(&Error::Call { function: "cuMemCreate", code: 2, name }, &["cuMemCreate"]);
    }

    /// The calls succeed on a machine with a GPU and return an error elsewhere.
    #[test]
    fn missing_gpu_is_an_error() {
        match Device::by_ordinal(0).and_then(|device| Context::primary(&device)) {
            Ok(context) => assert_ne!(context.device().uuid().unwrap(), Uuid::NONE),
            Err(e) => assert_advice(&e, &[]),
        }
    }
}
