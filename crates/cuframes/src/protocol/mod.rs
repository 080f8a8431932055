// SPDX-License-Identifier: LGPL-2.1-or-later
//! How subscribers find a publisher, and the messages that the two sides exchange.

pub mod discovery;
pub mod message;
pub mod runtime_dir;
pub mod socket;
pub mod status;
pub mod wire;
