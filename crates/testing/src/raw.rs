// SPDX-License-Identifier: LGPL-2.1-or-later
//! The wire protocol by hand, as docs/protocol.md describes it: peers that can send anything.
//!
//! Everything is valid until a test changes it.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use cuframes::Mode;
use cuframes::protocol::message::{Hello, Message};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, accept, bind, connect, listen, recvmsg, sendmsg, socket,
};

pub const MAGIC: u64 = u64::from_ne_bytes(*b"cuframes");
pub const SLOTS: u32 = 4;
pub const INDEX: u32 = 4;
pub const STRIDE: u64 = 4096;
pub const SIZE: u64 = 64 * 32;
pub const RING: u64 = 4096;
/// Bytes of a packet in the ring: 100 bytes and its header.
pub const PACKET: u64 = 232;
pub const VERSION: u16 = 2;
pub const LAYOUT: u32 = 4;
pub const CAPS: &str = "video/x-raw, format=GRAY8, width=64, height=32, framerate=30/1";
pub const PACKET_CAPS: &str = "video/x-h264, stream-format=byte-stream, alignment=au";
const NONE: u64 = i64::MIN as u64;

/// Byte offsets in segments of these sizes.
pub mod at {
    pub const VERSION: usize = 8;
    pub const HEAD: usize = 64;
    /// Number of slot 0.
    pub const SLOT: usize = 192;
    /// Ready word of slot 0.
    pub const READY: usize = 200;
    pub const INDEX: usize = 256;
    pub const RECORD: usize = 320;
    /// The first reader's words.
    pub const READERS: usize = 192;
    pub const CLAIMS: usize = 1216;
    pub const TAIL: usize = 128;
    pub const KEYFRAME: usize = 192;
    pub const RECLAIM: usize = 320;
    /// The packets, one after the other.
    pub const PACKETS: usize = 384;
}

/// A memfd that is mapped for writing.
pub struct Segment {
    pub fd: Arc<OwnedFd>,
    ptr: *mut u8,
    len: usize,
}

// SAFETY: the mapping is accessed through atomics only.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    pub fn new(len: usize) -> Self {
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        Self::with(len, seals, MFdFlags::empty())
    }

    pub fn with(len: usize, seals: SealFlag, flags: MFdFlags) -> Self {
        Self::create(len, seals, flags).unwrap()
    }

    pub fn create(len: usize, seals: SealFlag, flags: MFdFlags) -> nix::Result<Self> {
        let flags = flags | MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC;
        let fd = memfd_create("cuframes-hostile", flags)?;
        nix::unistd::ftruncate(&fd, len as i64)?;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        Self::map(Arc::new(fd), len)
    }

    /// Maps a memfd of another process for writing.
    ///
    /// # Errors
    ///
    /// If the memfd is sealed against that.
    pub fn map(fd: Arc<OwnedFd>, len: usize) -> nix::Result<Self> {
        let (prot, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        let size = len.try_into().unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let ptr = unsafe { mmap(None, size, prot, flags, &fd, 0) }?;
        Ok(Self { fd, ptr: ptr.as_ptr().cast(), len })
    }

    pub fn words(&self) -> usize {
        self.len / 8
    }

    pub fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.len);
        // SAFETY: an aligned word of the mapping, which lives as long as the borrow.
        unsafe { AtomicU64::from_ptr(self.ptr.add(offset).cast()) }
    }

    pub fn set(&self, offset: usize, words: &[u64]) {
        for (n, word) in words.iter().enumerate() {
            self.word(offset + n * 8).store(*word, Ordering::Relaxed);
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to this segment, and nothing borrows from it any more.
        unsafe { munmap(std::ptr::NonNull::new(self.ptr.cast()).unwrap(), self.len) }.unwrap();
    }
}

/// Returns a word of memory with two numbers of 32 bits, the first at the lower address.
pub fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

/// A message as it is sent through the socket.
pub struct RawMessage {
    pub bytes: Vec<u8>,
    pub fds: Vec<Arc<OwnedFd>>,
}

