// SPDX-License-Identifier: LGPL-2.1-or-later
//! Lists the keys that are published on this host, and asks publishers for their status, without subscribing.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::protocol::discovery::{Attempt, try_connect};
use crate::protocol::message::{Message, VERSIONS};
use crate::protocol::runtime_dir::{candidates, check_key, usable};
use crate::protocol::socket::{Received, Socket};
use crate::protocol::status::{MAX_TRACKS, PublisherStatus};
use crate::sync::clock;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a publisher that accepted the connection may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of subscribers in a status. It bounds the memory that a hostile publisher can make this
/// process use.
const MAX_SUBSCRIBERS: usize = 65_536;

/// A key that is published now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LiveKey {
    /// The key.
    pub key: String,
    /// Runtime directory of the publisher.
    pub dir: PathBuf,
}

/// Returns the keys that are published now, sorted. Searches `runtime_dir`, or
/// [`runtime_dirs(None)`](crate::runtime_dirs) if it is `None`.
///
/// Ignores files that a publisher left behind, and directories that cannot be read or trusted. Connects to no
/// publisher.
///
/// ```no_run
/// for live in cuframes::keys(None) {
///     println!("{} in {}", live.key, live.dir.display());
/// }
/// ```
pub fn keys(runtime_dir: Option<&Path>) -> Vec<LiveKey> {
    let mut keys: Vec<LiveKey> = Vec::new();
    for dir in usable(runtime_dir) {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(key) = name.to_str().and_then(|n| n.strip_suffix(".sock")) else { continue };
            // A subscriber connects to the publisher in the first directory that has the key.
            let known = keys.iter().any(|k| k.key == key);
            if !known && check_key(key).is_ok() && is_live(&dir.join(format!("{key}.lock"))) {
                keys.push(LiveKey { key: key.to_owned(), dir: dir.clone() });
            }
        }
    }
    keys.sort();
    keys
}

/// Returns whether the lock file is locked: the publisher of a key holds a lock on it.
fn is_live(lock: &Path) -> bool {
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(lock) {
        Ok(file) => file,
        // Without permission to read the file, this user may still be allowed to connect.
        Err(e) => return e.kind() == io::ErrorKind::PermissionDenied,
    };
    // SAFETY: all zeros is a valid flock, which covers the whole file.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::F_WRLCK as i16;
    range.l_whence = libc::SEEK_SET as i16;
    let asked = fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut range));
    asked.is_ok() && range.l_type != libc::F_UNLCK as i16
}

/// Asks the publisher of a key for its status. Searches `runtime_dir`, or
/// [`runtime_dirs(None)`](crate::runtime_dirs) if it is `None`.
///
/// The request does not count as a subscriber and does not disturb the stream. A publisher updates its status
/// at most 20 times per second.
///
/// ```no_run
/// for live in cuframes::keys(None) {
///     let status = cuframes::status(&live.key, Some(&live.dir))?;
///     println!("{}: {}, {} subscribers", live.key, status.caps, status.subscribers.len());
/// }
/// # Ok::<(), cuframes::Error>(())
/// ```
///
/// # Errors
/// - [`Error::NoPublisher`] if there is none, or it does not answer within 2 s.
/// - [`Error::Refused`] if the publisher refuses to answer.
/// - [`Error::Protocol`] if it broke the protocol.
/// - [`Error::Key`] if the key is invalid.
/// - [`Error::RuntimeDir`] if this user may not connect, or the directory cannot be trusted.
/// - [`Error::System`] if the process has no file descriptors or memory left.
pub fn status(key: &str, runtime_dir: Option<&Path>) -> Result<PublisherStatus> {
    check_key(key)?;
    let dirs = candidates(runtime_dir);
    let Attempt::Connected(connection) = try_connect(runtime_dir, key)? else {
        return Err(Error::NoPublisher { key: key.to_owned(), searched: dirs });
    };
    let gone = || Error::NoPublisher { key: key.to_owned(), searched: dirs.clone() };
    let deadline = clock::now() + ANSWER_TIMEOUT;
    let request = |from| request_part(key, &connection, from, deadline)?.ok_or_else(gone);
    let (mut status, mut next) = request(0)?;
    let mut from = 0;
    while next != 0 {
        if next <= from {
            return Err(protocol_error(key, "its answer continues with an earlier entry".into()));
        }
        from = next;
        let (part, after) = request(from)?;
        status.tracks.extend(part.tracks);
        status.subscribers.extend(part.subscribers);
        if status.tracks.len() > MAX_TRACKS || status.subscribers.len() > MAX_SUBSCRIBERS {
            return Err(protocol_error(key, "its answer has no end".into()));
        }
        next = after;
    }
    // The kernel reports process and user of the publisher in this process's namespaces.
    if let Ok(peer) = connection.peer() {
        (status.pid, status.uid) = (peer.pid(), peer.uid());
    }
    Ok(status)
}

fn protocol_error(key: &str, problem: String) -> Error {
    Error::Protocol { key: key.to_owned(), problem }
}

/// Requests the part of the status from entry `from` on. Returns it with the entry to request next (0 after
/// the last), or `None` if no answer arrived.
fn request_part(
    key: &str,
    connection: &Socket,
    from: u64,
    deadline: Duration,
) -> Result<Option<(PublisherStatus, u64)>> {
    let request = Message::StatusRequest { versions: (*VERSIONS.start(), *VERSIONS.end()), from };
    if connection.send(&request, &[]).is_err() {
        return Ok(None);
    }
    loop {
        let left = deadline.saturating_sub(clock::now());
        if left.is_zero() {
            return Ok(None);
        }
        let mut fds = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
        // Rounded up, so that the last millisecond does not become a loop of polls without timeout.
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut fds, timeout);
        return match connection.receive(0) {
            Ok(Received::Nothing) => continue,
            Ok(Received::Closed) | Err(_) => Ok(None),
            Ok(Received::Malformed(e)) => Err(protocol_error(key, e.to_string())),
            Ok(Received::Message(Message::Status { version, next, status }, _))
                if VERSIONS.contains(&version) =>
            {
                Ok(Some((*status, next)))
            }
            Ok(Received::Message(Message::Refused { reason, text }, _)) => {
                Err(Error::Refused { key: key.to_owned(), reason, text })
            }
            Ok(Received::Message(..)) => {
                Err(protocol_error(key, "its answer is not a STATUS message".into()))
            }
        };
    }
}
