// SPDX-License-Identifier: LGPL-2.1-or-later
//! Plain values that publisher and subscriber share.

pub(crate) mod frame;
pub(crate) mod mode;
pub(crate) mod packet;
pub(crate) mod refusal;
