// SPDX-License-Identifier: LGPL-2.1-or-later
//! Users that a test runs as.

use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, getuid, setgroups, setresgid, setresuid};

use crate::exit_with_parent;

/// User and group without rights, as which a test of root's runs what has to be unprivileged.
pub const NOBODY: u32 = 65534;

/// Changes user and group of this process for good, and leaves all other groups. Needs root.
pub fn become_user(uid: u32) {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setgroups(&[]).unwrap();
    setresgid(group, group, group).unwrap();
    setresuid(user, user, user).unwrap();
    // Changing the user cleared it.
    exit_with_parent(Signal::SIGKILL).unwrap();
}

/// Becomes [`NOBODY`] if this is a process of root's. Linux exempts root from limits, such as that on file descriptors in
/// unread messages. [`TestDir::unprivileged`](crate::TestDir::unprivileged) makes a directory usable.
pub fn drop_root() {
    if getuid().is_root() {
        become_user(NOBODY);
    }
}
