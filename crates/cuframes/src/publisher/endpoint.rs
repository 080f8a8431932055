// SPDX-License-Identifier: LGPL-2.1-or-later
//! The listening socket and the lock file of a key.

use crate::error::{Context, Error, Result};
use crate::protocol::runtime_dir::*;
use crate::protocol::socket::new_socket;
use crate::sync::process::Owner;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, fcntl};
use nix::libc;
use nix::sys::socket::{Backlog, Shutdown, bind, connect, listen, shutdown};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{Gid, Group, fchownat};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Which processes may connect to a publisher.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// Permissions of the socket: a process that may write to it may connect. Only the low 9 bits count.
    pub mode: u32,
    /// Group of the socket, by name or number; `None` for the publisher's own.
    pub group: Option<String>,
}

impl SocketAccess {
    fn gid(&self) -> Result<Option<Gid>> {
        let Some(group) = &self.group else { return Ok(None) };
        let known = Group::from_name(group).ok().flatten().map(|g| g.gid);
        let found = known.or_else(|| group.parse().ok().map(Gid::from_raw));
        found.map(Some).ok_or_else(|| Error::InvalidConfig {
            what: "The socket's group",
            problem: format!("'{group}' does not exist: use a group of this host, or its number"),
        })
    }
}

/// A key that this process publishes: the lock and the listening socket.
///
/// The lock decides whether the key is taken. It is an open-file-description lock, which the kernel releases when the
/// process ends in any way. A socket without a locked lock file is left over and is replaced.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) listener: OwnedFd,
    socket: PathBuf,
    lock: PathBuf,
    locked: File,
    /// The process that owns the key. A forked process has a copy of this struct and does not own it.
    owner: Owner,
}

impl Endpoint {
    /// Locks the key and listens. Writes `name` into the lock file, for the error of other publishers of the key.
    ///
    /// # Errors
    /// The key is invalid or taken, the directory is unusable, the group does not exist, or this user is not a member
    /// of it.
    pub(super) fn open(
        runtime_dir: Option<&Path>,
        key: &str,
        name: &str,
        access: &SocketAccess,
    ) -> Result<Self> {
        check_key(key)?;
        let group = access.gid()?;
        let dir = choose(runtime_dir)?;
        let unusable = |problem: String| Error::RuntimeDir { path: dir.clone(), problem };
        let lock = dir.join(format!("{key}.lock"));
        let mut locked = match take_lock(&lock) {
            Ok(file) => file,
            Err(LockError::HeldBy(owner)) => {
                return Err(Error::Busy { key: key.to_owned(), owner });
            }
            Err(LockError::Io(e))
                if e.kind() == io::ErrorKind::PermissionDenied && lock.exists() =>
            {
                return Err(foreign_lock(&dir, &lock, key));
            }
            Err(LockError::Io(e)) => {
                return Err(unusable(format!("has a lock file that can't be opened ({e})")));
            }
            Err(LockError::NotAFile(what)) => {
                let problem = format!("has {what} in place of the lock file '{key}.lock'");
                return Err(unusable(problem));
            }
        };
        locked
            .set_len(0)
            .and_then(|()| write!(locked, "{} {name}", std::process::id()))
            .map_err(|e| unusable(format!("has a lock file that can't be written ({e})")))?;

        // The socket gets its final name when it accepts connections, so that every process that sees it can connect.
        // Between `bind` and `listen` it would refuse them, and between `bind` and `chmod` it would have the wrong mode.
        // The rename also replaces a left-over socket without a gap, and is one event for watchers.
        let socket = socket_path(&dir, key);
        let unready = dir.join(format!(".{key}.new"));
        let listener = new_socket().context("create a socket")?;
        let _ = fs::remove_file(&unready);
        bind(listener.as_raw_fd(), &address(&unready)?)
            .map_err(|e| unusable(format!("can't contain a socket ({e})")))?;
        let ready = give_access(&unready, access, group).and_then(|()| {
            let backlog = Backlog::new(64).expect("64 is a backlog");
            listen(&listener, backlog)
                .map_err(io::Error::from)
                .and_then(|()| fs::rename(&unready, &socket))
                .map_err(|e| unusable(format!("can't contain a socket ({e})")))
        });
        if let Err(e) = ready {
            let _ = fs::remove_file(&unready);
            return Err(e);
        }
        Ok(Self { listener, socket, lock, locked, owner: Owner::this_process() })
    }
}

