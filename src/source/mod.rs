// SPDX-License-Identifier: LGPL-2.1-or-later
//! Common parts of `cuframessrc` and `cuframespacketsrc`.
//!
//! `connection` joins publishers, `negotiation` is the source pad, `settings` has the shared
//! properties, and `element` implements the GObject traits that are the same for both.

pub(crate) mod connection;
pub(crate) mod element;
pub(crate) mod latency;
pub(crate) mod negotiation;
pub(crate) mod settings;
