//! Publisher and subscriber, without GStreamer: usable from any Rust program.
//!
//! A [`Publisher`] owns a key. It lends slots of shared memory to be written, and publishes them; and
//! it has tracks, rings of encoded packets. Any number of [`Subscriber`]s in other processes read both
//! in place, and can neither change what others read nor hold the publisher up.

pub(crate) mod board;
pub mod channel;
pub mod error;
pub mod frames;
pub mod layout;
pub mod packets;
pub mod publisher;
pub(crate) mod shm;
pub mod subscriber;
pub(crate) mod sync;
pub mod wake;

pub use error::{Error, Result};
pub use publisher::{Publisher, PublisherConfig};
pub use subscriber::{Subscriber, SubscriberConfig};
