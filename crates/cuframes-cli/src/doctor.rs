//! `cuframes doctor`: what frames need to cross from process to process here, line by line.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use cuframes::cuda::Device;
use cuframes::runtime_dirs;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{AccessFlags, access, geteuid};

use crate::{Options, look, plain, print};

/// How one thing is.
enum Finding {
    Ok(String),
    /// Not needed by everybody.
    Note(String),
    /// Nothing works without.
    Bad(String),
}
use Finding::{Bad, Note, Ok as Good};

pub fn run(options: &Options) -> io::Result<bool> {
    let mut well = true;
    let mut tell = |what: &str, finding: Finding| {
        let (mark, text) = match finding {
            Good(text) => ("ok  ", text),
            Note(text) => ("note", text),
            Bad(text) => {
                well = false;
                ("BAD ", text)
            }
        };
        print(&format!("{mark}  {what}: {}\n", plain(&text)))
    };
    tell("kernel", kernel())?;
    tell("shared memory", memfd())?;
    tell("waiting", futex_waitv())?;
    for (what, finding) in directories(options) {
        tell(&what, finding)?;
    }
    match inspect(&["--version"]) {
        Err(text) => tell("GStreamer", Bad(text))?,
        Ok(text) => {
            tell("GStreamer", gstreamer(&text))?;
            tell("plugin", plugin())?;
            tell("frames in GPU memory", cuda_frames())?;
        }
    }
    for finding in gpus() {
        tell("GPU", finding)?;
    }
    for look in look::all(options) {
        let finding = match &look.status {
            Ok(s) => Good(format!("its publisher answers ({}, pid {})", s.name, look::pid(s.pid))),
            Err(e) => Bad(e.to_string()),
        };
        tell(&format!("key {}", look.key.key), finding)?;
    }
    Ok(well)
}

fn kernel() -> Finding {
    match nix::sys::utsname::uname() {
        Err(e) => Note(format!("its version is not known ({e})")),
        Ok(name) => Good(format!("{} {}", name.sysname().display(), name.release().display())),
    }
}

fn memfd() -> Finding {
    // Linux 5.1: what subscribers get can't be mapped for writing any more.
    const F_SEAL_FUTURE_WRITE: i32 = 0x10;
    let made = memfd_create("cuframes-doctor", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING);
    let sealed = made.and_then(|fd| {
        let seals = SealFlag::F_SEAL_GROW | SealFlag::from_bits_retain(F_SEAL_FUTURE_WRITE);
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))
    });
    match sealed {
        Ok(_) => Good("memfds can be made and sealed".into()),
        Err(e) => Bad(format!(
            "memfds can't be made or sealed ({e}): it takes Linux 5.1 or newer, and no filter (seccomp) that forbids memfd_create"
        )),
    }
}

fn futex_waitv() -> Finding {
    let (none, zero) = (std::ptr::null::<libc::c_void>(), 0);
    // SAFETY: with no futex to wait for, the kernel reads nothing and refuses at once.
    let result = unsafe { libc::syscall(libc::SYS_futex_waitv, none, zero, zero, none, zero) };
    match Errno::result(result) {
        Err(Errno::EINVAL) | Ok(_) => Good("futex_waitv is there".into()),
        Err(e) => Note(format!(
            "futex_waitv is not there ({e}), so a subscriber that waits looks up 50 times a second: it takes Linux 5.16 or newer, and no filter (seccomp) that forbids it"
        )),
    }
}

/// Each runtime directory, and whether there is one for publishers.
fn directories(options: &Options) -> Vec<(String, Finding)> {
    let mut usable = None;
    let mut all = Vec::new();
    let dirs = runtime_dirs(options.runtime_dir.as_deref());
    for dir in &dirs {
        let finding = directory(dir);
        if matches!(finding, Good(_)) && usable.is_none() {
            usable = Some(dir);
        }
        all.push((format!("runtime directory {}", dir.display()), finding));
    }
    let last = dirs.last().expect("there is always one");
    all.push((
        "publishing".into(),
        match usable {
            Some(dir) => Good(format!("a publisher of this user uses {}", dir.display())),
            None if !last.exists() && may_make(last) => {
                Good(format!("a publisher of this user makes {}", last.display()))
            }
            None => Bad(
                "this user can't write to any runtime directory: make one of them usable, or name another one with the property runtime-dir or the environment variable CUFRAMES_RUNTIME_DIR"
                    .into(),
            ),
        },
    ));
    all
}

