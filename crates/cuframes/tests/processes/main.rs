// SPDX-License-Identifier: LGPL-2.1-or-later
//! Publishers and subscribers in processes of their own, and what a process can do to them.

mod access;
mod lifecycle;
mod limits;
mod observe;
mod streams;
