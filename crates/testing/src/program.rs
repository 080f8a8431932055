// SPDX-License-Identifier: LGPL-2.1-or-later
//! Programs that tests run: those of this workspace, which cargo builds when it runs the test, and others.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::exit_with_parent;

/// The plugin, as a name for [`built`].
const PLUGIN: &str = "libgstcuframes.so";

/// Returns the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("this is crates/testing")
}

/// Returns the folder that cargo builds the running profile into, or `$CUFRAMES_BUILT` for a packed
/// build.
fn profile_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("CUFRAMES_BUILT") {
        return dir.into();
    }
    // With a launcher, current_exe is a loader.
    let program = match launcher() {
        Some(_) => std::env::args_os().next().unwrap().into(),
        None => std::env::current_exe().unwrap(),
    };
    let dir = program.parent().unwrap();
    let is_nested = dir.ends_with("deps") || dir.ends_with("examples");
    if is_nested { dir.parent().unwrap().to_owned() } else { dir.to_owned() }
}

/// Where a program of this workspace is, relative to the profile's folder, and the arguments that
/// build it.
fn target(name: &str) -> (PathBuf, Vec<&str>) {
    let example = Path::new("examples").join(name);
    match name {
        PLUGIN => (name.into(), vec!["-p", "gst-plugin-cuframes", "--lib"]),
        "cuframes" => (name.into(), vec!["-p", "cuframes-cli", "--bin", name]),
        "bench" | "bench-packets" => (name.into(), vec!["-p", "cuframes-bench", "--bin", name]),
        "plain" => (example, vec!["-p", "cuframes", "--example", name]),
        _ => (example, vec!["-p", "gst-plugin-cuframes", "--example", name]),
    }
}

/// Returns the path of a program of this workspace: `cuframes`, `bench`, or an example such as
/// `camera`.
///
/// When cargo runs the test, it builds the program first, once for each process, so that a test never
/// runs a stale one. Elsewhere the program has to be there.
///
/// # Panics
///
/// If the program cannot be built, or is not there.
pub fn built(name: &str) -> PathBuf {
    if let Some(cargo) = std::env::var_os("CARGO") {
        build(&cargo, name);
    }
    find(name).unwrap_or_else(|| {
        let path = profile_dir().join(target(name).0);
        panic!("{} is missing: build it first, or run this through cargo", path.display())
    })
}

/// Returns the path of a program of this workspace, if it was built. In a packed build it may be beside
/// the running program.
pub fn find(name: &str) -> Option<PathBuf> {
    let dir = profile_dir();
    [dir.join(target(name).0), dir.join(name)].into_iter().find(|path| path.exists())
}

fn build(cargo: &OsStr, name: &str) {
    static BUILT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if built.contains(name) {
        return;
    }
    let dir = profile_dir();
    let profile = match dir.file_name().and_then(OsStr::to_str) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let status = Command::new(cargo)
        .args(["build", "--locked", "--quiet", "--profile", profile])
        .args(target(name).1)
        .arg("--target-dir")
        .arg(dir.parent().unwrap())
        .current_dir(root())
        .stdin(Stdio::null())
        .status();
    assert!(status.is_ok_and(|s| s.success()), "cargo does not build {name}");
    built.insert(name.to_owned());
}

/// Returns the folder of the plugin, for `GST_PLUGIN_PATH`.
pub fn plugin_dir() -> PathBuf {
    let path = built(PLUGIN);
    let dir = path.parent().unwrap();
    // It has fewer folders for GStreamer to search.
    let deps = dir.join("deps");
    if deps.join(PLUGIN).exists() { deps } else { dir.to_owned() }
}

/// Returns the launcher that programs need on this host (`$ON_GPU`), if any.
pub fn launcher() -> Option<OsString> {
    std::env::var_os("ON_GPU")
}

/// Returns a command for a program, through the [`launcher`] if there is one.
pub fn launched(program: impl AsRef<OsStr>) -> Command {
    match launcher() {
        Some(launcher) => {
            let mut command = Command::new(launcher);
            command.arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// Returns a command for a program that finds the plugin and meets others in this runtime directory.
///
/// It gets a process group of its own and SIGTERM when the test ends, and reads nothing.
pub fn command(runtime_dir: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = group_command(program);
    command
        .env("CUFRAMES_RUNTIME_DIR", runtime_dir)
        .env("GST_PLUGIN_PATH", plugin_dir())
        .env("GST_REGISTRY", std::env::temp_dir().join("cuframes-test-registry.bin"));
    command
}

/// Returns a command for a program that needs no plugin of this workspace.
pub(crate) fn group_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = launched(program);
    command.process_group(0).stdin(Stdio::null());
    // SAFETY: the function is async-signal-safe.
    unsafe { command.pre_exec(|| exit_with_parent(Signal::SIGTERM)) };
    command
}

/// A process group that ends with its scope.
#[derive(Debug)]
pub struct ChildGroup {
    leader: std::process::Child,
}

impl ChildGroup {
    /// Starts a command that has a process group of its own: see [`command`].
    pub fn start(command: &mut Command) -> Self {
        Self { leader: command.spawn().unwrap() }
    }

    /// Starts a server that prints `ready URL`, and returns the URL as well.
    #[track_caller]
    pub fn start_server(command: &mut Command) -> (Self, String) {
        let mut server = Self::spawn_server(command);
        let url = server.read_ready();
        (server, url)
    }

    pub(crate) fn spawn_server(command: &mut Command) -> Self {
        // gst-rtsp-server 1.22 warns when clients of different transports meet.
        Self::start(command.env_remove("G_DEBUG").stdout(Stdio::piped()))
    }

    #[track_caller]
    pub(crate) fn read_ready(&mut self) -> String {
        let mut lines = self.stdout().lines();
        let first = lines.next().expect("the server reports that it is ready").unwrap();
        // Keeps reading, so that the server never blocks.
        std::thread::spawn(move || lines.for_each(drop));
        first.strip_prefix("ready ").expect(&first).to_owned()
    }

    /// Returns the output of a command that was given a pipe for it, once.
    pub fn stdout(&mut self) -> BufReader<ChildStdout> {
        BufReader::new(self.leader.stdout.take().expect("its output is a pipe"))
    }

    /// Returns the errors of a command that was given a pipe for them, once.
    pub fn stderr(&mut self) -> BufReader<std::process::ChildStderr> {
        BufReader::new(self.leader.stderr.take().expect("its errors go to a pipe"))
    }

    /// Returns the process id, which is that of the group.
    pub fn id(&self) -> u32 {
        self.leader.id()
    }

    /// Sends a signal to all processes of the group.
    pub fn signal(&self, signal: Signal) {
        killpg(Pid::from_raw(self.id() as i32), signal).unwrap();
    }

    /// Waits for the end, and checks that the command succeeds.
    #[track_caller]
    pub fn success(mut self) {
        let status = self.leader.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for ChildGroup {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.id() as i32);
        let _ = killpg(group, Signal::SIGTERM);
        let _ = killpg(group, Signal::SIGCONT);
        let _ = self.leader.wait();
        // Processes that the leader left behind.
        let _ = killpg(group, Signal::SIGKILL);
    }
}

/// Returns the output of a program, which has to succeed.
#[track_caller]
pub fn output(command: &mut Command) -> String {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}: {text}", output.status);
    text
}

/// Reports a test, or a part of one, that this machine cannot run.
pub fn skip(what: &str) {
    // Not through the macro: the harness hides what a test that passes prints.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

/// Returns whether the path has such a program.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
