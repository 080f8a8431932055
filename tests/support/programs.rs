//! What tests of programs share: an environment in which they find the plugin, and an end with the test.

// Each test that includes this file uses a part of it.
#![allow(dead_code)]

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// An example that cargo built.
pub fn example(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(2).unwrap().join("examples").join(name)
}

/// A program that meets others in this runtime directory, in a process group that ends with the test.
pub fn command(runtime_dir: &Path, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env("CUFRAMES_RUNTIME_DIR", runtime_dir)
        // Where cargo leaves the plugin for tests: among the test programs.
        .env("GST_PLUGIN_PATH", std::env::current_exe().unwrap().parent().unwrap())
        .env("GST_REGISTRY", std::env::temp_dir().join("cuframes-test-registry.bin"))
        .process_group(0)
        .stdin(Stdio::null());
    // SAFETY: prctl is async-signal-safe.
    unsafe {
        command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).map_err(Into::into))
    };
    command
}

pub fn start(command: &mut Command) -> Running {
    Running(command.spawn().unwrap())
}

/// A process group that ends with its scope.
pub struct Running(pub Child);

impl Running {
    pub fn signal(&self, signal: Signal) {
        killpg(Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn success(mut self) {
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.0.id() as i32);
        let _ = killpg(group, Signal::SIGTERM);
        let _ = killpg(group, Signal::SIGCONT);
        let _ = self.0.wait();
        // What the leader left behind.
        let _ = killpg(group, Signal::SIGKILL);
    }
}

/// What a program that has to succeed says.
#[track_caller]
pub fn output(command: &mut Command) -> String {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}: {text}", output.status);
    text
}

/// Says so where it is seen: the harness keeps what a test that passes prints.
pub fn skip(what: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

/// Whether there is such a program.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
