// SPDX-License-Identifier: LGPL-2.1-or-later
//! Finds the socket of a publisher and connects to it.

use super::runtime_dir::{SHARED, Unusable, address, candidates, inspect, is_named, socket_path};
use super::socket::{Socket, new_socket};
use crate::error::{Context, Error, Result, is_exhausted};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::socket::connect;
use nix::unistd::{AccessFlags, access, getuid};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// Result of [`try_connect`].
#[derive(Debug)]
pub enum Attempt {
    /// Connected to the publisher.
    Connected(Socket),
    /// A publisher exists, but its queue of new connections is full at the moment.
    QueueFull,
    /// No publisher has the key.
    NotFound,
}

/// Connects to the publisher of a key, if there is one in a candidate directory.
///
/// # Errors
/// Only problems that waiting does not solve: [`Error::RuntimeDir`] if this user may not connect, or a
/// directory or the publisher in it cannot be trusted; [`Error::System`] if the process has no file
/// descriptors or memory left.
pub fn try_connect(explicit: Option<&Path>, key: &str) -> Result<Attempt> {
    let named = is_named(explicit);
    let dirs = candidates(explicit);
    let (mut refused, mut queue_full) = (None, false);
    for (n, dir) in dirs.iter().enumerate() {
        let last = n + 1 == dirs.len();
        let problem = |problem: String| Error::RuntimeDir { path: dir.clone(), problem };
        let info = match inspect(dir, named || dir == Path::new(SHARED)) {
            Ok(info) => info,
            // This process lacks resources; the directory may be usable.
            Err(Unusable::Absent(e)) if is_exhausted(&e) => {
                return Err(Error::System { what: "open the runtime directory", source: e });
            }
            Err(Unusable::Absent(_)) => continue,
            // As for a publisher, only a problem of the last candidate counts: this user's publishers
            // would use that one.
            Err(Unusable::Problem(_)) if !last => continue,
            Err(Unusable::Problem(text)) => {
                refused = refused.or(Some(problem(text)));
                continue;
            }
        };
        if !named && access(dir, AccessFlags::X_OK).is_err() {
            continue;
        }
        let fd = new_socket().context("create a socket")?;
        match connect(fd.as_raw_fd(), &address(&socket_path(dir, key))?) {
            Ok(()) => {
                let socket = Socket::new(fd);
                let uid = socket.peer().context("identify the publisher's process")?.uid();
                // In a directory that all users can write to, trust only publishers of users that could
                // replace this user's files anyway.
                if info.public && ![0, getuid().as_raw(), info.owner].contains(&uid) {
                    refused = refused.or(Some(problem(format!(
                        "is writable by all users, and '{key}' is published by another user there (uid {uid})"
                    ))));
                    continue;
                }
                return Ok(Attempt::Connected(socket));
            }
            Err(Errno::EACCES) => {
                let text = format!("does not let this user connect to '{key}'");
                refused = refused.or(Some(problem(text)));
            }
            Err(Errno::EAGAIN) => queue_full = true,
            // There is no socket, or one that an earlier publisher left behind.
            Err(_) => {}
        }
    }
    match refused {
        Some(error) => Err(error),
        None if queue_full => Ok(Attempt::QueueFull),
        None => Ok(Attempt::NotFound),
    }
}

/// Watches the candidate directories for publishers that start or exit.
#[derive(Debug)]
pub struct Watch {
    inotify: Option<Inotify>,
    /// All directories exist and are watched. Otherwise poll as well.
    pub complete: bool,
}

impl Watch {
    /// Watches for publishers that start.
    pub fn new(dirs: &[PathBuf]) -> Self {
        Self::with(dirs, AddWatchFlags::IN_MOVED_TO)
    }

    /// Watches for publishers that start or exit. A publisher that is killed removes no file, but its lock
    /// file is closed.
    pub fn coming_and_going(dirs: &[PathBuf]) -> Self {
        use AddWatchFlags as Flags;
        Self::with(dirs, Flags::IN_MOVED_TO | Flags::IN_DELETE | Flags::IN_CLOSE_WRITE)
    }

    fn with(dirs: &[PathBuf], events: AddWatchFlags) -> Self {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let inotify = Inotify::init(flags).ok();
        let complete = inotify.as_ref().is_some_and(|i| {
            let watched = |d: &&PathBuf| i.add_watch(*d, events).is_ok();
            dirs.iter().filter(watched).count() == dirs.len()
        });
        Self { inotify, complete }
    }

    /// Returns an fd that is readable after a change; `None` if the process has no fd left for it.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(|i| i.as_fd())
    }

    /// Discards all changes so far, so that the fd is not readable until the next one.
    pub fn drain(&self) {
        if let Some(i) = &self.inotify {
            while i.read_events().is_ok_and(|events| !events.is_empty()) {}
        }
    }
}
