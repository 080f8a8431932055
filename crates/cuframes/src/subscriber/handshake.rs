// SPDX-License-Identifier: LGPL-2.1-or-later
//! Finds the publisher of a key and performs the handshake: HELLO, then WELCOME or REFUSED.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use nix::errno::Errno;

use super::connection::{Connection, MAX_FDS, check_segment};
use super::leases::Leases;
use crate::error::{Error, Result};
use crate::memory::Importer;
use crate::protocol::discovery::{Attempt, Watch, try_connect};
use crate::protocol::message::{Hello, Message, VERSIONS};
use crate::protocol::runtime_dir::{candidates, check_key};
use crate::protocol::socket::{Received, Socket};
use crate::shm::layout::MAX_SLOTS;
use crate::shm::mapping::{Mapping, Sharing};
use crate::shm::segments::{Control, SubscriberPage};
use crate::sync::atomic::{AtomicBool, AtomicU64};
use crate::sync::clock;
use crate::sync::interrupt::Interrupt;
use crate::sync::process::Owner;

/// How long a publisher that accepted the connection may take to answer.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(2);

/// Retry interval while a directory cannot be watched, or while the publisher's queue is full.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Retry interval while all directories are watched, in case the watch misses a change.
const RETRY_INTERVAL_WATCHED: Duration = Duration::from_secs(2);

/// Request of a subscriber, and its means to map memory.
#[derive(Debug)]
pub(super) struct Offer {
    /// The HELLO to send.
    pub(super) hello: Hello,
    /// Maps the chunks that the publisher sends.
    pub(super) importer: Importer,
}

/// Parameters of a connection, from WELCOME.
#[derive(Debug, Clone, Copy)]
struct Accepted {
    epoch: u64,
    /// Number of slots of the control segment.
    slots: u32,
    /// Number of index entries of the control segment; a power of two.
    index: u32,
}

/// Waits for the publisher of a key and connects to it. `timeout` bounds the wait for a publisher that is
/// not running; `None` waits forever.
///
/// # Errors
/// [`Error::Interrupted`], [`Error::NoPublisher`] after `timeout`, [`Error::Refused`],
/// [`Error::Protocol`], [`Error::Key`], [`Error::RuntimeDir`] if this user may not connect, and
/// [`Error::System`] if the process has no file descriptors or memory left.
pub(super) fn connect(
    key: &str,
    runtime_dir: Option<&Path>,
    offer: &Offer,
    timeout: Option<Duration>,
    interrupt: &Interrupt,
) -> Result<Connection> {
    check_key(key)?;
    let dirs = candidates(runtime_dir);
    let deadline = timeout.and_then(clock::deadline_after);
    // The watch starts before the first attempt, so that a publisher that starts in between is noticed.
    let watch = Watch::new(&dirs);
    loop {
        if interrupt.is_set() {
            return Err(Error::Interrupted);
        }
        let attempt = try_connect(runtime_dir, key)?;
        let queue_full = matches!(attempt, Attempt::QueueFull);
        if let Attempt::Connected(socket) = attempt
            && let Some(connection) = shake_hands(key, socket, offer, interrupt)?
        {
            return Ok(connection);
        }
        // The watch does not report that a queue has room again.
        let mut pause =
            if watch.complete && !queue_full { RETRY_INTERVAL_WATCHED } else { RETRY_INTERVAL };
        if let Some(deadline) = deadline {
            let left = deadline.saturating_sub(clock::now());
            if left.is_zero() {
                return Err(Error::NoPublisher { key: key.to_owned(), searched: dirs });
            }
            pause = pause.min(left);
        }
        interrupt.poll(watch.fd().as_slice(), pause);
        watch.drain();
    }
}

