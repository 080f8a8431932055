// SPDX-License-Identifier: LGPL-2.1-or-later
//! The runtime directory, which contains two files per publisher: `<key>.sock` and `<key>.lock`.

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

/// Name of the environment variable that overrides the runtime directory.
pub const ENV: &str = "CUFRAMES_RUNTIME_DIR";

/// Checks a key: 1 to 63 of the characters `A-Za-z0-9_.-`, without a dot at the start.
///
/// # Errors
/// [`Error::Key`] if it breaks one of these rules.
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

/// Returns the directories that publishers can be in, in the order of the search: only `explicit` if it is
/// given, otherwise only that of the environment variable `CUFRAMES_RUNTIME_DIR` if it is set, otherwise
/// `/run/cuframes`, `$XDG_RUNTIME_DIR/cuframes` and `/tmp/cuframes-UID`.
pub fn candidates(explicit: Option<&Path>) -> Vec<PathBuf> {
    if let Some(dir) = named(explicit) {
        return vec![dir];
    }
    let mut dirs = vec![PathBuf::from(SHARED)];
    dirs.extend(from_environment("XDG_RUNTIME_DIR").map(|dir| dir.join("cuframes")));
    dirs.push(PathBuf::from(format!("/tmp/cuframes-{}", getuid())));
    dirs
}

/// The directory for publishers of several users. Only root can create it, so it is trusted like one that
/// was named.
pub(crate) const SHARED: &str = "/run/cuframes";

fn from_environment(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// Returns the directory that the caller or the environment names, if any.
fn named(explicit: Option<&Path>) -> Option<PathBuf> {
    explicit.map(Path::to_owned).or_else(|| from_environment(ENV))
}

/// Returns whether the caller or the environment names the directory.
pub(super) fn is_named(explicit: Option<&Path>) -> bool {
    named(explicit).is_some()
}

/// Owner and permissions of a usable runtime directory.
pub(super) struct DirInfo {
    /// User id of the owner.
    pub(super) owner: u32,
    /// All users can create sockets in it.
    pub(super) public: bool,
}

/// Why a directory is not usable.
pub(super) enum Unusable {
    /// It does not exist, or cannot be opened.
    Absent(io::Error),
    /// It exists and cannot be trusted, as the predicate of a sentence.
    Problem(String),
}

/// Checks whether the content of a runtime directory can be trusted. A directory that is not `named` has a
/// predictable path that another user could create first, so it must belong to this user and be writable
/// by this user only.
///
/// The path still leads to the same directory when it is used later: only its owner, root, and users with
/// write permission in its parent can change that, and /tmp is sticky.
pub(super) fn inspect(dir: &Path, named: bool) -> Result<DirInfo, Unusable> {
    // Does not follow a symbolic link, whose owner can redirect it. O_PATH needs no read permission.
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = open(dir, flags, Mode::empty()).map_err(|e| Unusable::Absent(e.into()))?;
    let meta = fstat(fd).map_err(|e| Unusable::Absent(e.into()))?;
    let problem = |text: &str| Err(Unusable::Problem(text.to_owned()));
    match meta.st_mode & libc::S_IFMT {
        libc::S_IFDIR => {}
        libc::S_IFLNK => return problem("is a symbolic link, and could lead anywhere"),
        _ => return problem("is not a directory"),
    }
    if !named && meta.st_uid != getuid().as_raw() {
        return Err(Unusable::Problem(format!("belongs to another user (uid {})", meta.st_uid)));
    }
    if !named && meta.st_mode & 0o022 != 0 {
        return problem("is writable by other users");
    }
    Ok(DirInfo { owner: meta.st_uid, public: meta.st_mode & 0o002 != 0 })
}

/// Returns the candidates that exist and can be trusted.
pub fn usable(explicit: Option<&Path>) -> Vec<PathBuf> {
    let named = is_named(explicit);
    let usable = |dir: &PathBuf| inspect(dir, named || dir == Path::new(SHARED)).is_ok();
    candidates(explicit).into_iter().filter(usable).collect()
}

/// Returns the directory for a publisher: the first candidate that is usable and writable. Creates missing
/// candidates, except the shared one.
///
/// # Errors
/// [`Error::RuntimeDir`] with the problem of the last candidate.
pub(crate) fn choose(explicit: Option<&Path>) -> Result<PathBuf> {
    let named = is_named(explicit);
    let dirs = candidates(explicit);
    let (last, before) = dirs.split_last().expect("there is always one");
    for dir in before {
        let shared = dir == Path::new(SHARED);
        if !shared {
            let _ = create(dir);
        }
        if inspect(dir, shared).is_ok() && access(dir, AccessFlags::W_OK).is_ok() {
            return Ok(dir.clone());
        }
    }
    let problem = |problem: String| Error::RuntimeDir { path: last.clone(), problem };
    let created = create(last);
    inspect(last, named).map_err(|unusable| match (unusable, created) {
        (Unusable::Problem(text), _) => problem(text),
        (Unusable::Absent(_), Err(e)) => problem(format!("can't be created ({e})")),
        (Unusable::Absent(e), Ok(())) => problem(format!("can't be read ({e})")),
    })?;
    access(last, AccessFlags::W_OK).map_err(|e| problem(format!("can't be written to ({e})")))?;
    Ok(last.clone())
}

fn create(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Returns the path of a key's socket.
pub(crate) fn socket_path(dir: &Path, key: &str) -> PathBuf {
    dir.join(format!("{key}.sock"))
}

/// Returns the address of a socket.
///
/// # Errors
/// [`Error::RuntimeDir`] if the path is longer than an address can be.
pub(crate) fn address(path: &Path) -> Result<UnixAddr> {
    UnixAddr::new(path).map_err(|_| Error::RuntimeDir {
        path: path.parent().unwrap_or(path).to_owned(),
        problem: "has too long a path for a socket (107 bytes with the key)".into(),
    })
}
