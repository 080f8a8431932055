// SPDX-License-Identifier: LGPL-2.1-or-later
//! The machine and the commit that figures belong to.

use std::process::Command;

use serde_json::{Value, json};

/// Describes the machine without its name.
pub fn machine() -> Value {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
    let virtual_machine = cpu.lines().any(|l| l.starts_with("flags") && l.contains(" hypervisor"));
    let gpu = Command::new("nvidia-smi")
        .args(["--query-gpu=name,driver_version", "--format=csv,noheader"])
        .output();
    let gpu = gpu.ok().filter(|o| o.status.success());
    json!({
        "kernel": kernel.trim(),
        "cpu": model.map(|m| m.1),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "virtual": virtual_machine,
        "gpu": gpu.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()),
    })
}

/// Returns `$CUFRAMES_COMMIT`, or else the commit of the source if git knows it.
pub fn commit() -> Option<String> {
    let git = Command::new("git").args(["describe", "--always", "--dirty"]).output().ok();
    let said = git
        .filter(|o| o.status.success())
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    std::env::var("CUFRAMES_COMMIT").ok().or(said)
}
