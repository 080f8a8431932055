//! The runtime directory, and the only two things in it that have names: `<key>.sock` and `<key>.lock`.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::socket::UnixAddr;
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{AccessFlags, access, getuid};

use crate::error::{Error, Result};

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
pub(crate) const SHARED: &str = "/run/cuframes";

pub(crate) fn set(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// The directory that somebody chose.
pub(crate) fn named(explicit: Option<&Path>) -> Option<PathBuf> {
    explicit.map(Path::to_owned).or_else(|| set(ENV))
}

/// A runtime directory that was looked at.
pub(crate) struct DirInfo {
    pub owner: u32,
    /// Anybody can put a socket there.
    pub public: bool,
}

/// Looks at a runtime directory before anything in it is believed. One that nobody named has a name that
/// anybody could have made first, and has to be this user's alone.
///
/// A path that was looked at still leads to the same directory when it is used: only its owner, root,
/// and whoever may write to its parent can change that. In /tmp the latter can't, which is sticky.
pub(crate) fn look_at(dir: &Path, named: bool) -> Result<DirInfo, Unfit> {
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
    Ok(DirInfo { owner: meta.st_uid, public: meta.st_mode & 0o002 != 0 })
}

pub(crate) enum Unfit {
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
pub(crate) fn choose(explicit: Option<&Path>) -> Result<PathBuf> {
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

pub(crate) fn make(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

pub(crate) fn socket_path(dir: &Path, key: &str) -> PathBuf {
    dir.join(format!("{key}.sock"))
}

pub(crate) fn address(path: &Path) -> Result<UnixAddr> {
    UnixAddr::new(path).map_err(|_| Error::RuntimeDir {
        path: path.parent().unwrap_or(path).to_owned(),
        problem: "has too long a path for a socket (107 bytes with the key)".into(),
    })
}
