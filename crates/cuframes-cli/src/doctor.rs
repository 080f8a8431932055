// SPDX-License-Identifier: LGPL-2.1-or-later
//! `cuframes doctor`: checks what this system needs to share frames between processes, one line each.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cuframes::cuda::Device;
use cuframes::runtime_dirs;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{AccessFlags, access, geteuid};

use crate::{Options, format, poll, print, sanitize};

/// The result of a check. The text describes the finding and how to fix it.
enum Finding {
    Good(String),
    /// Some uses need this, others work without it.
    Note(String),
    /// All uses need this.
    Bad(String),
}
use Finding::{Bad, Good, Note};

/// A check of the system.
enum Check {
    /// Has one finding about this subject.
    One(&'static str, fn(&Options) -> Finding),
    /// Has any number of findings, each with its subject.
    Many(fn(&Options) -> Vec<(String, Finding)>),
}
use Check::{Many, One};

/// All checks, in the order in which they run.
const CHECKS: [Check; 8] = [
    One("kernel", |_| kernel()),
    One("shared memory", |_| sealed_memfd()),
    One("waiting", |_| futex_waitv()),
    Many(runtime_directories),
    One("publishing", publishing),
    Many(|_| gstreamer()),
    Many(|_| gpus()),
    Many(publishers),
];

/// Runs all checks and prints their findings. Returns whether none is bad.
pub(crate) fn run(options: &Options) -> io::Result<bool> {
    let mut all_good = true;
    for check in &CHECKS {
        let findings = match check {
            One(subject, check) => vec![((*subject).to_owned(), check(options))],
            Many(check) => check(options),
        };
        for (subject, finding) in findings {
            let (mark, text) = match finding {
                Good(text) => ("ok  ", text),
                Note(text) => ("note", text),
                Bad(text) => {
                    all_good = false;
                    ("BAD ", text)
                }
            };
            print(&format!("{mark}  {subject}: {}\n", sanitize(&text)))?;
        }
    }
    Ok(all_good)
}

fn kernel() -> Finding {
    match nix::sys::utsname::uname() {
        Err(e) => Note(format!("the version is unknown ({e})")),
        Ok(name) => Good(format!("{} {}", name.sysname().display(), name.release().display())),
    }
}

/// Checks the seals of a publisher's memory. They keep subscribers from writing to it.
fn sealed_memfd() -> Finding {
    // Missing in nix. Since Linux 5.1.
    const F_SEAL_FUTURE_WRITE: i32 = 0x10;
    let memfd =
        memfd_create("cuframes-doctor", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING);
    let sealed = memfd.and_then(|fd| {
        let seals = SealFlag::F_SEAL_GROW | SealFlag::from_bits_retain(F_SEAL_FUTURE_WRITE);
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))
    });
    match sealed {
        Ok(_) => Good("memfds can be created and sealed".into()),
        Err(e) => Bad(format!(
            "memfds can't be created or sealed ({e}): use Linux 5.1 or newer, and allow memfd_create in seccomp filters"
        )),
    }
}

fn futex_waitv() -> Finding {
    let (null, zero) = (std::ptr::null::<libc::c_void>(), 0);
    // SAFETY: without futexes to wait for, the kernel reads no memory and returns an error at once.
    let result = unsafe { libc::syscall(libc::SYS_futex_waitv, null, zero, zero, null, zero) };
    match Errno::result(result) {
        Err(Errno::EINVAL) | Ok(_) => Good("futex_waitv is available".into()),
        Err(e) => Note(format!(
            "futex_waitv is unavailable ({e}), so a waiting subscriber polls 50 times a second: use Linux 5.16 or newer, and allow futex_waitv in seccomp filters"
        )),
    }
}

fn directories(options: &Options) -> Vec<PathBuf> {
    runtime_dirs(options.runtime_dir.as_deref())
}

/// Checks each directory that is searched for keys.
fn runtime_directories(options: &Options) -> Vec<(String, Finding)> {
    let dirs = directories(options);
    dirs.iter()
        .map(|dir| (format!("runtime directory {}", dir.display()), directory(dir)))
        .collect()
}

/// Checks that a publisher of this user has a directory for its socket.
fn publishing(options: &Options) -> Finding {
    let dirs = directories(options);
    if let Some(dir) = dirs.iter().find(|dir| matches!(directory(dir), Good(_))) {
        return Good(format!("publishers of this user use {}", dir.display()));
    }
    match dirs.last() {
        Some(last) if !last.exists() && can_create(last) => {
            Good(format!("publishers of this user create {}", last.display()))
        }
        _ => Bad(
            "this user can't write to any runtime directory: make one of them writable, or set another one with the property runtime-dir or the environment variable CUFRAMES_RUNTIME_DIR"
                .into(),
        ),
    }
}

/// Checks owner and permissions of a runtime directory. It is good if this user can publish there.
fn directory(dir: &Path) -> Finding {
    let meta = match fs::metadata(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Note("does not exist".into()),
        Err(e) => return Note(format!("can't be examined ({e})")),
        Ok(meta) if !meta.is_dir() => return Bad("is not a directory: remove it".into()),
        Ok(meta) => meta,
    };
    let (mode, uid, gid) = (meta.mode() & 0o7777, meta.uid(), meta.gid());
    let text = format!("mode {mode:04o}, uid {uid}, gid {gid}");
    // Any user can create this name in /tmp. A directory that was set explicitly is trusted.
    let fallback = Path::new("/tmp").join(format!("cuframes-{}", geteuid()));
    if dir == fallback && (uid != geteuid().as_raw() || mode & 0o022 != 0) {
        return Bad(format!("{text}: another user owns it or can write to it: remove it"));
    }
    if access(dir, AccessFlags::R_OK | AccessFlags::X_OK).is_err() {
        return Note(format!("{text}; this user has no access to it and sees no keys there"));
    }
    match access(dir, AccessFlags::W_OK) {
        Ok(()) => Good(text),
        Err(_) => Note(format!("{text}; this user can subscribe there, but not publish")),
    }
}

