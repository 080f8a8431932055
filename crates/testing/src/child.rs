// SPDX-License-Identifier: LGPL-2.1-or-later
//! Processes that are the test's own program, which runs one test `child` that plays a role.
//!
//! Parent and child exchange lines. A module that starts children has this test:
//!
//! ```text
//! #[test]
//! fn child() {
//!     let Some((role, dir)) = testing::role() else { return };
//!     …
//! }
//! ```

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::until;

const ROLE: &str = "CUFRAMES_TEST_ROLE";
const DIR: &str = "CUFRAMES_TEST_DIR";

/// A process that plays a role. It is killed with its parent, and when this is dropped.
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    input: ChildStdin,
    /// `None` once a thread reads it.
    output: Option<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts the test `child` of a module, which [`module_path!`] names.
    pub fn start(module: &str, role: &str, dir: &Path) -> Self {
        Self::spawn(&mut Self::command(module, role, dir))
    }

    /// Returns the command that [`start`](Self::start) runs, for changes of its environment.
    pub fn command(module: &str, role: &str, dir: &Path) -> Command {
        // The names of tests lack the first part of the path, which is the program's.
        let test = match module.split_once("::") {
            Some((_, module)) => format!("{module}::child"),
            None => "child".to_owned(),
        };
        let program: PathBuf = match crate::launcher() {
            // The launcher runs this program through a loader, which current_exe would be.
            Some(_) => std::env::args_os().next().unwrap().into(),
            // Unlike its path, which a user without rights may not be able to reach.
            None => "/proc/self/exe".into(),
        };
        let mut command = crate::launched(program);
        command
            .args(["--exact", &test, "--include-ignored", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(DIR, dir);
        command
    }

    /// Starts what [`command`](Self::command) returned.
    pub fn spawn(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = process.stdin.take().unwrap();
        let output = process.stdout.take().map(BufReader::new);
        Self { process, input, output }
    }

    /// Returns the process id.
    pub fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    /// Returns the next line that the child [reports](report).
    #[track_caller]
    pub fn read_line(&mut self) -> String {
        let output = self.output.as_mut().expect("no thread reads it");
        read_report(output).expect("the child ended")
    }

    /// Returns the next line as numbers, which spaces separate.
    #[track_caller]
    pub fn read_numbers(&mut self) -> Vec<u64> {
        self.read_line().split(' ').map(|n| n.parse().unwrap()).collect()
    }

    /// Hands all further lines to `receive`, in a thread of its own.
    pub fn read_in_thread(&mut self, mut receive: impl FnMut(&str) + Send + 'static) {
        let mut output = self.output.take().expect("no other thread reads it");
        std::thread::spawn(move || {
            while let Some(line) = read_report(&mut output) {
                receive(&line);
            }
        });
    }

    /// Sends a line. Returns false if the child has ended.
    pub fn send_line(&mut self, line: &str) -> bool {
        writeln!(self.input, "{line}").is_ok()
    }

    /// Ends the child's [`wait_for_parent`].
    pub fn resume(&mut self) {
        assert!(self.send_line(""), "the child ended");
    }

    /// Lets the child come to its end, and checks that it succeeds.
    pub fn finish(mut self) {
        // A child that waits for nothing may have ended.
        self.send_line("");
        self.wait();
    }

    /// Waits for the end of the child, and checks that it succeeds.
    #[track_caller]
    pub fn wait(self) {
        let status = self.status();
        assert!(status.success(), "{status}");
    }

    /// Waits for the end of the child, and returns how it ended.
    pub fn status(mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }

    /// Returns whether the child has ended.
    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        // The child was not waited for, so that the pid is still its own.
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Kills the child as the kernel's OOM killer does, and waits for its end.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.process.wait().unwrap();
    }

    /// Stops the child with SIGSTOP, and waits until it has stopped.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        let stat = format!("/proc/{}/stat", self.pid());
        until(|| {
            let stat = std::fs::read_to_string(&stat).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('T')
        });
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the next report; `None` at the end. The rest of the output is the test harness's.
fn read_report(output: &mut impl BufRead) -> Option<String> {
    for line in output.lines().map_while(Result::ok) {
        if let Some((_, text)) = line.split_once('@') {
            return Some(text.trim_end().to_owned());
        }
    }
    None
}

/// Sends a line from the child to its parent.
pub fn report(text: impl std::fmt::Display) {
    println!("@{text}");
}

/// Waits until the parent [resumes](Child::resume) this child.
pub fn wait_for_parent() {
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// Returns the role of this process and its directory; `None` in the process that runs the tests.
pub fn role() -> Option<(String, PathBuf)> {
    let role = std::env::var(ROLE).ok()?;
    exit_with_parent(Signal::SIGKILL).unwrap();
    Some((role, std::env::var_os(DIR).unwrap().into()))
}

/// Has the kernel send a signal to this process when its parent ends, so that a test that was killed
/// leaves no process behind. Async-signal-safe.
///
/// # Errors
///
/// None that is known: the signal is valid.
pub fn exit_with_parent(signal: Signal) -> std::io::Result<()> {
    nix::sys::prctl::set_pdeathsig(signal).map_err(Into::into)
}
