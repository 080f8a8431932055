//! Frames: slots that change hands without a lock ([`claim`]), the publisher's pool of them, and the
//! subscriber's way to them.

pub mod claim;
pub(crate) mod patience;
pub(crate) mod pool;
pub(crate) mod reader;
