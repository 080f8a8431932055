//! How a subscriber finds a publisher.

use super::runtime_dir::*;
use super::socket::{Socket, new_socket};
use crate::error::{Context, Error, Result, is_exhausted};
use nix::errno::Errno;
use nix::sys::inotify::AddWatchFlags;
use nix::sys::socket::connect;
use nix::unistd::{AccessFlags, access, getuid};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

/// What came of looking for a publisher.
pub enum Attempt {
    Connected(Socket),
    /// There is one, but its queue is full for the moment.
    Crowded,
    Nobody,
}

/// Connects to the publisher of a key, if one of the candidates has it.
///
/// Errors: only what waiting will not mend.
pub fn try_connect(explicit: Option<&Path>, key: &str) -> Result<Attempt> {
    let named = named(explicit).is_some();
    let dirs = candidates(explicit);
    let (mut refused, mut crowded) = (None, false);
    for (n, dir) in dirs.iter().enumerate() {
        let last = n + 1 == dirs.len();
        let problem = |problem: String| Error::RuntimeDir { path: dir.clone(), problem };
        let place = match look_at(dir, named || dir == Path::new(SHARED)) {
            Ok(place) => place,
            // That says nothing of the directory.
            Err(Unfit::Absent(e)) if is_exhausted(&e) => {
                return Err(Error::System { what: "look at the runtime directory", source: e });
            }
            Err(Unfit::Absent(_)) => continue,
            // As for a publisher: it matters in the place where this user's publishers would be.
            Err(Unfit::Problem(_)) if !last => continue,
            Err(Unfit::Problem(text)) => {
                refused = refused.or(Some(problem(text)));
                continue;
            }
        };
        if !named && access(dir, AccessFlags::X_OK).is_err() {
            continue;
        }
        let fd = new_socket().context("make a socket")?;
        match connect(fd.as_raw_fd(), &address(&socket_path(dir, key))?) {
            Ok(()) => {
                let connection = Socket::new(fd);
                let uid = connection.peer().context("ask who publishes")?.uid();
                // Where anybody can put a socket, only those are believed that could take ours away anyway.
                if place.public && ![0, getuid().as_raw(), place.owner].contains(&uid) {
                    refused = refused.or(Some(problem(format!(
                        "can be written to by everybody, and '{key}' is published by another user there (uid {uid})"
                    ))));
                    continue;
                }
                return Ok(Attempt::Connected(connection));
            }
            Err(Errno::EACCES) => {
                let text = format!("does not let this user connect to '{key}'");
                refused = refused.or(Some(problem(text)));
            }
            Err(Errno::EAGAIN) => crowded = true,
            // Not there, or a leftover.
            Err(_) => {}
        }
    }
    match refused {
        Some(error) => Err(error),
        None if crowded => Ok(Attempt::Crowded),
        None => Ok(Attempt::Nobody),
    }
}

/// Notices that something in one of the directories changed; a directory that is missing is not seen.
pub struct Watch {
    inotify: Option<nix::sys::inotify::Inotify>,
    /// All directories exist and are watched.
    pub complete: bool,
}

impl Watch {
    /// For those who wait for a publisher.
    pub fn new(dirs: &[PathBuf]) -> Self {
        Self::with(dirs, AddWatchFlags::IN_MOVED_TO)
    }

    /// Notices publishers that go, too: one that is killed closes its lock file and removes nothing.
    pub fn coming_and_going(dirs: &[PathBuf]) -> Self {
        use AddWatchFlags as Flags;
        Self::with(dirs, Flags::IN_MOVED_TO | Flags::IN_DELETE | Flags::IN_CLOSE_WRITE)
    }

    fn with(dirs: &[PathBuf], events: AddWatchFlags) -> Self {
        use nix::sys::inotify::{InitFlags, Inotify};
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let inotify = Inotify::init(flags).ok();
        let complete = inotify.as_ref().is_some_and(|i| {
            let watched = |d: &&PathBuf| i.add_watch(*d, events).is_ok();
            dirs.iter().filter(watched).count() == dirs.len()
        });
        Self { inotify, complete }
    }

    pub fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.inotify.as_ref().map(|i| i.as_fd())
    }

    /// Forgets what has been noticed.
    pub fn drain(&self) {
        if let Some(i) = &self.inotify {
            while i.read_events().is_ok_and(|events| !events.is_empty()) {}
        }
    }
}