impl RawMessage {
    pub fn new(message: Message, fds: &[&Arc<OwnedFd>]) -> Self {
        Self { bytes: message.encode(), fds: fds.iter().map(|fd| (*fd).clone()).collect() }
    }
}

/// All that a publisher sends and shares: a frame in slot 0, and two packets. A valid stream until it
/// is changed.
pub struct FakeStream {
    pub control: Segment,
    pub page: Segment,
    pub chunk: Segment,
    pub track: Segment,
    /// WELCOME, FORMAT, CHUNK, TRACK, TRACK_FORMAT.
    pub script: Vec<RawMessage>,
    /// Keeps the connection until the subscriber closes it.
    pub stays: bool,
}

impl Default for FakeStream {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeStream {
    /// Creates a valid stream.
    pub fn new() -> Self {
        let control = Segment::new(at::RECORD + 512 * SLOTS as usize);
        let page = Segment::new(at::CLAIMS + 8 * SLOTS as usize);
        let chunk = Segment::new(SLOTS as usize * STRIDE as usize);
        let track = Segment::new(at::PACKETS + RING as usize);
        let now = cuframes::sync::clock::now_ns() as u64;

        control.set(0, &[MAGIC, pair(LAYOUT, SLOTS), pair(INDEX, 0), 7]);
        control.set(at::HEAD, &[1]);
        control.set(at::READY, &[1]);
        control.set(at::SLOT, &[1]);
        control.set(at::INDEX + 8, &[1 << 16]);
        // Generation 1, chunk 1, slot 0, one plane of 64 bytes a row.
        let record =
            [1, 1 << 32 | 1, 0, now, NONE, u64::MAX, now, now, SIZE, 1, 64, 0, 0, 0, 0, 0, 0, 0];
        control.set(at::RECORD, &record);
        page.set(0, &[MAGIC, pair(LAYOUT, SLOTS)]);
        track.set(0, &[MAGIC, u64::from(LAYOUT), RING]);
        track.set(at::HEAD, &[2 * PACKET]);
        track.set(at::KEYFRAME, &[1]);
        for seq in 0..2 {
            let header = [seq, 100, 1 << 32 | (1 - seq), 0, now, now, u64::MAX, 0, now];
            track.set(at::PACKETS + (seq * PACKET) as usize, &header);
        }

        let script = vec![
            RawMessage::new(welcome(VERSION, SLOTS, INDEX), &[&control.fd, &page.fd]),
            RawMessage::new(Message::Format { generation: 1, caps: CAPS.into() }, &[]),
            RawMessage::new(chunk_of(1, SLOTS, STRIDE, SIZE), &[&chunk.fd]),
            RawMessage::new(Message::Track { track: 0, bytes: RING }, &[&track.fd]),
            RawMessage::new(
                Message::TrackFormat { track: 0, generation: 1, caps: PACKET_CAPS.into() },
                &[],
            ),
        ];
        Self { control, page, chunk, track, script, stays: false }
    }

    pub fn segments(&self) -> [&Segment; 4] {
        [&self.control, &self.page, &self.chunk, &self.track]
    }
}

/// Returns HELLO of a strict subscriber.
pub fn hello(credit: u32, name: &str) -> Vec<u8> {
    hello_as(Mode::Strict, credit, name)
}

/// Returns HELLO.
pub fn hello_as(mode: Mode, credit: u32, name: &str) -> Vec<u8> {
    let (gpu, name) = ([0; 16], name.to_owned());
    let versions = (VERSION, VERSION);
    Message::Hello(Hello { versions, mode, credit, gpu, name }).encode()
}

/// Returns WELCOME.
pub fn welcome(version: u16, slots: u32, index: u32) -> Message {
    Message::Welcome { version, epoch: 7, id: 1, slots, index }
}

/// Returns CHUNK.
pub fn chunk_of(kind: u32, slots: u32, stride: u64, size: u64) -> Message {
    Message::Chunk { id: 1, kind, device: [0; 16], slots, stride, size }
}

/// One end of a connection.
pub struct RawPeer(pub OwnedFd);

fn seqpacket() -> OwnedFd {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap()
}

impl RawPeer {
    pub fn connect(dir: &Path) -> Self {
        Self::try_connect(dir).unwrap()
    }

