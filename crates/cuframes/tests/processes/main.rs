// SPDX-License-Identifier: LGPL-2.1-or-later
//! Publishers and subscribers in separate processes, which are killed, forked, limited or run as other users.

mod access;
mod lifecycle;
mod limits;
mod observe;
mod streams;
