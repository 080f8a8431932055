//! The runtime directory, and the only two things in it that have names: `<key>.sock` and `<key>.lock`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, OFlag, fcntl, open};
use nix::libc;
use nix::sys::inotify::AddWatchFlags;
use nix::sys::socket::{Backlog, Shutdown, UnixAddr, bind, connect, listen, shutdown};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat};
use nix::unistd::{AccessFlags, Gid, Group, access, fchownat, getuid};

use super::socket::{Connection, new_socket};
use crate::core::error::{Context, Error, Result, is_exhausted};

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
    if let Some(dir) = named(explicit) {
        return vec![dir];
    }
    let mut dirs = vec![PathBuf::from(SHARED)];
    dirs.extend(set("XDG_RUNTIME_DIR").map(|dir| dir.join("cuframes")));
    dirs.push(PathBuf::from(format!("/tmp/cuframes-{}", getuid())));
    dirs
}

/// The administrator's to make: only root can make it, so it is as trusted as one that was named.
const SHARED: &str = "/run/cuframes";

fn set(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// The directory that somebody chose.
fn named(explicit: Option<&Path>) -> Option<PathBuf> {
    explicit.map(Path::to_owned).or_else(|| set(ENV))
}

/// A runtime directory that was looked at.
struct Place {
    owner: u32,
    /// Anybody can put a socket there.
    public: bool,
}

/// Looks at a runtime directory before anything in it is believed. One that nobody named has a name that
/// anybody could have made first, and has to be this user's alone.
///
/// A path that was looked at still leads to the same directory when it is used: only its owner, root,
/// and whoever may write to its parent can change that. In /tmp the latter can't, which is sticky.
fn look_at(dir: &Path, named: bool) -> Result<Place, Unfit> {
    // Not through a symbolic link, which leads where its owner wants. The right to pass is enough.
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = open(dir, flags, Mode::empty()).map_err(|e| Unfit::Absent(e.into()))?;
    let meta = fstat(fd).map_err(|e| Unfit::Absent(e.into()))?;
    let problem = |text: &str| Err(Unfit::Problem(text.to_owned()));
    match meta.st_mode & libc::S_IFMT {
        libc::S_IFDIR => {}
        libc::S_IFLNK => return problem("is a symbolic link, and could lead anywhere"),
        _ => return problem("is no directory"),
    }
    if !named && meta.st_uid != getuid().as_raw() {
        return Err(Unfit::Problem(format!("belongs to another user (uid {})", meta.st_uid)));
    }
    if !named && meta.st_mode & 0o022 != 0 {
        return problem("can be written to by other users");
    }
    Ok(Place { owner: meta.st_uid, public: meta.st_mode & 0o002 != 0 })
}

enum Unfit {
    /// Not there, or out of reach.
    Absent(io::Error),
    Problem(String),
}

/// The candidates in which something may be believed.
pub fn fit(explicit: Option<&Path>) -> Vec<PathBuf> {
    let named = named(explicit).is_some();
    let fit = |dir: &PathBuf| look_at(dir, named || dir == Path::new(SHARED)).is_ok();
    candidates(explicit).into_iter().filter(fit).collect()
}

/// The directory that a publisher uses: the first candidate that it can write to, made if need be.
fn choose(explicit: Option<&Path>) -> Result<PathBuf> {
    let named = named(explicit).is_some();
    let dirs = candidates(explicit);
    let (last, before) = dirs.split_last().expect("there is always one");
    for dir in before {
        let shared = dir == Path::new(SHARED);
        if !shared {
            let _ = make(dir);
        }
        if look_at(dir, shared).is_ok() && access(dir, AccessFlags::W_OK).is_ok() {
            return Ok(dir.clone());
        }
    }
    let problem = |problem: String| Error::RuntimeDir { path: last.clone(), problem };
    let made = make(last);
    look_at(last, named).map_err(|unfit| match (unfit, made) {
        (Unfit::Problem(text), _) => problem(text),
        (Unfit::Absent(_), Err(e)) => problem(format!("can't be made ({e})")),
        (Unfit::Absent(e), Ok(())) => problem(format!("can't be read ({e})")),
    })?;
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
        found.map(Some).ok_or_else(|| Error::Value {
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
            Error::Value {
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

/// What came of looking for a publisher.
pub enum Attempt {
    Connected(Connection),
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
                let connection = Connection::new(fd);
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
