// SPDX-License-Identifier: LGPL-2.1-or-later
//! The checks, by subject.

pub(crate) mod device;
pub(crate) mod host_memory;
pub(crate) mod import;
pub(crate) mod sharing;
