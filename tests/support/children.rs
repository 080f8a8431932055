//! Processes for tests. They are the test's own program: it runs the test `child` alone, which plays the
//! part that the environment names. They talk to their parent in lines.

// Each test that includes this file uses a part of it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use nix::libc;

use super::support::until;

const ROLE: &str = "CUFRAMES_TEST_ROLE";
const DIR: &str = "CUFRAMES_TEST_DIR";

/// A process that plays a part; it is killed with its parent, and when this is dropped.
pub struct Child {
    process: std::process::Child,
    input: ChildStdin,
    /// Until somebody else listens.
    output: Option<BufReader<ChildStdout>>,
}

impl Child {
    pub fn start(role: &str, dir: &Path) -> Self {
        let mut command = match std::env::var_os("ON_GPU") {
            // This program was started through a launcher, which current_exe would be.
            Some(launcher) => {
                let mut command = Command::new(launcher);
                command.arg(std::env::args_os().next().unwrap());
                command
            }
            None => Command::new(std::env::current_exe().unwrap()),
        };
        let mut process = command
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(DIR, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let output = process.stdout.take().map(BufReader::new);
        Self { process, input, output }
    }

    pub fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    /// The next thing that it says; the rest of its output is the test harness's.
    #[track_caller]
    pub fn hear(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let output = self.output.as_mut().expect("nobody else listens");
            assert!(output.read_line(&mut line).unwrap() > 0, "the child ended");
            if let Some((_, text)) = line.split_once('@') {
                return text.trim_end().to_owned();
            }
        }
    }

    /// Hands all that it says to `heard` from now on, in a thread of its own.
    pub fn overhear(&mut self, mut heard: impl FnMut(&str) + Send + 'static) {
        let output = self.output.take().expect("nobody else listens");
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, text)) = line.split_once('@') {
                    heard(text.trim_end());
                }
            }
        });
    }

    /// Says a line to it; false if it has ended.
    pub fn tell(&mut self, line: &str) -> bool {
        writeln!(self.input, "{line}").is_ok()
    }

    pub fn hear_numbers(&mut self) -> Vec<u64> {
        self.hear().split(' ').map(|n| n.parse().unwrap()).collect()
    }

    /// Ends the child's [`listen`].
    pub fn go_on(&mut self) {
        writeln!(self.input).unwrap();
    }

    /// Lets it come to its end, which has to be a good one.
    pub fn finish(mut self) {
        self.go_on();
        assert!(self.process.wait().unwrap().success());
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: kill touches no memory. The child was not waited for, so the pid is still its own.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    /// Waits for its end, which has to be a good one.
    pub fn end(mut self) {
        assert!(self.process.wait().unwrap().success());
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// As the kernel's OOM killer does it.
    pub fn kill(mut self) {
        self.signal(libc::SIGKILL);
        self.process.wait().unwrap();
    }

    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
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

/// Tells the parent.
pub fn say(text: impl std::fmt::Display) {
    println!("@{text}");
}

/// Waits for the parent.
pub fn listen() {
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// The part that this process is to play, and its directory; `None` in the process that runs the tests.
pub fn role() -> Option<(String, PathBuf)> {
    let role = std::env::var(ROLE).ok()?;
    die_with_parent();
    Some((role, std::env::var_os(DIR).unwrap().into()))
}

/// Nobody has to clean up after a test that was killed.
pub fn die_with_parent() {
    // SAFETY: this option takes a number.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}