/// Returns whether this user can create the directory in its nearest existing parent.
fn can_create(dir: &Path) -> bool {
    let parent = dir.ancestors().skip(1).find(|d| d.exists());
    parent.is_some_and(|d| access(d, AccessFlags::W_OK | AccessFlags::X_OK).is_ok())
}

/// Checks GStreamer, the plugin, and frames in GPU memory.
fn gstreamer() -> Vec<(String, Finding)> {
    match gst_inspect(&["--version"]) {
        Err(text) => vec![("GStreamer".into(), Bad(text))],
        Ok(text) => vec![
            ("GStreamer".into(), gstreamer_version(&text)),
            ("plugin".into(), plugin()),
            ("frames in GPU memory".into(), cuda_frames()),
        ],
    }
}

/// Runs gst-inspect-1.0 and returns its output, or an error text. The command does not link GStreamer, so
/// that it also runs, and reports the problem, where GStreamer is missing or broken.
fn gst_inspect(args: &[&str]) -> Result<String, String> {
    match Command::new("gst-inspect-1.0").args(args).output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(e) => Err(format!(
            "gst-inspect-1.0 can't be run ({e}): install the tools of GStreamer (Debian and Ubuntu: gstreamer1.0-tools)"
        )),
    }
}

/// Checks the output of `gst-inspect-1.0 --version`.
fn gstreamer_version(text: &str) -> Finding {
    let version = text.lines().find_map(|line| line.strip_prefix("GStreamer "));
    let Some(version) = version else {
        return Note("gst-inspect-1.0 does not state its version".into());
    };
    let mut numbers = version.split('.').map(|n| n.parse().unwrap_or(0));
    match (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) {
        (1, 24..) => Good(format!("version {version}")),
        (1, 22..) => Good(format!("version {version}; frames in GPU memory need 1.24 or later")),
        _ => Bad(format!("version {version}: update it to 1.22 or later")),
    }
}

/// Checks that GStreamer finds the plugin, and that its version is this command's.
fn plugin() -> Finding {
    let Ok(text) = gst_inspect(&["--plugin", "cuframes"]) else {
        return Bad(
            "GStreamer does not find it: run make install, or set GST_PLUGIN_PATH to the directory that contains libgstcuframes.so; gst-inspect-1.0 -b lists plugins that could not be loaded"
                .into(),
        );
    };
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.trim_start().strip_prefix(name));
        value.unwrap_or_default().trim().to_owned()
    };
    let (version, file, own) = (field("Version "), field("Filename "), env!("CARGO_PKG_VERSION"));
    // A build appends its commit after a hyphen.
    if version.split('-').next() == Some(own) {
        Good(format!("version {version}, {file}"))
    } else {
        Bad(format!(
            "version {version}, {file}, differs from this command's ({own}): install both again"
        ))
    }
}

/// Checks the caps of the sink. They contain CUDA memory exactly if libgstcuda and the driver are usable.
fn cuda_frames() -> Finding {
    match gst_inspect(&["cuframessink"]) {
        Ok(text) if text.contains("memory:CUDAMemory") => Good("can be published".into()),
        _ => Note(
            "can't be published here: they need an NVIDIA driver and libgstcuda of GStreamer 1.24 or later (Debian and Ubuntu: libgstreamer-plugins-bad1.0-0); frames in host memory need neither"
                .into(),
        ),
    }
}

/// Checks each GPU, or notes that there is none.
fn gpus() -> Vec<(String, Finding)> {
    let findings = match Device::all() {
        Err(e) => vec![Note(format!("{e} (frames in host memory need none)"))],
        Ok(devices) if devices.is_empty() => {
            vec![Note("none was found; frames in host memory need none".into())]
        }
        Ok(devices) => devices.iter().map(gpu).collect(),
    };
    findings.into_iter().map(|finding| ("GPU".into(), finding)).collect()
}

/// Checks that memory of the GPU can be shared, and that its streams can signal complete frames.
fn gpu(device: &Device) -> Finding {
    let name = device.name().unwrap_or_else(|e| e.to_string());
    let cuda = device.driver_version();
    let text = format!(
        "{} {name}, driver for CUDA {}.{}",
        device.ordinal(),
        cuda / 1000,
        cuda % 1000 / 10
    );
    if !device.can_export_fds() {
        return Note(format!(
            "{text}; it can't export memory as file descriptors, so its frames can't be shared (a limit of WSL and of some vGPUs)"
        ));
    }
    if !device.can_write_values() {
        return Note(format!(
            "{text}; it has no stream memory operations, so the CPU waits for each frame: update the driver to 515 or later"
        ));
    }
    Good(format!("{text}; it can share memory (VMM), and its streams can write frame numbers"))
}

/// Checks that the publisher of each live key responds.
fn publishers(options: &Options) -> Vec<(String, Finding)> {
    let check = |snapshot: poll::Snapshot| {
        let finding = match snapshot.status {
            Ok(s) => {
                Good(format!("the publisher responds ({}, pid {})", s.name, format::pid(s.pid)))
            }
            Err(e) => Bad(e.to_string()),
        };
        (format!("key {}", snapshot.key.key), finding)
    };
    poll::poll_all(options).into_iter().map(check).collect()
}
