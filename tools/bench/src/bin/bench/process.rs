// SPDX-License-Identifier: LGPL-2.1-or-later
//! Starts the processes of a system, and measures them from outside.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::Failure;
use crate::worker::{BEGIN, END, Task};

/// A process of this run. It is killed when this is dropped.
pub struct Process {
    child: Child,
    pub out: BufReader<ChildStdout>,
    input: Option<ChildStdin>,
}

impl Process {
    /// Starts this program again, in a role. With `trace`, strace writes its system calls there.
    pub fn role(task: &Task, trace: Option<&Path>) -> Result<Self, Failure> {
        // Not current_exe: with a launcher that is a loader.
        let own = std::env::args_os().next().ok_or("a program has a name")?;
        let mut command = match trace {
            Some(trace) => {
                let mut command = Command::new("strace");
                command.args(["-f", "-qq", "-e", "signal=none", "-o"]).arg(trace);
                let launched = testing::launched(own);
                command.arg(launched.get_program()).args(launched.get_args());
                command
            }
            None => testing::launched(own),
        };
        command.env("CUFRAMES_BENCH_ROLE", task.to_json());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let out = BufReader::new(child.stdout.take().ok_or("no output")?);
        Ok(Self { input: child.stdin.take(), out, child })
    }

    /// Lets the process continue.
    pub fn go(&mut self) -> Result<(), Failure> {
        Ok(self.input.as_mut().ok_or("no input")?.write_all(b"\n")?)
    }

    /// Kills the process, which cannot clean up.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Lets the process end. Returns whether it succeeds.
    pub fn end(&mut self) -> Result<bool, Failure> {
        self.input = None;
        let status = self.child.wait()?;
        if !status.success() {
            eprintln!("  a process ended badly: {status}");
        }
        Ok(status.success())
    }

    /// Returns its memory in MiB. Shared memory counts in proportion.
    pub fn memory(&self) -> Option<f64> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = std::fs::read_to_string(path).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("Pss:"))?;
        Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
    }

    /// Returns CPU time in µs and context switches of all its threads so far. A launcher executes the program
    /// in its own process.
    pub fn used(&self) -> (f64, f64) {
        let mut sum = (0.0, 0.0);
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        for task in tasks.into_iter().flatten().flatten() {
            let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let number = |text: &str| text.trim().parse().unwrap_or(0.0);
            sum.0 += read("schedstat").split(' ').next().map_or(0.0, number) / 1e3;
            let status = read("status");
            let switches = status.lines().filter_map(|l| l.split_once("ctxt_switches:"));
            sum.1 += switches.map(|(_, n)| number(n)).sum::<f64>();
        }
        sum
    }

    /// Returns the size of its open memfds and files of shared memory, in MiB.
    pub fn shared_files(&self) -> Option<f64> {
        let mut seen = HashSet::new();
        let mut blocks = 0;
        for entry in std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).ok()?.flatten() {
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            let shared = ["/memfd:", "/dev/shm/"]
                .iter()
                .any(|p| target.as_os_str().as_encoded_bytes().starts_with(p.as_bytes()));
            if let Some(about) = shared.then(|| std::fs::metadata(entry.path()).ok()).flatten()
                && seen.insert((about.dev(), about.ino()))
            {
                blocks += about.blocks();
            }
        }
        Some(blocks as f64 * 512.0 / 1048576.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns a value of all GPUs, by the name that nvidia-smi has for it; `None` without GPUs or such a value.
fn gpus(name: &str) -> Option<Vec<f64>> {
    let mut smi = Command::new("nvidia-smi");
    let query = format!("--query-gpu={name}");
    smi.args([&query, "--format=csv,noheader,nounits"]).stderr(Stdio::null());
    let output = smi.output().ok().filter(|o| o.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().map(|l| l.trim().parse().ok()).collect()
}

/// Returns the memory in use of all GPUs, in MiB.
pub fn vram() -> Option<f64> {
    Some(gpus("memory.used")?.iter().sum())
}

/// Returns the utilization of the first GPU's decoders, in %.
pub fn decoder() -> Option<f64> {
    gpus("utilization.decoder")?.first().copied()
}

pub fn can_trace() -> bool {
    let mut strace = Command::new("strace");
    strace.args(["-qq", "-o", "/dev/null", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
    strace.status().is_ok_and(|s| s.success())
}

/// Counts each system call in the part of a trace that counts.
pub fn calls(trace: &Path) -> Result<BTreeMap<String, u64>, Failure> {
    let text = String::from_utf8_lossy(&std::fs::read(trace)?).into_owned();
    let mut calls = BTreeMap::new();
    let counted = text.lines().skip_while(|l| !l.contains(BEGIN)).skip(1);
    for line in counted.take_while(|l| !l.contains(END)) {
        // "PID name(arguments) = result". The second half of an interrupted call is "<... name".
        let call = line.split_once(' ').and_then(|(_, rest)| rest.trim_start().split_once('('));
        if let Some((name, arguments)) = call.filter(|(name, _)| !name.contains(' ')) {
            let operation = arguments.split(", ").nth(1).filter(|_| name == "futex");
            // An older strace prints the number of the call only.
            let name = if name == "syscall_0x1c1" { "futex_waitv" } else { name };
            let name = operation.map_or(name.to_owned(), |o| o.replace("_PRIVATE", " (private)"));
            *calls.entry(name).or_default() += 1;
        }
    }
    Ok(calls)
}
