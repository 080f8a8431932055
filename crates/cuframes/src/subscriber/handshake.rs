//! Finds a publisher and joins it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use nix::errno::Errno;

use super::connection::{Connection, MAX_FDS, check_segment};
use crate::error::{Error, Result};
use crate::memory::Importer;
use crate::protocol::discovery::{Attempt, Watch, try_connect};
use crate::protocol::message::{Hello, Message, VERSIONS};
use crate::protocol::runtime_dir::{candidates, check_key};
use crate::protocol::socket::{Received, Socket};
use crate::shm::layout::MAX_SLOTS;
use crate::shm::mapping::{Mapping, Sharing};
use crate::shm::segments::{Control, SubscriberPage};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use crate::sync::clock;
use crate::sync::interrupt::Interrupt;
use crate::types::code::Mode;

/// A publisher that accepted the connection has this long to answer.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a directory can't be watched, and for whatever a watch may miss.
const RETRY: Duration = Duration::from_millis(100);

const RETRY_WATCHED: Duration = Duration::from_secs(2);

/// Waits for the publisher of a key and joins it.
///
/// `timeout` bounds the wait for a publisher that is not there; `None` is forever. Errors:
/// [`Error::Interrupted`], [`Error::NoPublisher`] after `timeout`, [`Error::Refused`],
/// [`Error::Protocol`], a bad key, or a socket that this user may not write to.
pub(crate) fn connect(
    key: &str,
    runtime_dir: Option<&std::path::Path>,
    (hello, importer): (Hello, Importer),
    timeout: Option<Duration>,
    interrupt: &Interrupt,
) -> Result<Connection> {
    check_key(key)?;
    let dirs = candidates(runtime_dir);
    let deadline = timeout.map(|t| clock::now() + t);
    // Watching begins before the first look, so nothing that comes in between is missed.
    let watch = Watch::new(&dirs);
    loop {
        if interrupt.is_set() {
            return Err(Error::Interrupted);
        }
        let attempt = try_connect(runtime_dir, key)?;
        let crowded = matches!(attempt, Attempt::Crowded);
        if let Attempt::Connected(connection) = attempt
            && let Some(shared) = shake_hands(key, connection, (&hello, &importer), interrupt)?
        {
            return Ok(shared);
        }
        // A queue that gets shorter is no change of the directory.
        let mut pause = if watch.complete && !crowded { RETRY_WATCHED } else { RETRY };
        if let Some(deadline) = deadline {
            let left = deadline.saturating_sub(clock::now());
            if left.is_zero() {
                return Err(no_publisher(key, dirs));
            }
            pause = pause.min(left);
        }
        interrupt.poll(watch.fd().as_slice(), pause);
        watch.drain();
    }
}

fn no_publisher(key: &str, searched: Vec<PathBuf>) -> Error {
    Error::NoPublisher { key: key.to_owned(), searched }
}

/// `None` if the publisher went away during it.
fn shake_hands(
    key: &str,
    connection: Socket,
    (hello, importer): (&Hello, &Importer),
    interrupt: &Interrupt,
) -> Result<Option<Connection>> {
    let protocol = |problem: String| Error::Protocol { key: key.to_owned(), problem };
    if connection.send(&Message::Hello(hello.clone()), &[]).is_err() {
        return Ok(None);
    }
    let deadline = clock::now() + WELCOME_TIMEOUT;
    loop {
        if interrupt.is_set() {
            return Err(Error::Interrupted);
        }
        let left = deadline.saturating_sub(clock::now());
        if left.is_zero() {
            // It may be stopped; whoever waits for a publisher waits for this one as well.
            return Ok(None);
        }
        interrupt.poll(&[connection.as_fd()], left);
        let (message, fds) = match connection.receive(MAX_FDS) {
            Ok(Received::Nothing) => continue,
            Err(e) if e.raw_os_error() == Some(Errno::EMFILE as i32) => {
                return Err(Error::System { what: "take what a publisher sends", source: e });
            }
            Ok(Received::Closed) | Err(_) => return Ok(None),
            Ok(Received::Malformed(e)) => return Err(protocol(e.to_string())),
            Ok(Received::Message(message, fds)) => (message, fds),
        };
        return match message {
            Message::Refused { code, text } => {
                Err(Error::Refused { key: key.to_owned(), code, text })
            }
            Message::Welcome { version, epoch, slots, index, .. } => {
                if !VERSIONS.contains(&version) {
                    return Err(protocol(format!(
                        "it chose version {version} of it, this side speaks {} to {}",
                        VERSIONS.start(),
                        VERSIONS.end()
                    )));
                }
                let own = (hello.mode, hello.credit, importer.clone());
                open(key, connection, own, (epoch, slots, index), fds, interrupt).map(Some).map_err(
                    |e| match e.raw_os_error() {
                        // Not what it sent, but what there is no room for.
                        Some(_) => Error::System { what: "map what a publisher sends", source: e },
                        None => protocol(e.to_string()),
                    },
                )
            }
            _ => Err(protocol("its first message is not WELCOME".into())),
        };
    }
}

fn open(
    key: &str,
    connection: Socket,
    (mode, credit, importer): (Mode, u32, Importer),
    (epoch, slots, index): (u64, u32, u32),
    fds: Vec<OwnedFd>,
    interrupt: &Interrupt,
) -> io::Result<Connection> {
    let bad = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    if slots == 0 || slots > MAX_SLOTS || !index.is_power_of_two() || index > MAX_SLOTS {
        return Err(bad(format!("{slots} slots and {index} index entries are not possible")));
    }
    let map = |fd: &OwnedFd, size, sharing| Mapping::import(fd.as_fd(), size, sharing);
    let control = map(&fds[0], Control::size(slots, index), Sharing::ReadOnly)?;
    let control = Control::new(control, slots, index);
    let page =
        SubscriberPage::new(map(&fds[1], SubscriberPage::size(slots), Sharing::ReadWrite)?, slots);
    let (c, p) = (control.header(), page.header());
    check_segment(&c.magic, &c.version).map_err(|e| bad(format!("the control segment {e}")))?;
    check_segment(&p.magic, &p.version).map_err(|e| bad(format!("the page {e}")))?;
    Ok(Connection {
        key: key.to_owned(),
        mode,
        credit,
        epoch,
        control,
        page,
        bell: interrupt.bell().clone(),
        state: Mutex::default(),
        leases: AtomicU32::new(0),
        awaits_release: AtomicBool::new(false),
        clearing: Mutex::default(),
        copied: AtomicU64::new(0),
        readers: Mutex::default(),
        importer,
        process: std::process::id(),
        connection,
    })
}
