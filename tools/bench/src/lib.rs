// SPDX-License-Identifier: LGPL-2.1-or-later
//! What the benchmarks `bench` and `bench-packets` share.

pub mod machine;