    /// Connects.
    ///
    /// # Errors
    ///
    /// There is no publisher.
    pub fn try_connect(dir: &Path) -> nix::Result<Self> {
        let fd = seqpacket();
        connect(fd.as_raw_fd(), &UnixAddr::new(&dir.join("cam.sock")).unwrap())?;
        Ok(Self(fd))
    }

    /// Sends bytes and fds. Returns false if the other side is gone.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let iov = [IoSlice::new(bytes)];
        sendmsg::<UnixAddr>(self.0.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None).is_ok()
    }

    /// Sends a message. Returns false if the other side is gone.
    pub fn send_message(&self, message: &RawMessage) -> bool {
        let fds: Vec<_> = message.fds.iter().map(|fd| fd.as_fd()).collect();
        self.send(&message.bytes, &fds)
    }

    /// Returns the next message; `None` when the other side is gone.
    pub fn receive(&self) -> Option<(Message, Vec<Arc<OwnedFd>>)> {
        let mut bytes = vec![0; 65536];
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let got =
            recvmsg::<UnixAddr>(self.0.as_raw_fd(), &mut iov, Some(&mut space), flags).ok()?;
        let mut fds = Vec::new();
        for message in got.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel created these fds for this call, and nothing else owns them.
                fds.extend(raw.into_iter().map(|fd| Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })));
            }
        }
        let len = got.bytes;
        (len > 0).then(|| (Message::decode(&bytes[..len], fds.len()).unwrap(), fds))
    }
}

/// A subscriber that has read WELCOME and nothing else.
pub struct RawSubscriber {
    pub peer: RawPeer,
    /// Its own page.
    pub page: Segment,
    pub control: Arc<OwnedFd>,
}

impl RawSubscriber {
    /// Connects and sends HELLO. Returns `None` if there is no publisher, or it refuses.
    pub fn join(dir: &Path, hello: &[u8]) -> Option<Self> {
        let peer = RawPeer::try_connect(dir).ok()?;
        if !peer.send(hello, &[]) {
            return None;
        }
        let (Message::Welcome { slots, .. }, fds) = peer.receive()? else { return None };
        let page = Segment::map(fds[1].clone(), at::CLAIMS + 8 * slots as usize).ok()?;
        Some(Self { peer, page, control: fds[0].clone() })
    }
}

/// A publisher that serves one prepared stream to each subscriber that connects.
pub struct FakePublisher {
    streams: Sender<FakeStream>,
    socket: PathBuf,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl FakePublisher {
    pub fn new(dir: &Path) -> Self {
        let socket = dir.join("cam.sock");
        let listener = seqpacket();
        bind(listener.as_raw_fd(), &UnixAddr::new(&socket).unwrap()).unwrap();
        listen(&listener, Backlog::new(16).unwrap()).unwrap();
        let (streams, queue) = channel();
        let thread = std::thread::spawn(move || Self::run(&listener, &queue));
        Self { streams, socket, thread: Some(thread) }
    }

    /// Queues a stream for the next connection.
    pub fn serve(&self, stream: FakeStream) {
        self.streams.send(stream).unwrap();
    }

    fn run(listener: &OwnedFd, streams: &Receiver<FakeStream>) {
        while let Ok(stream) = streams.recv() {
            let fd = accept(listener.as_raw_fd()).unwrap();
            // SAFETY: the kernel created this fd for this call, and nothing else owns it.
            let peer = RawPeer(unsafe { OwnedFd::from_raw_fd(fd) });
            let request = peer.receive();
            let Some((Message::Hello(_) | Message::StatusRequest { .. }, _)) = request else {
                continue;
            };
            let sent = stream.script.iter().all(|message| peer.send_message(message));
            if sent && stream.stays {
                while peer.receive().is_some() {}
            }
        }
    }
}

impl Drop for FakePublisher {
    fn drop(&mut self) {
        // Ends the thread, which waits for the next stream.
        self.streams = channel().0;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}
