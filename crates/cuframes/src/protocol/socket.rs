//! A SOCK_SEQPACKET connection that carries messages with fds, never blocking.

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

/// What [`Socket::receive`] found.
#[derive(Debug)]
pub enum Received {
    Message(Message, Vec<OwnedFd>),
    /// Nothing there now.
    Nothing,
    /// The other side is gone.
    Closed,
    Malformed(Malformed),
}

/// Fds that are taken in at most, to see that there are too many; the kernel closes those behind them.
const ROOM: usize = 4;

#[derive(Debug)]
pub struct Socket(OwnedFd);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A new socket that is neither inherited nor blocking.
pub fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

impl Socket {
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

    /// A message, with `most` fds or fewer.
    ///
    /// Errors: this process has no room for more fds, and those of the message are lost.
    pub fn receive(&self, most: usize) -> io::Result<Received> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let (len, flags, fds) = match receive(self.0.as_fd(), &mut bytes, most > 0) {
            Ok(got) => got,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Received::Nothing),
            Err(Errno::ECONNRESET) => return Ok(Received::Closed),
            Err(e) => return Err(e.into()),
        };
        if flags & libc::MSG_TRUNC != 0 {
            return Ok(Received::Malformed(Malformed::Long));
        }
        if flags & libc::MSG_CTRUNC != 0 {
            // There was room, and the kernel did not use it.
            if fds.len() < most {
                return Err(Errno::EMFILE.into());
            }
            return Ok(Received::Malformed(Malformed::Fds { expected: most, got: fds.len() + 1 }));
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

/// One packet: its length, the flags of the kernel, and [`ROOM`] of its fds at most. Without `take_fds` those
/// of a stranger never become ours, not even for a moment.
///
/// nix's wrapper does not show the fds of a message that had too many, which are open all the same.
fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    take_fds: bool,
) -> nix::Result<(usize, i32, Vec<OwnedFd>)> {
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // Words, as headers of control messages have to be aligned.
    let mut control = [0u64; (size_of::<libc::cmsghdr>() + ROOM * size_of::<RawFd>()) / 8];
    // SAFETY: all zeros is a valid msghdr: no name, nothing to receive into.
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
    // SAFETY: the kernel wrote the control messages and `msg_controllen`. The macros stay within that.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&header) };
    // SAFETY: it is null or points to a whole header, as above.
    while let Some(cmsg) = unsafe { message.as_ref() } {
        if (cmsg.cmsg_level, cmsg.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            let count = (cmsg.cmsg_len - size_of::<libc::cmsghdr>()) / size_of::<RawFd>();
            for n in 0..count {
                // SAFETY: the message has `count` fds. The kernel made them for this call, and nobody else
                // knows them.
                fds.push(unsafe {
                    let fd = libc::CMSG_DATA(message).cast::<RawFd>().add(n).read_unaligned();
                    OwnedFd::from_raw_fd(fd)
                });
            }
        }
        // SAFETY: as for the first.
        message = unsafe { libc::CMSG_NXTHDR(&header, message) };
    }
    Ok((len, header.msg_flags, fds))
}
