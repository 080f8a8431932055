// SPDX-License-Identifier: LGPL-2.1-or-later
//! The parts of the CUDA driver API that sharing frames needs, as safe types where possible.
//!
//! The driver's library is opened on first use, so a program runs on machines without an NVIDIA GPU.
//! A driver that is missing or too old is reported as an [`Error`] with advice.
//!
//! - [`Device`] and [`Context`]: a GPU, and the state that a process has on it.
//! - [`Stream`] and [`Event`]: queues of GPU work, and marks in them.
//! - [`DeviceMemory`], [`VmmMapping`], [`IpcMemory`], [`RegisteredHost`]: memory that a GPU can access.
//!   All are a [`Mapped`] range of addresses.

mod context;
mod driver;
mod error;
#[doc(hidden)]
pub mod library;
mod memory;
mod stream;
mod vmm;

pub use context::{Context, Device, Uuid};
/// Handles of the driver, for exchange with other CUDA libraries.
pub use cudarc::driver::sys::{CUcontext, CUstream};
pub use error::{Error, Result};
pub use memory::{
    Allocated, DeviceMemory, HostAccess, IpcMemory, Mapped, MemoryKind, OpenedIpc, Registered,
    RegisteredHost,
};
pub use stream::{Address, Copy2d, Event, Stream};
pub use vmm::{Access, MappedVmm, VmmAllocation, VmmMapping};

/// A handle that lets another process open memory or an event of this one.
pub type IpcHandle = [u8; 64];
