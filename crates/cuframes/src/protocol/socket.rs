// SPDX-License-Identifier: LGPL-2.1-or-later
//! A non-blocking SOCK_SEQPACKET connection that carries messages with fds.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::message::Message;
use super::wire::{MAX_MESSAGE, Malformed};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials,
    getsockopt, sendmsg, socket, sockopt,
};

/// Result of [`Socket::receive`].
#[derive(Debug)]
pub enum Received {
    /// A valid message with its fds.
    Message(Message, Vec<OwnedFd>),
    /// There is no message at the moment.
    Nothing,
    /// The peer closed the connection.
    Closed,
    /// The bytes or the number of fds are invalid.
    Malformed(Malformed),
}

/// Room for received fds: more than any message has, so that an excess is noticed. The kernel closes the
/// rest.
const ROOM: usize = 4;

/// One end of a connection.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns a new socket that is non-blocking and not inherited by executed programs.
///
/// # Errors
/// The process or the system has no file descriptors left.
pub fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

impl Socket {
    /// Wraps a connected, non-blocking socket.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Returns process, user and group of the peer at the time of `connect`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn peer(&self) -> io::Result<UnixCredentials> {
        Ok(getsockopt(&self.0, sockopt::PeerCredentials)?)
    }

    /// Returns whether the peer has read all messages that were sent to it. The kernel knows, so that a peer cannot
    /// pretend. False also if the kernel does not tell.
    pub fn is_read_by_peer(&self) -> bool {
        let mut unread: libc::c_int = 0;
        // SAFETY: the ioctl writes an int to the address.
        let r = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
        // While the last message is being freed, the kernel still counts one byte.
        r == 0 && unread <= 1
    }

    /// Sends a message with its fds, without blocking.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if the peer does not read its messages and the socket's buffer is full;
    /// other errors of `sendmsg`, such as that the peer closed the connection.
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

    /// Receives a message with at most `max_fds` fds, without blocking.
    ///
    /// # Errors
    /// `EMFILE` if this process has no fds left for those of the message, which are lost; other errors of
    /// `recvmsg`.
    pub fn receive(&self, max_fds: usize) -> io::Result<Received> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let (len, flags, fds) = match receive(self.0.as_fd(), &mut bytes, max_fds > 0) {
            Ok(got) => got,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Received::Nothing),
            Err(Errno::ECONNRESET) => return Ok(Received::Closed),
            Err(e) => return Err(e.into()),
        };
        if flags & libc::MSG_TRUNC != 0 {
            return Ok(Received::Malformed(Malformed::Long));
        }
        if flags & libc::MSG_CTRUNC != 0 {
            // There was room, but the kernel could not install the fds.
            if fds.len() < max_fds {
                return Err(Errno::EMFILE.into());
            }
            return Ok(Received::Malformed(Malformed::Fds {
                expected: max_fds,
                got: fds.len() + 1,
            }));
        }
        // No message is empty, so this is the end of the connection.
        if len == 0 {
            return Ok(Received::Closed);
        }
        Ok(match Message::decode(&bytes[..len], fds.len()) {
            Ok(message) => Received::Message(message, fds),
            Err(e) => Received::Malformed(e),
        })
    }
}

/// Receives one packet. Returns its length, the flags of the kernel, and at most [`ROOM`] of its fds. Without
/// `take_fds`, the kernel discards the fds, so that an unauthorized peer cannot open any in this process.
///
/// nix's wrapper does not return the fds of a message that has too many, although they are open.
fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    take_fds: bool,
) -> nix::Result<(usize, i32, Vec<OwnedFd>)> {
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // An array of words, because headers of control messages have to be aligned.
    let mut control = [0u64; (size_of::<libc::cmsghdr>() + ROOM * size_of::<RawFd>()) / 8];
    // SAFETY: all zeros is a valid msghdr, without name and buffers.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &mut iov;
    header.msg_iovlen = 1;
    if take_fds {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control);
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to buffers of the lengths given, which outlive the call.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, flags) };
    let len = Errno::result(len)? as usize;
    let mut fds = Vec::new();
    // SAFETY: the kernel wrote the control messages and `msg_controllen`, and the macros stay within that
    // length.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&header) };
    // SAFETY: the pointer is null or points to a complete header, as above.
    while let Some(cmsg) = unsafe { message.as_ref() } {
        if (cmsg.cmsg_level, cmsg.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            let count = (cmsg.cmsg_len - size_of::<libc::cmsghdr>()) / size_of::<RawFd>();
            for n in 0..count {
                // SAFETY: the message has `count` fds. The kernel created them for this call, so nothing else
                // owns them.
                fds.push(unsafe {
                    let fd = libc::CMSG_DATA(message).cast::<RawFd>().add(n).read_unaligned();
                    OwnedFd::from_raw_fd(fd)
                });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        message = unsafe { libc::CMSG_NXTHDR(&header, message) };
    }
    Ok((len, header.msg_flags, fds))
}
