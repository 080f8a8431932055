//! A SOCK_SEQPACKET connection that carries messages with fds, never blocking.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, getsockopt, recvmsg, sendmsg, socket, sockopt,
};

use super::message::{MAX_MESSAGE, Malformed, Message};

/// What [`Connection::receive`] found.
#[derive(Debug)]
pub enum Received {
    Message(Message, Vec<OwnedFd>),
    /// Nothing there now.
    Nothing,
    /// The other side is gone.
    Closed,
    Malformed(Malformed),
}

/// Fds that one message can carry, as in the kernel's net/scm.h.
const SCM_MAX_FD: usize = 253;

#[derive(Debug)]
pub struct Connection(OwnedFd);

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A new socket that is neither inherited nor blocking.
pub fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

impl Connection {
    /// `fd` is a connected, non-blocking socket.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Who is at the other end, as of the time of `connect`.
    pub fn peer(&self) -> io::Result<UnixCredentials> {
        Ok(getsockopt(&self.0, sockopt::PeerCredentials)?)
    }

    /// Sends a message whole. `WouldBlock` means that the peer does not read.
    pub fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        debug_assert_eq!(fds.len(), message.fds());
        let bytes = message.encode();
        let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let iov = [IoSlice::new(&bytes)];
        sendmsg::<UnixAddr>(self.0.as_raw_fd(), &iov, control, flags, None)?;
        Ok(())
    }

    pub fn receive(&self) -> io::Result<Received> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut iov = [IoSliceMut::new(&mut bytes)];
        // Room for as many as the kernel lets through: those that don't fit would stay open unseen.
        let mut space = nix::cmsg_space!([RawFd; SCM_MAX_FD]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let got = match recvmsg::<UnixAddr>(self.0.as_raw_fd(), &mut iov, Some(&mut space), flags) {
            Ok(got) => got,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Received::Nothing),
            Err(Errno::ECONNRESET) => return Ok(Received::Closed),
            Err(e) => return Err(e.into()),
        };
        let mut fds = Vec::new();
        for message in got.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel made these fds for this call, and nobody else knows them.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let cut = got.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
        let len = got.bytes;
        if cut {
            return Ok(Received::Malformed(Malformed::Long));
        }
        // There is no empty message, so this is the end.
        if len == 0 {
            return Ok(Received::Closed);
        }
        Ok(match Message::decode(&bytes[..len], fds.len()) {
            Ok(message) => Received::Message(message, fds),
            Err(e) => Received::Malformed(e),
        })
    }
}
