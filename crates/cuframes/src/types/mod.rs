// SPDX-License-Identifier: LGPL-2.1-or-later
//! Plain values that publisher and subscriber share.

pub(crate) mod code;
pub(crate) mod frame;
pub(crate) mod packet;
