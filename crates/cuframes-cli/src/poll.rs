// SPDX-License-Identifier: LGPL-2.1-or-later
//! Polls the publishers of all live keys.

use cuframes::info::PublisherStatus;
use cuframes::runtime_dirs;
use cuframes::{Error, LiveKey};

use crate::Options;

/// A live key and the status that its publisher reported.
pub(crate) struct Snapshot {
    pub(crate) key: LiveKey,
    pub(crate) status: Result<PublisherStatus, Error>,
}

/// Requests the status of all publishers, sorted by key.
///
/// Each publisher is polled on its own thread, so that one that hangs delays the result by its timeout
/// only and leaves the other results unaffected.
pub(crate) fn poll_all(options: &Options) -> Vec<Snapshot> {
    let keys = cuframes::keys(options.runtime_dir.as_deref());
    let poll = |key: &LiveKey| cuframes::status(&key.key, Some(&key.dir));
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = keys.iter().map(|key| scope.spawn(move || poll(key))).collect();
        threads.into_iter().map(|t| t.join().expect("a status request does not panic")).collect()
    });
    let snapshots = keys.into_iter().zip(results).map(|(key, status)| Snapshot { key, status });
    snapshots.filter(|s| !ended_meanwhile(s)).collect()
}

/// Returns whether the publisher ended after its key was listed. This is no error.
fn ended_meanwhile(snapshot: &Snapshot) -> bool {
    matches!(snapshot.status, Err(Error::NoPublisher { .. }))
        && !cuframes::keys(Some(&snapshot.key.dir)).contains(&snapshot.key)
}

/// Returns the status that an earlier poll has for the key of `snapshot`.
pub(crate) fn previous_status<'a>(
    earlier: &'a [Snapshot],
    snapshot: &Snapshot,
) -> Option<&'a PublisherStatus> {
    earlier.iter().find(|e| e.key == snapshot.key).and_then(|e| e.status.as_ref().ok())
}

/// Returns the message for a poll that found no live key.
pub(crate) fn no_keys_message(options: &Options) -> String {
    let dirs: Vec<_> = runtime_dirs(options.runtime_dir.as_deref())
        .iter()
        .map(|dir| dir.display().to_string())
        .collect();
    format!(
        "Nothing is published in {}: start a publisher with cuframessink, or set another directory with --runtime-dir\n",
        dirs.join(" ")
    )
}
