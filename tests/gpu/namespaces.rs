// SPDX-License-Identifier: LGPL-2.1-or-later
//! Subscribers in other namespaces.

use std::os::unix::process::CommandExt;
use std::process::Command;

use testing::{ChildGroup, TestDir, skip};

use crate::support::{every_frame, publish_camera};

/// The two namespaces share only a socket in a directory.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn frames_cross_namespaces() {
    let test = TestDir::slow("namespaces");
    let isolate = "--pid --ipc --mount --net --uts --fork --mount-proc --kill-child";
    let tried = Command::new("unshare").args(isolate.split(' ')).arg("true").status();
    if !tried.is_ok_and(|status| status.success()) {
        skip("this user may not make namespaces");
        return;
    }
    let file = test.dir.join("isolated.raw");
    let inner = test.command("gst-launch-1.0");
    let mut command = Command::new("unshare");
    command.args(isolate.split(' ')).arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["-q", "cuframessrc", "key=cam1", "mode=strict", "num-buffers=90", "!"]);
    command.args(["video/x-raw(memory:CUDAMemory)", "!", "cudadownload", "!"]);
    command.args(["video/x-raw,format=NV12", "!", "filesink"]);
    let location = format!("location={}", file.display());
    let isolated = ChildGroup::start(command.arg(location).process_group(0));
    let _running = publish_camera(&test, "--size 640x360 --gop 15", "h264");
    every_frame((isolated, file));
}
