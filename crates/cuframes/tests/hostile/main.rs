// SPDX-License-Identifier: LGPL-2.1-or-later
//! Peers that violate the protocol. That costs them their connection, and disturbs no other peer.

mod crowd;
mod publisher;
mod random;
mod sleepers;
mod subscriber;
