//! The socket and the lock of a key.

use crate::error::{Context, Error, Result};
use crate::protocol::runtime_dir::*;
use crate::protocol::socket::new_socket;
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

/// Who may connect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// Permissions of the socket: who may write to it may connect.
    pub mode: u32,
    /// The socket's group, by name or number; `None` for the publisher's.
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

/// A key that this process publishes: the lock, and the socket that listens.
///
/// The lock is the truth. It is an open-file-description lock, which the kernel releases when the
/// process ends in whatever way; a socket without a locked lock file is a leftover and is replaced.
#[derive(Debug)]
pub struct Endpoint {
    pub listener: OwnedFd,
    socket: PathBuf,
    lock: PathBuf,
    locked: File,
    /// A process that was forked off has this, too, and is not the one that owns the key.
    process: u32,
}

impl Endpoint {
    /// Takes the key. `name` is what others are told when they want it too.
    ///
    /// Errors: the key is bad or taken, the directory can't be used, the group does not exist or this
    /// user is not in it.
    pub fn open(
        runtime_dir: Option<&Path>,
        key: &str,
        name: &str,
        who: &SocketAccess,
    ) -> Result<Self> {
        check_key(key)?;
        let group = who.gid()?;
        let dir = choose(runtime_dir)?;
        let unusable = |problem: String| Error::RuntimeDir { path: dir.clone(), problem };
        let lock = dir.join(format!("{key}.lock"));
        let mut locked = match take_lock(&lock) {
            Ok(file) => file,
            Err(Taken::By(owner)) => return Err(Error::Busy { key: key.to_owned(), owner }),
            Err(Taken::Io(e)) if e.kind() == io::ErrorKind::PermissionDenied && lock.exists() => {
                return Err(not_ours(&dir, &lock, key));
            }
            Err(Taken::Io(e)) => {
                return Err(unusable(format!("does not let its lock file be opened ({e})")));
            }
            Err(Taken::Odd(what)) => {
                let problem = format!("has {what} in place of the lock file '{key}.lock'");
                return Err(unusable(problem));
            }
        };
        locked
            .set_len(0)
            .and_then(|()| write!(locked, "{} {name}", std::process::id()))
            .map_err(|e| unusable(format!("does not let its lock file be written ({e})")))?;

        // The socket gets its name when it is ready for connections: who sees it can connect.
        let socket = socket_path(&dir, key);
        let unready = dir.join(format!(".{key}.new"));
        let listener = new_socket().context("make a socket")?;
        let _ = fs::remove_file(&unready);
        bind(listener.as_raw_fd(), &address(&unready)?)
            .map_err(|e| unusable(format!("does not take a socket ({e})")))?;
        let ready = give_access(&unready, who, group).and_then(|()| {
            let backlog = Backlog::new(64).expect("64 is a backlog");
            listen(&listener, backlog)
                .map_err(io::Error::from)
                .and_then(|()| fs::rename(&unready, &socket))
                .map_err(|e| unusable(format!("does not take a socket ({e})")))
        });
        if let Err(e) = ready {
            let _ = fs::remove_file(&unready);
            return Err(e);
        }
        Ok(Self { listener, socket, lock, locked, process: std::process::id() })
    }
}

/// Sets group and permissions of a socket that nobody can connect to yet. Who may write to the directory
/// could have put a link in its place, which is not followed.
fn give_access(socket: &Path, who: &SocketAccess, group: Option<Gid>) -> Result<()> {
    if group.is_some() {
        fchownat(AT_FDCWD, socket, None, group, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|e| {
            Error::InvalidConfig {
                what: "The socket's group",
                problem: format!(
                    "can't be '{}' ({e}): make the publisher's user a member of that group",
                    who.group.as_deref().unwrap_or_default()
                ),
            }
        })?;
    }
    let mode = Mode::from_bits_truncate(who.mode);
    fchmodat(AT_FDCWD, socket, mode, FchmodatFlags::NoFollowSymlink)
        .context("set the permissions of the socket")
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        // While the lock is held nobody else touches these; whoever waits for the lock
        // notices that its file is gone.
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(&self.lock);
        // To close them is not enough where a process was forked off, which has them open still.
        let _ = fcntl(self.locked.as_fd(), FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)));
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

enum Taken {
    By(String),
    /// The name is that of something else.
    Odd(&'static str),
    Io(io::Error),
}

fn whole_file(lock: i32) -> libc::flock {
    // SAFETY: all zeros is a valid flock: the whole file, from its start.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = lock as i16;
    range.l_whence = libc::SEEK_SET as i16;
    range
}

fn take_lock(path: &Path) -> Result<File, Taken> {
    loop {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            // For its owner alone: who can open it could lock it, too, and keep the key from its owner.
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path);
        let mut file =
            opened.map_err(|e| match Errno::from_raw(e.raw_os_error().unwrap_or(0)) {
                Errno::ELOOP => Taken::Odd("a symbolic link"),
                Errno::EISDIR => Taken::Odd("a directory"),
                _ => Taken::Io(e),
            })?;
        let opened = file.metadata().map_err(Taken::Io)?;
        // It is going to be written to: not to some other file that somebody linked here.
        if !opened.is_file() || opened.nlink() > 1 {
            return Err(Taken::Odd("something else"));
        }
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => {
                let mut owner = String::new();
                let _ = file.read_to_string(&mut owner);
                return Err(Taken::By(match owner.split_once(' ') {
                    Some((pid, name)) => format!("'{name}' (pid {pid})"),
                    None => "another process".to_owned(),
                }));
            }
            Err(e) => return Err(Taken::Io(e.into())),
        }
        // The last owner may have removed the file between our open and our lock.
        let same =
            fs::metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (opened.dev(), opened.ino()));
        if same {
            return Ok(file);
        }
    }
}

/// Why the lock file of another user can't be had. That it can't be opened says nothing of whether it is
/// locked; that somebody listens does.
fn not_ours(dir: &Path, lock: &Path, key: &str) -> Error {
    let owner = fs::symlink_metadata(lock).map_or_else(|_| "?".into(), |m| m.uid().to_string());
    let listens = || {
        let (fd, address) = (new_socket().ok()?, address(&socket_path(dir, key)).ok()?);
        let connected = connect(fd.as_raw_fd(), &address);
        Some(!matches!(connected, Err(Errno::ECONNREFUSED | Errno::ENOENT)))
    };
    if listens().unwrap_or(true) {
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
