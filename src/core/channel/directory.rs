//! The runtime directory, and the only two things in it that have names: `<key>.sock` and `<key>.lock`.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::inotify::AddWatchFlags;
use nix::sys::socket::{Backlog, UnixAddr, bind, connect, listen};
use nix::unistd::{AccessFlags, access, getuid};

use super::socket::{Connection, new_socket};
use crate::core::error::{Context, Error, Result};

/// The environment variable that names the runtime directory.
pub const ENV: &str = "CUFRAMES_RUNTIME_DIR";

/// Checks a key: 1 to 63 of `A-Za-z0-9_.-`, no dot at the start.
pub fn check_key(key: &str) -> Result<()> {
    let problem = if key.is_empty() {
        "is empty"
    } else if key.len() > 63 {
        "is too long"
    } else if key.starts_with('.') {
        "starts with a dot"
    } else if !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
        "has a character that is not allowed"
    } else {
        return Ok(());
    };
    Err(Error::Key { key: key.to_owned(), problem })
}

/// Where publishers may be, best first: `explicit`, else the environment's, else the usual places.
pub fn candidates(explicit: Option<&Path>) -> Vec<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = explicit.map(Path::to_owned).or_else(|| set(ENV)) {
        return vec![dir];
    }
    let mut dirs = vec![PathBuf::from("/run/cuframes")];
    dirs.extend(set("XDG_RUNTIME_DIR").map(|dir| dir.join("cuframes")));
    dirs.push(PathBuf::from(format!("/tmp/cuframes-{}", getuid())));
    dirs
}

/// The directory that a publisher uses: the first candidate that it can write to, made if need be.
fn choose(explicit: Option<&Path>) -> Result<PathBuf> {
    let dirs = candidates(explicit);
    let (last, before) = dirs.split_last().expect("there is always one");
    for dir in before {
        // /run/cuframes is the administrator's to make, $XDG_RUNTIME_DIR/cuframes is ours.
        let ours = !dir.starts_with("/run/cuframes");
        if (dir.is_dir() || ours && make(dir).is_ok()) && access(dir, AccessFlags::W_OK).is_ok() {
            return Ok(dir.clone());
        }
    }
    let problem = |problem: String| Error::RuntimeDir { path: last.clone(), problem };
    make(last).map_err(|e| problem(format!("can't be made ({e})")))?;
    let meta = fs::symlink_metadata(last).map_err(|e| problem(format!("can't be read ({e})")))?;
    // Anybody can make this name in /tmp first.
    if last.starts_with("/tmp") && explicit.is_none() && std::env::var_os(ENV).is_none() {
        if !meta.is_dir() || meta.uid() != getuid().as_raw() {
            return Err(problem("belongs to somebody else".into()));
        }
        if meta.mode() & 0o022 != 0 {
            return Err(problem("can be written by others".into()));
        }
    }
    if !last.is_dir() {
        return Err(problem("is no directory".into()));
    }
    access(last, AccessFlags::W_OK).map_err(|e| problem(format!("can't be written to ({e})")))?;
    Ok(last.clone())
}

fn make(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn socket_path(dir: &Path, key: &str) -> PathBuf {
    dir.join(format!("{key}.sock"))
}

fn address(path: &Path) -> Result<UnixAddr> {
    UnixAddr::new(path).map_err(|_| Error::RuntimeDir {
        path: path.parent().unwrap_or(path).to_owned(),
        problem: "has too long a path for a socket (107 bytes with the key)".into(),
    })
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
    _locked: File,
}

impl Endpoint {
    /// Takes the key. `name` is what others are told when they want it too.
    ///
    /// Errors: the key is bad or taken, the directory can't be used.
    pub fn open(runtime_dir: Option<&Path>, key: &str, name: &str, mode: u32) -> Result<Self> {
        check_key(key)?;
        let dir = choose(runtime_dir)?;
        let unusable = |what: &str, e: io::Error| Error::RuntimeDir {
            path: dir.clone(),
            problem: format!("{what} ({e})"),
        };
        let lock = dir.join(format!("{key}.lock"));
        let mut locked = take_lock(&lock, key).map_err(|e| match e {
            Taken::Busy(error) => error,
            Taken::Io(e) => unusable("does not let its lock file be opened", e),
        })?;
        locked
            .set_len(0)
            .and_then(|()| write!(locked, "{} {name}", std::process::id()))
            .map_err(|e| unusable("does not let its lock file be written", e))?;

        // The socket gets its name when it is ready for connections: who sees it can connect.
        let socket = socket_path(&dir, key);
        let unready = dir.join(format!(".{key}.new"));
        let listener = new_socket().context("make a socket")?;
        let _ = fs::remove_file(&unready);
        let ready = bind(listener.as_raw_fd(), &address(&unready)?)
            .map_err(io::Error::from)
            .and_then(|()| fs::set_permissions(&unready, Permissions::from_mode(mode)))
            .and_then(|()| {
                listen(&listener, Backlog::new(64).expect("64 is a backlog")).map_err(Into::into)
            })
            .and_then(|()| fs::rename(&unready, &socket));
        if let Err(e) = ready {
            let _ = fs::remove_file(&unready);
            return Err(unusable("does not take a socket", e));
        }
        Ok(Self { listener, socket, lock, _locked: locked })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // While the lock is held nobody else touches these; whoever waits for the lock
        // notices that its file is gone.
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(&self.lock);
    }
}

enum Taken {
    Busy(Error),
    Io(io::Error),
}

fn take_lock(path: &Path, key: &str) -> Result<File, Taken> {
    loop {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(Taken::Io)?;
        // SAFETY: all zeros is a valid flock: the whole file, from its start.
        let mut range: libc::flock = unsafe { std::mem::zeroed() };
        range.l_type = libc::F_WRLCK as i16;
        range.l_whence = libc::SEEK_SET as i16;
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&range)) {
            Ok(_) => {}
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => {
                let mut owner = String::new();
                let _ = file.read_to_string(&mut owner);
                let owner = match owner.split_once(' ') {
                    Some((pid, name)) => format!("'{name}' (pid {pid})"),
                    None => "another process".to_owned(),
                };
                return Err(Taken::Busy(Error::Busy { key: key.to_owned(), owner }));
            }
            Err(e) => return Err(Taken::Io(e.into())),
        }
        // The last owner may have removed the file between our open and our lock.
        let same = match (file.metadata(), fs::metadata(path)) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        };
        if same {
            return Ok(file);
        }
    }
}

/// Connects to the publisher of a key, if one of the directories has it.
///
/// Errors: only what waiting will not mend.
pub fn try_connect(dirs: &[PathBuf], key: &str) -> Result<Option<Connection>> {
    let mut denied = None;
    for dir in dirs {
        let fd = new_socket().context("make a socket")?;
        match connect(fd.as_raw_fd(), &address(&socket_path(dir, key))?) {
            Ok(()) => return Ok(Some(Connection::new(fd))),
            Err(nix::errno::Errno::EACCES) => {
                denied.get_or_insert(Error::RuntimeDir {
                    path: dir.clone(),
                    problem: format!("does not let this user connect to '{key}'"),
                });
            }
            // Not there, a leftover, or a queue that is full for the moment.
            Err(_) => {}
        }
    }
    denied.map_or(Ok(None), Err)
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
