//! How publisher and subscribers find and talk to each other.

pub mod directory;
pub mod message;

pub(crate) mod client;
pub(crate) mod server;
pub(crate) mod socket;
