// SPDX-License-Identifier: LGPL-2.1-or-later
//! Resources of a process, and limits on them.

use std::fs::File;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Resources of this process, as `/proc` counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Open file descriptors.
    pub fds: usize,
    /// Mappings of memfds whose name starts with `cuframes`.
    pub mappings: usize,
    /// Threads.
    pub threads: usize,
}

impl Resources {
    /// Counts the resources of this process.
    pub fn now() -> Self {
        let count = |dir| std::fs::read_dir(dir).unwrap().count();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mappings = maps.lines().filter(|line| line.contains("/memfd:cuframes")).count();
        Self { fds: count("/proc/self/fd"), mappings, threads: count("/proc/self/task") }
    }

    /// Counts all but threads, for a process in which other libraries start and end some.
    pub fn without_threads() -> Self {
        Self { threads: 0, ..Self::now() }
    }
}

/// Limits a resource of this process to `most`, or to what the machine allows.
pub fn limit(resource: Resource, most: u64) {
    let (_, hard) = getrlimit(resource).unwrap();
    setrlimit(resource, most.min(hard), hard).unwrap();
}

/// A table of file descriptors without room for more, until this is dropped.
#[derive(Debug)]
pub struct FullTable(#[expect(dead_code, reason = "dropping them makes room")] Vec<File>);

impl FullTable {
    /// Leaves room for `more` descriptors.
    pub fn with_room_for(more: usize) -> Self {
        let mut files: Vec<File> = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            files.push(file);
        }
        assert!(files.len() >= more);
        files.truncate(files.len() - more);
        Self(files)
    }
}
