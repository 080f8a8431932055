// SPDX-License-Identifier: LGPL-2.1-or-later
//! Which users may publish and subscribe, and which users each side trusts. Child processes run as other users.
//! Only root can start them, so the tests are skipped for other users.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cuframes::memory::host::HostBackend;
use cuframes::{
    Error, Interrupt, Publisher, PublisherConfig, RefusalReason, SocketAccess, Subscriber,
    SubscriberConfig,
};
use nix::unistd::getuid;
use testing::{Child, TestDir, become_user, report, until, wait_for_parent};

/// Returns two users of this run, which own nothing else.
fn users() -> [u32; 2] {
    let first = 1_000_000 + std::process::id() * 2;
    [first, first + 1]
}

fn root() -> bool {
    let root = getuid().is_root();
    if !root {
        eprintln!("not root: left out");
    }
    root
}

fn open(config: PublisherConfig) -> cuframes::Result<Publisher> {
    Publisher::open(config, Arc::new(HostBackend), |_| {})
}

fn join(dir: Option<&Path>) -> cuframes::Result<Subscriber> {
    let config =
        SubscriberConfig { runtime_dir: dir.map(Path::to_owned), ..SubscriberConfig::new("cam") };
    Subscriber::connect(config, Some(Duration::ZERO), &Interrupt::new().unwrap())
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Plays the role of a child: `publish UID` or `subscribe UID`, with `usual` in the default directory.
#[test]
fn child() {
    let Some((role, dir)) = testing::role() else { return };
    let mut words = role.split(' ');
    let (part, uid) = (words.next().unwrap(), words.next().unwrap().parse().unwrap());
    let dir = (words.next() != Some("usual")).then_some(&*dir);
    become_user(uid);
    match part {
        "publish" => {
            let config = PublisherConfig {
                runtime_dir: dir.map(Path::to_owned),
                socket: SocketAccess { mode: 0o666, group: None },
                ..PublisherConfig::new("cam")
            };
            let publisher = open(config);
            report(publisher.as_ref().err().map_or("ok".into(), |e| e.to_string()));
            wait_for_parent();
        }
        "subscribe" => report(join(dir).err().map_or("ok".into(), |e| e.to_string())),
        other => panic!("{other}?"),
    }
}

#[track_caller]
fn says(dir: &Path, role: String, expected: &str) {
    let said = Child::start(module_path!(), &role, dir).read_line();
    assert!(said.contains(expected), "{role}: {said}");
}

#[test]
fn socket_has_requested_mode_and_group() {
    let test = TestDir::new("access-mode");
    let socket = test.dir.join("cam.sock");
    let with = |mode, group: Option<&str>| {
        let socket = SocketAccess { mode, group: group.map(str::to_owned) };
        open(PublisherConfig { socket, ..test.config() })
    };
    let publisher = open(test.config()).unwrap();
    assert_eq!(mode(&socket), 0o660);
    // Only its owner can lock it.
    assert_eq!(mode(&test.dir.join("cam.lock")), 0o600);
    drop(publisher);
    let publisher = with(0o600, None).unwrap();
    assert_eq!(mode(&socket), 0o600);
    drop(publisher);
    match with(0o660, Some("no such group")) {
        Err(Error::InvalidConfig { problem, .. }) => assert!(problem.contains("no such group")),
        other => panic!("{:?}", other.err()),
    }
    assert_eq!(test.files(), [""; 0]);
    if root() {
        for group in ["daemon", "1"] {
            let publisher = with(0o666, Some(group)).unwrap();
            assert_eq!((mode(&socket), fs::metadata(&socket).unwrap().gid()), (0o666, 1));
            drop(publisher);
        }
    }
}

#[test]
fn socket_mode_keeps_users_out() {
    if !root() {
        return;
    }
    let test = TestDir::new("access-socket");
    set_mode(&test.dir, 0o755);
    let [user, member] = users();
    let mut config = test.config();
    config.socket = SocketAccess { mode: 0o660, group: Some(member.to_string()) };
    let _publisher = open(config).unwrap();
    says(&test.dir, format!("subscribe {user}"), "does not let this user connect to 'cam'");
    says(&test.dir, format!("subscribe {member}"), "ok");
}

#[test]
fn only_allowed_users_may_subscribe() {
    let test = TestDir::new("access-uids");
    let own = getuid().as_raw();
    let [user, other] = users();
    let mut config = test.config();
    config.socket.mode = 0o666;
    config.allowed_uids = vec![user];
    let publisher = open(config.clone()).unwrap();
    match join(Some(&test.dir)) {
        Err(Error::Refused { reason: RefusalReason::Denied, text, .. }) => {
            assert!(text.contains(&format!("add {own} to allowed-uids")), "{text}");
        }
        other => panic!("{:?}", other.err()),
    }
    if root() {
        set_mode(&test.dir, 0o755);
        says(&test.dir, format!("subscribe {user}"), "ok");
        says(&test.dir, format!("subscribe {other}"), "allowed-uids");
    }
    drop(publisher);
    config.allowed_uids.push(own);
    let _publisher = open(config).unwrap();
    join(Some(&test.dir)).unwrap();
}

/// Any user can create a directory with the name of the default one.
#[test]
fn default_directory_has_to_belong_to_user() {
    if !root() {
        return;
    }
    let test = TestDir::new("access-usual");
    let [user, other] = users();
    let dir = std::env::temp_dir().join(format!("cuframes-{user}"));
    let both = |expected: &str| {
        says(&test.dir, format!("publish {user} usual"), expected);
        says(&test.dir, format!("subscribe {user} usual"), expected);
    };
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(other), Some(other)).unwrap();
    set_mode(&dir, 0o777);
    both(&format!("belongs to another user (uid {other})"));
    chown(&dir, Some(user), Some(user)).unwrap();
    both("is writable by other users");
    set_mode(&dir, 0o700);
    says(&test.dir, format!("publish {user} usual"), "ok");
    says(&test.dir, format!("subscribe {user} usual"), "No publisher");
    fs::remove_dir_all(&dir).unwrap();
    // A link could lead to a directory of another user.
    symlink(&test.dir, &dir).unwrap();
    both("is a symbolic link");
    fs::remove_file(&dir).unwrap();
    fs::write(&dir, "").unwrap();
    both("is not a directory");
    fs::remove_file(&dir).unwrap();
}

