//! What the sources of one bin have in common that read tracks of one publisher: a recorder's video and
//! audio.
//!
//! Packets are older than the pipeline that begins with them, so all of them are delayed: by as much for
//! one track as for the other. And they begin together: the source with the lowest track number leads,
//! and the others begin with the first keyframe that is not before the leader's first packet.

use std::sync::{Arc, Mutex, OnceLock, Weak};

use gst::glib;
use gst::prelude::*;

use cuframes::sync::interrupt::Doorbell;
use cuframes::sync::lock;

/// Lives of a publisher that are remembered: the sources notice one after the other that it has changed.
const LIVES: usize = 4;

/// Where a session is, while it has members.
struct Known {
    bin: glib::WeakRef<gst::Object>,
    key: String,
    session: Weak<Session>,
}

static SESSIONS: Mutex<Vec<Known>> = Mutex::new(Vec::new());

#[derive(Debug, Default)]
struct State {
    /// The tracks that are read, and what wakes who waits for the leader.
    members: Vec<(u32, Arc<Doorbell>)>,
    /// How much later than real time everything is; kept for good, so that nothing overlaps.
    delay: i64,
    lives: Vec<Life>,
}

/// One life of the publisher.
#[derive(Debug)]
struct Life {
    epoch: u64,
    /// What fits its timestamps to real time.
    shift: Option<i64>,
    /// The PTS of the leader's first packet.
    begin: Arc<OnceLock<i64>>,
}

impl State {
    fn life(&mut self, epoch: u64) -> &mut Life {
        let at = self.lives.iter().position(|life| life.epoch == epoch).unwrap_or_else(|| {
            if self.lives.len() == LIVES {
                self.lives.remove(0);
            }
            self.lives.push(Life { epoch, shift: None, begin: Arc::default() });
            self.lives.len() - 1
        });
        &mut self.lives[at]
    }

    fn leader(&self) -> Option<u32> {
        self.members.iter().map(|(track, _)| *track).min()
    }

    /// Who waits for a leader that is gone waits no more, and takes what there is.
    fn let_go(&self) {
        for life in &self.lives {
            life.begin.get_or_init(|| i64::MIN);
        }
        self.wake();
    }

    fn wake(&self) {
        self.members.iter().for_each(|(_, bell)| bell.ring());
    }
}

#[derive(Debug, Default)]
pub struct Session(Mutex<State>);

impl Session {
    /// The session of an element's bin and key.
    pub fn of(element: &impl IsA<gst::Object>, key: &str) -> Arc<Self> {
        let parent = element.as_ref().parent().unwrap_or_else(|| element.as_ref().clone());
        let mut all = lock(&SESSIONS);
        all.retain(|known| known.session.strong_count() > 0);
        let same = |k: &Known| k.bin.upgrade().as_ref() == Some(&parent) && k.key == key;
        let known = all.iter().filter(|k| same(k)).find_map(|k| k.session.upgrade());
        known.unwrap_or_else(|| {
            let session = Arc::new(Self::default());
            let (bin, key) = (parent.downgrade(), key.to_owned());
            all.push(Known { bin, key, session: Arc::downgrade(&session) });
            session
        })
    }

    pub fn enter(&self, track: u32, bell: &Arc<Doorbell>) {
        lock(&self.0).members.push((track, bell.clone()));
    }

    pub fn leave(&self, track: u32, bell: &Arc<Doorbell>) {
        let mut state = lock(&self.0);
        let led = state.leader();
        state.members.retain(|(t, b)| *t != track || !Arc::ptr_eq(b, bell));
        if state.leader() != led {
            state.let_go();
        }
    }

    /// When the leader begins in this life of the publisher; `None` for the leader itself.
    pub fn follow(&self, track: u32, epoch: u64) -> Option<Arc<OnceLock<i64>>> {
        let mut state = lock(&self.0);
        let leads = state.leader().is_none_or(|leader| leader == track);
        let begin = state.life(epoch).begin.clone();
        (!leads).then_some(begin)
    }

    /// The leader begins with a packet of this PTS.
    pub fn begin(&self, epoch: u64, pts: i64) {
        let mut state = lock(&self.0);
        if state.life(epoch).begin.set(pts).is_ok() {
            state.wake();
        }
    }

    /// What has to be added to the publisher's times to get running times, `origin` being the time at
    /// which those are 0. `shift` says what fits the first packet to real time; `first` is its time.
    pub fn distance(
        &self,
        epoch: u64,
        first: i64,
        origin: i64,
        shift: impl FnOnce() -> i64,
    ) -> i64 {
        let mut state = lock(&self.0);
        // Another process says what these are.
        let shift = *state.life(epoch).shift.get_or_insert_with(shift);
        // No packet is older than the clock.
        let begin = first.saturating_add(shift).max(0);
        state.delay = state.delay.max(origin.saturating_sub(begin));
        shift.saturating_sub(origin).saturating_add(state.delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_makes_a_session_later_than_its_clock() {
        let session = Session::default();
        let origin = 1_000;
        for time in [i64::MIN, -1, 0, i64::MAX] {
            for (epoch, shift) in [(1, i64::MIN), (2, 0), (3, i64::MAX)] {
                session.distance(epoch, time, origin, || shift);
            }
        }
        // One that is 10 ns old when the pipeline starts.
        let distance = session.distance(4, 990, origin, || 0);
        assert!((10 - origin..=0).contains(&distance), "{distance}");
    }
}
