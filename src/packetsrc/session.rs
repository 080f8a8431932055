// SPDX-License-Identifier: LGPL-2.1-or-later
//! Synchronization of the packet sources of one bin that read tracks of the same publisher, such as a
//! recorder's video and audio.
//!
//! All sources of a session start together. The source with the lowest track number is the leader. The
//! others start at their first keyframe that is not older than the leader's first packet.
//!
//! All sources are delayed by the same time, because their first packets are older than the pipeline.

use std::sync::{Arc, Mutex, OnceLock, Weak};

use gst::glib;
use gst::prelude::*;

use cuframes::sync::interrupt::Doorbell;
use cuframes::sync::lock;

/// Number of publisher epochs that a session remembers. Its sources notice a restarted publisher one
/// after the other.
const EPOCHS: usize = 4;

/// A session that has members.
struct Entry {
    bin: glib::WeakRef<gst::Object>,
    key: String,
    session: Weak<Session>,
}

static SESSIONS: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// A source of the session.
#[derive(Debug)]
struct Member {
    track: u32,
    /// Wakes the source while it waits for the leader.
    bell: Arc<Doorbell>,
}

#[derive(Debug, Default)]
struct State {
    members: Vec<Member>,
    /// Delay of all tracks against real time. It never decreases, so that packets don't overlap.
    delay_ns: i64,
    epochs: Vec<Epoch>,
}

/// What the members agreed on for one epoch of the publisher, that is, from its start to its stop.
#[derive(Debug)]
struct Epoch {
    id: u64,
    /// Matches the publisher's timestamps to real time.
    skew_ns: Option<i64>,
    /// PTS of the leader's first packet.
    start: Arc<OnceLock<i64>>,
}

impl State {
    fn epoch(&mut self, id: u64) -> &mut Epoch {
        let index = self.epochs.iter().position(|epoch| epoch.id == id).unwrap_or_else(|| {
            if self.epochs.len() == EPOCHS {
                self.epochs.remove(0);
            }
            self.epochs.push(Epoch { id, skew_ns: None, start: Arc::default() });
            self.epochs.len() - 1
        });
        &mut self.epochs[index]
    }

    fn leader(&self) -> Option<u32> {
        self.members.iter().map(|member| member.track).min()
    }

    /// Lets the members start that wait for a leader that has left, each at its first keyframe.
    fn release_followers(&self) {
        for epoch in &self.epochs {
            epoch.start.get_or_init(|| i64::MIN);
        }
        self.wake_members();
    }

    fn wake_members(&self) {
        self.members.iter().for_each(|member| member.bell.ring());
    }
}

/// The sources of one bin and key.
#[derive(Debug, Default)]
pub(super) struct Session(Mutex<State>);

impl Session {
    /// Returns the session of an element's bin and key, and creates it for the first member.
    pub(super) fn of(element: &impl IsA<gst::Object>, key: &str) -> Arc<Self> {
        let parent = element.as_ref().parent().unwrap_or_else(|| element.as_ref().clone());
        let mut sessions = lock(&SESSIONS);
        sessions.retain(|entry| entry.session.strong_count() > 0);
        let same = |e: &Entry| e.bin.upgrade().as_ref() == Some(&parent) && e.key == key;
        let existing = sessions.iter().filter(|e| same(e)).find_map(|e| e.session.upgrade());
        existing.unwrap_or_else(|| {
            let session = Arc::new(Self::default());
            let (bin, key) = (parent.downgrade(), key.to_owned());
            sessions.push(Entry { bin, key, session: Arc::downgrade(&session) });
            session
        })
    }

    /// Adds a member.
    pub(super) fn enter(&self, track: u32, bell: &Arc<Doorbell>) {
        lock(&self.0).members.push(Member { track, bell: bell.clone() });
    }

    /// Removes a member. If it was the leader, the other members stop waiting for it.
    pub(super) fn leave(&self, track: u32, bell: &Arc<Doorbell>) {
        let mut state = lock(&self.0);
        let leader = state.leader();
        state.members.retain(|m| m.track != track || !Arc::ptr_eq(&m.bell, bell));
        if state.leader() != leader {
            state.release_followers();
        }
    }

    /// Returns the cell that gets the PTS of the leader's first packet in this epoch of the publisher;
    /// `None` for the leader itself.
    pub(super) fn leader_start(&self, track: u32, epoch: u64) -> Option<Arc<OnceLock<i64>>> {
        let mut state = lock(&self.0);
        let leads = state.leader().is_none_or(|leader| leader == track);
        let start = state.epoch(epoch).start.clone();
        (!leads).then_some(start)
    }

    /// Sets the PTS of the leader's first packet, and wakes the members that wait for it.
    pub(super) fn set_start(&self, epoch: u64, pts_ns: i64) {
        let mut state = lock(&self.0);
        if state.epoch(epoch).start.set(pts_ns).is_ok() {
            state.wake_members();
        }
    }

    /// Returns the value to add to the publisher's times to get running times, in ns.
    ///
    /// `first_ns` is the time of the member's first packet. `offset_ns` is the published time at running
    /// time 0. `skew_ns` is called for the first packet of an epoch, and matches it to real time.
    pub(super) fn to_running_time(
        &self,
        epoch: u64,
        first_ns: i64,
        offset_ns: i64,
        skew_ns: impl FnOnce() -> i64,
    ) -> i64 {
        let mut state = lock(&self.0);
        // Saturating and clamped, because these times come from another process. No packet is older
        // than CLOCK_MONOTONIC.
        let skew_ns = *state.epoch(epoch).skew_ns.get_or_insert_with(skew_ns);
        let first_ns = first_ns.saturating_add(skew_ns).max(0);
        state.delay_ns = state.delay_ns.max(offset_ns.saturating_sub(first_ns));
        skew_ns.saturating_sub(offset_ns).saturating_add(state.delay_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_delay_is_bounded_by_clock() {
        let session = Session::default();
        let offset = 1_000;
        for time in [i64::MIN, -1, 0, i64::MAX] {
            for (epoch, skew) in [(1, i64::MIN), (2, 0), (3, i64::MAX)] {
                session.to_running_time(epoch, time, offset, || skew);
            }
        }
        // The packet is 10 ns old when the pipeline starts.
        let shift = session.to_running_time(4, 990, offset, || 0);
        assert!((10 - offset..=0).contains(&shift), "{shift}");
    }
}
