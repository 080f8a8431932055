// SPDX-License-Identifier: LGPL-2.1-or-later
//! The subscriber's process, as the publisher sees it.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use crate::report::Outcome;

/// First argument of the subscriber's process.
pub(crate) const ROLE: &str = "subscriber";

/// A running subscriber. Commands and answers are lines; an answer begins with `ok` or is an error.
pub(crate) struct Peer {
    process: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    pub(crate) fn start(program: &str, dir: &Path, key: &str) -> Outcome<Self> {
        let mut command = match std::env::var_os("ON_GPU") {
            Some(launcher) => {
                let mut command = Command::new(launcher);
                command.arg(program);
                command
            }
            None => Command::new(program),
        };
        command.arg(ROLE).arg(dir).arg(key).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let stdin = process.stdin.take().ok_or("no stdin")?;
        let stdout = BufReader::new(process.stdout.take().ok_or("no stdout")?).lines();
        Ok(Self { process, stdin, stdout })
    }

    /// Sends a command and returns the answer.
    pub(crate) fn request(&mut self, command: &str) -> Outcome {
        self.send(command)?;
        self.receive()
    }

    /// Sends a command.
    pub(crate) fn send(&mut self, command: &str) -> Outcome<()> {
        Ok(writeln!(self.stdin, "{command}")?)
    }

    /// Waits for an answer and returns its text.
    pub(crate) fn receive(&mut self) -> Outcome {
        let line = self.stdout.next().ok_or("the subscriber's process has exited")??;
        match line.split_once(' ') {
            Some(("ok", text)) => Ok(text.to_owned()),
            _ => Err(line.into()),
        }
    }

    /// Waits until the process exits.
    pub(crate) fn wait(&mut self) -> Outcome<ExitStatus> {
        Ok(self.process.wait()?)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
