//! All that two processes read and write at once.

pub mod claim;
pub mod layout;
pub mod mapping;
pub mod packet_header;
pub mod record;
pub mod references;
pub mod retention;
pub mod ring;
pub mod segments;
mod words;
