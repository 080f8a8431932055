//! How publisher and subscribers find and talk to each other.

pub mod discovery;
pub mod message;
pub mod runtime_dir;
pub mod socket;
pub mod status;
pub mod wire;
