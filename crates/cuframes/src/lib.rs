// SPDX-License-Identifier: LGPL-2.1-or-later
//! Shares the video frames and encoded packets of one process with other processes of the host, in host or
//! CUDA memory, without copying pixels. Needs no GStreamer; the GStreamer plugin is built on this crate.
//!
//! ```text
//!   publisher's process                                    subscriber's process
//!  ┌────────────────────┐    socket <key>.sock            ┌─────────────────────┐
//!  │ Publisher          │◄── HELLO, LEAVE ────────────────│ Subscriber          │
//!  │                    │─── caps, fds of the memory ────►│                     │
//!  │                    │    shared memory                │                     │
//!  │  Loan ──publish()──┼──► slots with frames ───────────┼─► next_frame(): Frame
//!  │                    │◄── claims: frames in use ───────│                     │
//!  │  Track ──push()────┼──► ring of packets ─────────────┼─► PacketReader: Packet
//!  └────────────────────┘                                 └─────────────────────┘
//! ```
//!
//! The socket carries a few messages when a subscriber connects and when formats or memory change. Frames and
//! packets are exchanged through shared memory only: publishing and taking a frame use atomics, and a futex
//! where a side sleeps.
//!
//! # Publish
//! ```no_run
//! use std::sync::Arc;
//! use cuframes::memory::host::HostBackend;
//! use cuframes::{FrameInfo, Plane, Publisher, PublisherConfig};
//!
//! let config = PublisherConfig::new("cam1");
//! let publisher = Publisher::open(config, Arc::new(HostBackend), |event| println!("{event:?}"))?;
//! let size = 640 * 480;
//! publisher.set_format("video/x-raw,format=GRAY8,width=640,height=480,framerate=30/1", size)?;
//! // `None` if all slots are in use: drop the frame.
//! if let Some(loan) = publisher.loan(size)? {
//!     // Write the pixels to the loan here.
//!     let planes = [Plane { offset: 0, stride: 640 }].into_iter().collect();
//!     let seq = publisher.publish(loan, &FrameInfo { size, planes, ..Default::default() });
//!     println!("published frame {seq}");
//! }
//! # Ok::<(), cuframes::Error>(())
//! ```
//!
//! # Subscribe
//! ```no_run
//! use cuframes::{Interrupt, Next, Subscriber, SubscriberConfig, Wait};
//!
//! let interrupt = Interrupt::new()?;
//! let mut subscriber = Subscriber::connect(SubscriberConfig::new("cam1"), None, &interrupt)?;
//! loop {
//!     match subscriber.next_frame(&Wait::default())? {
//!         Next::Item(frame) => println!("frame {}: {:?}", frame.seq, frame.bytes().map(<[u8]>::len)),
//!         Next::Eos | Next::Interrupted | Next::TimedOut => break,
//!         Next::Lost { text, .. } => {
//!             println!("the publisher is lost: {text}");
//!             break;
//!         }
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Glossary
//! - **Publisher**: the owner of a key. One process can have several.
//! - **Key**: the name of a stream, such as `cam1`. It is unique in a runtime directory.
//! - **Slot**: memory for one frame. The publisher borrows a free slot ([`Loan`]), writes it and publishes it.
//! - **Chunk**: several slots in one allocation, which is sent to subscribers as one fd.
//! - **Claim**: a subscriber's mark on a slot whose frame it reads. The publisher does not reuse a claimed slot.
//! - **Credit**: the number of frames that a subscriber may hold at a time ([`SubscriberConfig::max_frames`]).
//! - **Epoch**: a number that identifies one run of a publisher. It changes when the publisher is restarted.
//! - **Generation**: the number of a format. It changes with the caps of the frames, or of a track's packets.
//! - **Track**: a stream of encoded packets beside the frames, such as the camera's H.264 ([`Track`]).
//! - **Ring**: the memory of a track. New packets overwrite the oldest ones.
//!
//! # Forked processes
//! A forked process has copies of all objects of its parent. It may drop them, which has no effect on the
//! parent, and must not use them otherwise.
//!
//! # Times
//! Timestamps are nanoseconds of CLOCK_MONOTONIC, which all processes of a host share.

pub mod cuda;
mod error;
pub mod memory;
mod observe;
#[doc(hidden)]
pub mod protocol;
mod publisher;
#[doc(hidden)]
pub mod shm;
#[doc(hidden)]
pub mod subscriber;
#[doc(hidden)]
pub mod sync;
mod types;

pub use error::{Error, Result};
pub use observe::{LiveKey, keys, status};
pub use protocol::runtime_dir::{candidates as runtime_dirs, check_key};
pub use publisher::{
    Loan, Policy, Publisher, PublisherConfig, PublisherEvent, PushError, SharedWords, SocketAccess,
    Track, TrackConfig,
};
pub use subscriber::{
    Counters, Credit, Frame, Next, Packet, PacketReader, ResumePoint, SharedPage, Start,
    Subscriber, SubscriberConfig, Wait,
};
pub use sync::interrupt::Interrupt;
pub use types::frame::{Crop, FrameInfo, PacketId, Plane, Planes};
pub use types::mode::Mode;
pub use types::packet::{PacketInfo, ReferenceTimestamp};
pub use types::refusal::RefusalReason;

/// Statistics and status of publishers and subscribers.
pub mod info {
    pub use crate::protocol::status::{PublisherStatus, SubscriberStatus, TrackStatus};
    pub use crate::publisher::{PoolStats, PublisherStats, ReaderInfo, SubscriberInfo, TrackStats};
}
