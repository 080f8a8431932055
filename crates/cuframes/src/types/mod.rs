//! Plain values that both sides share.

pub mod code;
pub mod frame;
pub mod packet;
