//! Publisher and subscriber, without GStreamer: usable from any Rust program.

pub mod cuda;
pub mod error;
pub mod memory;
mod observe;
pub mod protocol;
mod publisher;
#[doc(hidden)]
pub mod shm;
mod subscriber;
pub mod sync;
mod types;

pub use error::{Error, Result};
pub use observe::{LiveKey, keys, status};
pub use protocol::runtime_dir::{candidates as runtime_dirs, check_key};
pub use protocol::status::{PublisherStatus, SubscriberStatus, TrackStatus};
pub use publisher::{
    Loan, Policy, PoolStats, Publisher, PublisherConfig, PublisherEvent, PublisherStats, PushError,
    ReaderInfo, SocketAccess, SubscriberInfo, Track, TrackConfig, TrackStats,
};
pub use subscriber::{
    Frame, Next, Packet, PacketReader, ResumePoint, Start, Subscriber, SubscriberConfig, Wait,
};
pub use sync::interrupt::Interrupt;
pub use types::code::{Mode, RefusalReason};
pub use types::frame::{Crop, FrameInfo, PacketId, Plane, Planes};
pub use types::packet::{PacketInfo, ReferenceTimestamp};