/// Sets group and permissions of a socket before it accepts connections. Links are not followed: a process that may write
/// to the directory could have put one in the socket's place.
fn give_access(socket: &Path, access: &SocketAccess, group: Option<Gid>) -> Result<()> {
    if group.is_some() {
        fchownat(AT_FDCWD, socket, None, group, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|e| {
            Error::InvalidConfig {
                what: "The socket's group",
                problem: format!(
                    "can't be '{}' ({e}): make the publisher's user a member of that group",
                    access.group.as_deref().unwrap_or_default()
                ),
            }
        })?;
    }
    let mode = Mode::from_bits_truncate(access.mode);
    fchmodat(AT_FDCWD, socket, mode, FchmodatFlags::NoFollowSymlink)
        .context("set the permissions of the socket")
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if !self.owner.is_this_process() {
            return;
        }
        // While the lock is held, no other publisher touches these files. A process that obtains the lock afterwards
        // notices that the file was removed.
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(&self.lock);
        // Closing is insufficient if a forked process still has the fds open.
        let _ = fcntl(self.locked.as_fd(), FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)));
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

/// Why a lock file could not be locked.
enum LockError {
    /// This process has it.
    HeldBy(String),
    /// The name is that of something else than a file.
    NotAFile(&'static str),
    Io(io::Error),
}

fn whole_file(lock: i32) -> libc::flock {
    // SAFETY: all zeros are a valid `flock`, which describes the whole file.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = lock as i16;
    range.l_whence = libc::SEEK_SET as i16;
    range
}

fn take_lock(path: &Path) -> Result<File, LockError> {
    loop {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            // For the owner only: a process that can open the file could lock it and block the key.
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path);
        let mut file =
            opened.map_err(|e| match Errno::from_raw(e.raw_os_error().unwrap_or(0)) {
                Errno::ELOOP => LockError::NotAFile("a symbolic link"),
                Errno::EISDIR => LockError::NotAFile("a directory"),
                _ => LockError::Io(e),
            })?;
        let opened = file.metadata().map_err(LockError::Io)?;
        // The file is going to be written, so it must not be a link to another file.
        if !opened.is_file() || opened.nlink() > 1 {
            return Err(LockError::NotAFile("something else"));
        }
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => {
                let mut owner = String::new();
                let _ = file.read_to_string(&mut owner);
                return Err(LockError::HeldBy(match owner.split_once(' ') {
                    Some((pid, name)) => format!("'{name}' (pid {pid})"),
                    None => "another process".to_owned(),
                }));
            }
            Err(e) => return Err(LockError::Io(e.into())),
        }
        // The previous owner may have removed the file between `open` and `fcntl`.
        let same =
            fs::metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (opened.dev(), opened.ino()));
        if same {
            return Ok(file);
        }
    }
}

/// Returns the error for a lock file that belongs to another user and cannot be opened. Whether the key is taken is
/// decided by whether a process listens on the socket.
fn foreign_lock(dir: &Path, lock: &Path, key: &str) -> Error {
    let owner = fs::symlink_metadata(lock).map_or_else(|_| "?".into(), |m| m.uid().to_string());
    let is_listening = || {
        let (fd, address) = (new_socket().ok()?, address(&socket_path(dir, key)).ok()?);
        let connected = connect(fd.as_raw_fd(), &address);
        Some(!matches!(connected, Err(Errno::ECONNREFUSED | Errno::ENOENT)))
    };
    if is_listening().unwrap_or(true) {
        return Error::Busy { key: key.to_owned(), owner: format!("another user (uid {owner})") };
    }
    Error::RuntimeDir {
        path: dir.to_owned(),
        problem: format!(
            "has what a publisher of '{key}' left behind, which is another user's (uid {owner}): remove {} as that user, or choose another key",
            lock.display()
        ),
    }
}
