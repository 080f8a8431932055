//! How publisher and subscribers find and talk to each other.

pub mod directory;
pub mod message;
pub mod observe;
pub mod status;

pub(crate) mod client;
pub(crate) mod observers;
pub(crate) mod server;
pub(crate) mod socket;
