// SPDX-License-Identifier: LGPL-2.1-or-later
//! What loom does not provide: models of the futex, of the eventfd and of the locks that `sync` takes from the kernel
//! and from std. They exist with `--cfg loom` only.
//!
//! They guarantee as little as the originals do, so that a model fails if the code relies on more. A wait without a
//! timeout ends by a wake-up only: a lost wake-up is a deadlock, which loom reports. A wait with a timeout may
//! end at any time.

pub mod event;
pub mod futex;
pub mod lock;