/// Where any user can create a socket, a subscriber trusts publishers of root, of its own user, and of the
/// directory's owner only.
#[test]
fn public_directory_is_not_trusted() {
    if !root() {
        return;
    }
    let test = TestDir::new("access-public");
    set_mode(&test.dir, 0o777);
    let [user, other] = users();
    let mut publisher = Child::start(module_path!(), &format!("publish {other}"), &test.dir);
    assert_eq!(publisher.read_line(), "ok");
    let refusal = format!("'cam' is published by another user there (uid {other})");
    says(&test.dir, format!("subscribe {user}"), &refusal);
    says(&test.dir, format!("subscribe {other}"), "ok");
    // Choosing a directory that only its owner can write to means to trust that owner.
    set_mode(&test.dir, 0o755);
    says(&test.dir, format!("subscribe {user}"), "ok");
    set_mode(&test.dir, 0o777);
    chown(&test.dir, Some(other), None).unwrap();
    says(&test.dir, format!("subscribe {user}"), "ok");
    publisher.finish();
    let mut config = test.config();
    config.socket.mode = 0o666;
    let _publisher = open(config).unwrap();
    says(&test.dir, format!("subscribe {user}"), "ok");
}

#[test]
fn lock_of_another_user_is_explained() {
    if !root() {
        return;
    }
    let test = TestDir::new("access-lock");
    set_mode(&test.dir, 0o1777);
    let [user, other] = users();
    let mut first = Child::start(module_path!(), &format!("publish {other}"), &test.dir);
    assert_eq!(first.read_line(), "ok");
    let busy = format!("already published by another user (uid {other})");
    says(&test.dir, format!("publish {user}"), &busy);
    // A killed publisher leaves its lock file behind, unlocked.
    first.kill();
    until(|| !matches!(join(Some(&test.dir)), Ok(_) | Err(Error::Refused { .. })));
    let left = format!("left behind, which is another user's (uid {other})");
    says(&test.dir, format!("publish {user}"), &left);
    // It is no obstacle for the user that left it.
    says(&test.dir, format!("publish {other}"), "ok");
}

#[test]
fn lock_file_that_is_a_link_is_refused() {
    let test = TestDir::new("access-links");
    let (lock, precious) = (test.dir.join("cam.lock"), test.dir.join("precious"));
    fs::write(&precious, "precious").unwrap();
    let refused = |expected: &str| match open(test.config()) {
        Err(Error::RuntimeDir { problem, .. }) => assert!(problem.contains(expected), "{problem}"),
        other => panic!("{:?}", other.err()),
    };
    symlink(&precious, &lock).unwrap();
    refused("a symbolic link in place of the lock file");
    fs::remove_file(&lock).unwrap();
    fs::hard_link(&precious, &lock).unwrap();
    refused("something else in place of the lock file");
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    refused("a directory in place of the lock file");
    fs::remove_dir(&lock).unwrap();
    nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused("something else in place of the lock file");
    fs::remove_file(&lock).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&lock).unwrap());
    refused("has a lock file that can't be opened");
    fs::remove_file(&lock).unwrap();
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");

    // The socket is created under another name and renamed. An existing link is replaced and not followed.
    symlink(&precious, test.dir.join(".cam.new")).unwrap();
    symlink(&precious, test.dir.join("cam.sock")).unwrap();
    set_mode(&precious, 0o640);
    let publisher = open(test.config()).unwrap();
    assert_eq!(mode(&precious), 0o640);
    join(Some(&test.dir)).unwrap();
    drop(publisher);
    assert_eq!(test.files(), ["precious"]);
}

#[test]
fn unusable_directory_is_named() {
    let test = TestDir::new("access-unusable");
    let problem = |dir: &Path, expected: &str| {
        let config = PublisherConfig { runtime_dir: Some(dir.to_owned()), ..test.config() };
        match open(config) {
            Err(Error::RuntimeDir { path, problem }) => {
                assert_eq!(path, dir);
                assert!(problem.contains(expected), "{problem}");
            }
            other => panic!("{:?}", other.err()),
        }
    };
    let file = test.dir.join("file");
    fs::write(&file, "").unwrap();
    problem(&file, "is not a directory");
    problem(&file.join("below"), "can't be created");
    problem(Path::new("/proc/self/task"), "");
    problem(&test.dir.join("a".repeat(90)), "too long a path for a socket");
    if root() {
        set_mode(&test.dir, 0o755);
        let [user, _] = users();
        says(&test.dir, format!("publish {user}"), "can't be written to");
        set_mode(&test.dir, 0o700);
        says(&test.dir.join("below"), format!("publish {user}"), "can't be created");
    }
}