/// Sends HELLO and waits for the answer. Returns `None` if the publisher exited or did not answer in time.
fn shake_hands(
    key: &str,
    socket: Socket,
    offer: &Offer,
    interrupt: &Interrupt,
) -> Result<Option<Connection>> {
    let protocol_error = |problem: String| Error::Protocol { key: key.to_owned(), problem };
    if socket.send(&Message::Hello(offer.hello.clone()), &[]).is_err() {
        return Ok(None);
    }
    let deadline = clock::now() + WELCOME_TIMEOUT;
    loop {
        if interrupt.is_set() {
            return Err(Error::Interrupted);
        }
        let left = deadline.saturating_sub(clock::now());
        if left.is_zero() {
            // The publisher may be stopped (SIGSTOP). The caller retries as if it were not running.
            return Ok(None);
        }
        interrupt.poll(&[socket.as_fd()], left);
        let (message, fds) = match socket.receive(MAX_FDS) {
            Ok(Received::Nothing) => continue,
            Err(e) if e.raw_os_error() == Some(Errno::EMFILE as i32) => {
                return Err(Error::System {
                    what: "receive the message of a publisher",
                    source: e,
                });
            }
            Ok(Received::Closed) | Err(_) => return Ok(None),
            Ok(Received::Malformed(e)) => return Err(protocol_error(e.to_string())),
            Ok(Received::Message(message, fds)) => (message, fds),
        };
        return match message {
            // BYE instead of WELCOME: the publisher ends, or evicts this subscriber at once.
            Message::Refused { reason, text } | Message::Bye { reason, text } => {
                Err(Error::Refused { key: key.to_owned(), reason, text })
            }
            Message::Welcome { version, epoch, slots, index, .. } => {
                if !VERSIONS.contains(&version) {
                    return Err(protocol_error(format!(
                        "it chose version {version} of it, this side speaks {} to {}",
                        VERSIONS.start(),
                        VERSIONS.end()
                    )));
                }
                let accepted = Accepted { epoch, slots, index };
                let opened = open(key, socket, offer, accepted, &fds, interrupt);
                opened.map(Some).map_err(|e| match e.raw_os_error() {
                    // The system's limits are the cause, not the message.
                    Some(_) => Error::System { what: "map the memory of a publisher", source: e },
                    None => protocol_error(e.to_string()),
                })
            }
            _ => Err(protocol_error("its first message is not WELCOME".into())),
        };
    }
}

/// Maps the two segments of a WELCOME and checks their headers.
///
/// # Errors
/// With an errno if the system refused, otherwise the publisher sent something invalid.
fn open(
    key: &str,
    socket: Socket,
    offer: &Offer,
    accepted: Accepted,
    fds: &[OwnedFd],
    interrupt: &Interrupt,
) -> io::Result<Connection> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let Accepted { epoch, slots, index } = accepted;
    if slots == 0 || slots > MAX_SLOTS || !index.is_power_of_two() || index > MAX_SLOTS {
        return Err(invalid(format!("{slots} slots and {index} index entries are not possible")));
    }
    let map = |fd: &OwnedFd, size, sharing| Mapping::import(fd.as_fd(), size, sharing);
    let control = map(&fds[0], Control::size(slots, index), Sharing::ReadOnly)?;
    let control = Control::new(control, slots, index);
    let page =
        SubscriberPage::new(map(&fds[1], SubscriberPage::size(slots), Sharing::ReadWrite)?, slots);
    let (c, p) = (control.header(), page.header());
    check_segment(&c.magic, &c.version).map_err(|e| invalid(format!("the control segment {e}")))?;
    check_segment(&p.magic, &p.version).map_err(|e| invalid(format!("the page {e}")))?;
    Ok(Connection {
        key: key.to_owned(),
        mode: offer.hello.mode,
        credit: offer.hello.credit,
        epoch,
        control,
        page,
        interrupt: interrupt.clone(),
        state: Mutex::default(),
        announcements: AtomicU64::new(0),
        disconnected: AtomicBool::new(false),
        leases: Leases::default(),
        copied: AtomicU64::new(0),
        readers: Mutex::default(),
        importer: offer.importer.clone(),
        owner: Owner::this_process(),
        socket,
    })
}
