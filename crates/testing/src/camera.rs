// SPDX-License-Identifier: LGPL-2.1-or-later
//! The simulated camera, `examples/camera`.

use nix::sys::signal::Signal;

use crate::program::group_command;
use crate::{ChildGroup, built};

/// A simulated camera that ends with its scope.
#[derive(Debug)]
pub struct Camera {
    process: ChildGroup,
    /// Where it serves its stream, by RTSP.
    pub url: String,
}

impl Camera {
    /// Starts a camera with these options, which spaces separate, on a free port unless they name one.
    #[track_caller]
    pub fn start(options: &str) -> Self {
        let options: Vec<_> = options.split_whitespace().collect();
        Self::start_many(1, &options).remove(0)
    }

    /// Starts so many cameras at a time.
    #[track_caller]
    pub fn start_many<S: AsRef<std::ffi::OsStr>>(count: usize, options: &[S]) -> Vec<Self> {
        let start = |_| {
            let mut camera = group_command(built("camera"));
            ChildGroup::spawn_server(camera.args(["--port", "0"]).args(options))
        };
        let all: Vec<_> = (0..count).map(start).collect();
        let ready = |mut process: ChildGroup| Self { url: process.read_ready(), process };
        all.into_iter().map(ready).collect()
    }

    /// Sends a signal: SIGUSR1 closes all connections, SIGUSR2 changes the size of the picture.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }
}
