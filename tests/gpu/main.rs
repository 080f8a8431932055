// SPDX-License-Identifier: LGPL-2.1-or-later
//! Frames that stay on the GPU: NVDEC, CUDA elements of GStreamer, other processes.
//!
//! `make gpu-test` runs these on a host with an NVIDIA GPU and GStreamer 1.24 or later. Programs are started
//! through `$ON_GPU` if that is set, and the plugin and the examples are searched in
//! `$CUFRAMES_BUILT`, so that a packed build runs on a host without cargo.

mod isolation;
mod memory_kinds;
mod namespaces;
mod negotiation;
mod nvdec;
mod ordering;
mod python;
mod support;