fn directory(dir: &Path) -> Finding {
    let meta = match fs::metadata(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Note("is not there".into()),
        Err(e) => return Note(format!("can't be looked at ({e})")),
        Ok(meta) if !meta.is_dir() => return Bad("is no directory: remove it".into()),
        Ok(meta) => meta,
    };
    let (mode, uid, gid) = (meta.mode() & 0o7777, meta.uid(), meta.gid());
    let text = format!("mode {mode:04o}, uid {uid}, gid {gid}");
    // Anybody can make this name in /tmp; one that is given is the giver's business.
    let ours = Path::new("/tmp").join(format!("cuframes-{}", geteuid()));
    if dir == ours && (uid != geteuid().as_raw() || mode & 0o022 != 0) {
        return Bad(format!(
            "{text}: it belongs to somebody else, or others can write to it: remove it"
        ));
    }
    if access(dir, AccessFlags::R_OK | AccessFlags::X_OK).is_err() {
        return Note(format!("{text}; this user may not enter it, and sees no key there"));
    }
    match access(dir, AccessFlags::W_OK) {
        Ok(()) => Good(text),
        Err(_) => Note(format!("{text}; this user can subscribe there, but not publish")),
    }
}

/// Whether the directory can be made: its nearest parent that exists can be written to.
fn may_make(dir: &Path) -> bool {
    let parent = dir.ancestors().skip(1).find(|d| d.exists());
    parent.is_some_and(|d| access(d, AccessFlags::W_OK | AccessFlags::X_OK).is_ok())
}

/// Runs gst-inspect-1.0: this command does not link GStreamer, and reports what GStreamer itself finds.
fn inspect(args: &[&str]) -> Result<String, String> {
    match Command::new("gst-inspect-1.0").args(args).output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(e) => Err(format!(
            "gst-inspect-1.0 can't be run ({e}): install GStreamer's tools (Debian and Ubuntu: gstreamer1.0-tools)"
        )),
    }
}

/// Checks the output of `gst-inspect-1.0 --version`.
fn gstreamer(text: &str) -> Finding {
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

fn plugin() -> Finding {
    let Ok(text) = inspect(&["--plugin", "cuframes"]) else {
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
    // A build appends its commit.
    if version.split('-').next() == Some(own) {
        Good(format!("version {version}, {file}"))
    } else {
        Bad(format!(
            "version {version}, {file}, differs from this command's ({own}): install both again"
        ))
    }
}

/// The sink offers CUDA memory exactly where libgstcuda and the driver can be used.
fn cuda_frames() -> Finding {
    match inspect(&["cuframessink"]) {
        Ok(text) if text.contains("memory:CUDAMemory") => Good("can be published".into()),
        _ => Note(
            "can't be published here: they need an NVIDIA driver and libgstcuda of GStreamer 1.24 or later (Debian and Ubuntu: libgstreamer-plugins-bad1.0-0); frames in host memory need neither"
                .into(),
        ),
    }
}

fn gpus() -> Vec<Finding> {
    let devices = match Device::all() {
        Err(e) => return vec![Note(format!("{e} (frames in host memory need none)"))],
        Ok(devices) if devices.is_empty() => {
            return vec![Note("there is none; frames in host memory need none".into())];
        }
        Ok(devices) => devices,
    };
    devices.iter().map(device).collect()
}

fn device(device: &Device) -> Finding {
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
            "{text}; it can't export memory as file descriptors, so its frames can't be shared (not possible under WSL and on some vGPUs)"
        ));
    }
    if !device.can_write_values() {
        return Note(format!(
            "{text}; it has no stream memory operations, so the CPU waits for each frame: update the driver to 515 or later"
        ));
    }
    Good(format!("{text}; memory can be shared (VMM), streams can write numbers"))
}
