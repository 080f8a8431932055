//! The GPU, through the NVIDIA driver and GStreamer's CUDA library.
//!
//! Both are opened when they are first needed. Where they are missing or too old, that is an [`Error`]
//! which says what to do, never a failure to load the plugin.

mod context;
#[doc(hidden)]
pub mod driver;
mod memory;
mod stream;

use std::fmt;
use std::io;

pub use context::{Context, Device, Uuid};
pub use memory::{
    Access, DeviceMemory, HostAccess, IpcMemory, RegisteredHost, VmmAllocation, VmmMapping,
};
pub use stream::{Address, Copy2d, Event, Stream};

/// A handle of 64 bytes by which another process opens memory or an event of this one.
pub type IpcHandle = [u8; 64];

#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The driver's library can't be opened.
    NoDriver { problem: String },
    /// The driver is older than what this crate is made for; versions as CUDA counts them (12000 is 12.0).
    OldDriver { version: i32 },
    /// A library lacks a function.
    NoFunction { library: String, function: String },
    /// There is no such GPU.
    NoDevice { wanted: String, present: Vec<String> },
    /// The GPU, or the driver on this system, can't do something.
    Unsupported { device: String, what: &'static str },
    /// The driver refused a call.
    Call { function: &'static str, code: u32, name: String },
    /// The caller's numbers or objects don't fit together.
    Value { problem: String },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The driver's number of what went wrong in a call to it.
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::Call { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// What helps against the errors of the driver that a person can do something about.
fn advice(code: u32) -> Option<&'static str> {
    Some(match code {
        2 => {
            "the GPU has no memory left: stop something that uses it, let one process have several cameras (each process takes some 500 MiB), or lower max-subscribers or max-frames-per-subscriber"
        }
        3 | 4 => {
            "the process is ending, or was forked after it had used the GPU: start another process instead of forking"
        }
        100 => {
            "no GPU is visible: in a container pass it in (--gpus all), and look at CUDA_VISIBLE_DEVICES"
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
                driver::MIN_VERSION / 1000,
                driver::MIN_VERSION % 1000 / 10,
            ),
            Self::NoFunction { library, function } => {
                write!(f, "{library} has no function {function}: update it")
            }
            Self::NoDevice { wanted, present } if present.is_empty() => {
                write!(f, "There is no {wanted}, nor any other GPU: {}", advice(100).unwrap_or(""))
            }
            Self::NoDevice { wanted, present } => {
                write!(f, "There is no {wanted}: take one of {}", present.join(", "))
            }
            Self::Unsupported { device, what } => write!(f, "{device} can't {what}"),
            Self::Call { function, code, name } => {
                let advice = advice(*code).unwrap_or("cuframes doctor looks at driver and GPU");
                write!(f, "{function} failed with {name} ({code}): {advice}")
            }
            Self::Value { problem } => f.write_str(problem),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(e: Error) -> Self {
        let kind = match &e {
            Error::Call { code: 2, .. } => io::ErrorKind::OutOfMemory,
            Error::Value { .. } => io::ErrorKind::InvalidInput,
            Error::Call { .. } => io::ErrorKind::Other,
            _ => io::ErrorKind::Unsupported,
        };
        io::Error::new(kind, e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One sentence for a person, with something that they can do.
    fn is_advice(e: &Error, names: &[&str]) {
        let text = e.to_string();
        assert!(text.contains(": ") && !text.contains('\n'), "{text}");
        for name in names {
            assert!(text.contains(name), "'{name}' in: {text}");
        }
    }

    #[test]
    fn a_missing_driver_is_a_sentence() {
        let e = driver::Driver::load("libcuda-that-is-not-there.so.1").err().unwrap();
        is_advice(&e, &["libcuda-that-is-not-there.so.1", "install", "--gpus"]);
        assert_eq!(io::Error::from(e).kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_missing_function_is_a_sentence() {
        // A library that is there and is no driver.
        let e = driver::Driver::load("libc.so.6").err().unwrap();
        is_advice(&e, &["libc.so.6", "cuDriverGetVersion", "update"]);
    }

    #[test]
    fn errors_say_what_to_do() {
        is_advice(&Error::OldDriver { version: 11020 }, &["CUDA 11.2", "470", "CUDA 11.4"]);
        is_advice(&Error::NoDevice { wanted: "GPU 3".into(), present: vec![] }, &["GPU 3"]);
        let name = "CUDA_ERROR_OUT_OF_MEMORY".to_owned();
        is_advice(&Error::Call { function: "cuMemCreate", code: 2, name }, &["cuMemCreate"]);
    }

    /// On a machine with a GPU the same calls succeed; on none of them may they panic.
    #[test]
    fn nothing_panics_without_a_gpu() {
        match Device::by_ordinal(0).and_then(|device| Context::primary(&device)) {
            Ok(context) => assert_ne!(context.device().uuid().unwrap(), Uuid::NONE),
            Err(e) => is_advice(&e, &[]),
        }
    }
}
