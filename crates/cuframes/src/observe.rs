//! What is published on this host, and how it is doing: for tools, without taking a subscriber's place.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::protocol::discovery::{Attempt, try_connect};
use crate::protocol::message::{Message, VERSIONS};
use crate::protocol::runtime_dir::{candidates, check_key, fit};
use crate::protocol::socket::{Received, Socket};
use crate::protocol::status::{MAX_TRACKS, PublisherStatus};
use crate::sync::clock;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A publisher that accepted the connection has this long to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Subscribers that an answer may list.
const MAX_SUBSCRIBERS: usize = 65_536;

/// A key that somebody publishes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LiveKey {
    pub key: String,
    /// The runtime directory that it is in.
    pub dir: PathBuf,
}

/// The keys that are published now, in order; `runtime_dir` as in
/// [`SubscriberConfig`](crate::SubscriberConfig). What a publisher left behind is no key, and a
/// directory that can't be read or trusted has none. Asks no publisher anything.
pub fn keys(runtime_dir: Option<&Path>) -> Vec<LiveKey> {
    let mut keys: Vec<LiveKey> = Vec::new();
    for dir in fit(runtime_dir) {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(key) = name.to_str().and_then(|n| n.strip_suffix(".sock")) else { continue };
            // A subscriber finds a key in the first directory that has it.
            let known = keys.iter().any(|k| k.key == key);
            if !known && check_key(key).is_ok() && is_live(&dir.join(format!("{key}.lock"))) {
                keys.push(LiveKey { key: key.to_owned(), dir: dir.clone() });
            }
        }
    }
    keys.sort();
    keys
}

/// Whether the lock file is locked, which is what makes a key live.
fn is_live(lock: &Path) -> bool {
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(lock) {
        Ok(file) => file,
        // Who may not look here may be allowed to connect, and gets to know it then.
        Err(e) => return e.kind() == io::ErrorKind::PermissionDenied,
    };
    // SAFETY: all zeros is a valid flock: the whole file, from its start.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::F_WRLCK as i16;
    range.l_whence = libc::SEEK_SET as i16;
    let asked = fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut range));
    asked.is_ok() && range.l_type != libc::F_UNLCK as i16
}

/// Asks the publisher of a key what it is and how it does; `runtime_dir` as in
/// [`SubscriberConfig`](crate::SubscriberConfig). Takes no subscriber's place, and does not disturb
/// the stream. A publisher looks at itself 20 times a second at most.
///
/// ```no_run
/// for live in cuframes::keys(None) {
///     let status = cuframes::status(&live.key, Some(&live.dir))?;
///     println!("{}: {}, {} subscribers", live.key, status.caps, status.subscribers.len());
/// }
/// # Ok::<(), cuframes::Error>(())
/// ```
///
/// Errors: [`Error::NoPublisher`] if there is none now or it does not answer within 2 s,
/// [`Error::Refused`], [`Error::Protocol`], a bad key, a socket that this user may not write to.
pub fn status(key: &str, runtime_dir: Option<&Path>) -> Result<PublisherStatus> {
    check_key(key)?;
    let dirs = candidates(runtime_dir);
    let Attempt::Connected(connection) = try_connect(runtime_dir, key)? else {
        return Err(Error::NoPublisher { key: key.to_owned(), searched: dirs });
    };
    let gone = || Error::NoPublisher { key: key.to_owned(), searched: dirs.clone() };
    let deadline = clock::now() + ANSWER_TIMEOUT;
    let mut whole: Option<PublisherStatus> = None;
    let mut from = 0;
    loop {
        let (part, next) = ask(key, &connection, from, deadline)?.ok_or_else(gone)?;
        match &mut whole {
            None => whole = Some(part),
            Some(whole) => {
                whole.tracks.extend(part.tracks);
                whole.subscribers.extend(part.subscribers);
                if whole.tracks.len() > MAX_TRACKS || whole.subscribers.len() > MAX_SUBSCRIBERS {
                    return Err(protocol(key, "its answer has no end".into()));
                }
            }
        }
        if next == 0 {
            break;
        }
        if next <= from {
            return Err(protocol(key, "its answer goes round in circles".into()));
        }
        from = next;
    }
    let mut status = whole.expect("there was an answer");
    // The socket knows who it is in the terms of this process.
    if let Ok(peer) = connection.peer() {
        (status.pid, status.uid) = (peer.pid(), peer.uid());
    }
    Ok(status)
}

fn protocol(key: &str, problem: String) -> Error {
    Error::Protocol { key: key.to_owned(), problem }
}

/// One question, one answer; `None` if none came.
fn ask(
    key: &str,
    connection: &Socket,
    from: u64,
    deadline: Duration,
) -> Result<Option<(PublisherStatus, u64)>> {
    let question = Message::StatusRequest { versions: (*VERSIONS.start(), *VERSIONS.end()), from };
    if connection.send(&question, &[]).is_err() {
        return Ok(None);
    }
    loop {
        let left = deadline.saturating_sub(clock::now());
        if left.is_zero() {
            return Ok(None);
        }
        let mut fds = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
        // Rounded up, so that nothing is polled for in circles.
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut fds, timeout);
        return match connection.receive(0) {
            Ok(Received::Nothing) => continue,
            Ok(Received::Closed) | Err(_) => Ok(None),
            Ok(Received::Malformed(e)) => Err(protocol(key, e.to_string())),
            Ok(Received::Message(Message::Status { version, next, status }, _))
                if VERSIONS.contains(&version) =>
            {
                Ok(Some((*status, next)))
            }
            Ok(Received::Message(Message::Refused { code, text }, _)) => {
                Err(Error::Refused { key: key.to_owned(), code, text })
            }
            Ok(Received::Message(..)) => Err(protocol(key, "its answer is no STATUS".into())),
        };
    }
}
