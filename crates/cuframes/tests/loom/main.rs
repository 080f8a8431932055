// SPDX-License-Identifier: LGPL-2.1-or-later
//! Models of the lock-free protocols: they run under every interleaving and every reordering that the memory model
//! allows.
//!
//! They run the functions that publisher and subscriber call; the loops around these calls are their own. With `--cfg loom`
//! the crate takes its atomics and locks from loom, and the futex and the eventfd from `sync/model`. A lost wake-up is a deadlock there, which fails the model; in
//! production many waits check again after a while, which hides it.
//!
//! Each model lists its possible outcomes and fails if one of them never occurs, because a model that does not reach
//! its situation proves nothing.
//!
//! `make loom` runs the models; `make loom LOOM_MAX_PREEMPTIONS=4` explores more interleavings and takes longer.

#![cfg(loom)]

mod frames;
mod interrupts;
mod leases;
mod packets;
mod stream_end;
mod wakeups;

use std::collections::BTreeSet;
use std::sync::Arc;

use loom::sync::atomic::AtomicU64 as Word;
use loom::thread;

/// Outcomes of all executions so far. Not part of the model, so loom does not track it.
#[derive(Clone, Default)]
struct Outcomes(Arc<std::sync::Mutex<BTreeSet<&'static str>>>);

impl Outcomes {
    fn add(&self, outcome: &'static str) {
        self.0.lock().unwrap().insert(outcome);
    }
}

/// Runs every execution of the model with up to `preemptions` preemptions, and checks that their outcomes are exactly
/// `expected`. A thread of the model that uses a futex has to be joined by it, because loom drops its statics, and so
/// the model of the kernel, when `model` returns.
fn explore<const N: usize>(
    preemptions: usize,
    expected: [&'static str; N],
    model: impl Fn(&Outcomes) + Send + Sync + 'static,
) {
    let outcomes = Outcomes::default();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    let inner = outcomes.clone();
    builder.check(move || model(&inner));
    assert_eq!(*outcomes.0.lock().unwrap(), BTreeSet::from(expected));
}
