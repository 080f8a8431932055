// SPDX-License-Identifier: LGPL-2.1-or-later
//! The hostile subscribers. Each of them repeats one attack until it is killed.
//!
//! They run when nothing else does (`SCHED_IDLE`) and pause between rounds, because any process can use up CPU time without
//! cuframes.

use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cuframes::protocol::message::Message;
use cuframes::shm::layout::{PageHeader, READER_IN_USE, READER_LOSSLESS, ReaderWords};
use cuframes::{Interrupt, Mode, Start, Subscriber, SubscriberConfig, Wait};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};
use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;
use testing::raw::{RawPeer, RawSubscriber, at, hello_as};
use testing::{ReadableWords, exit_with_parent, report};

/// All attacks. A process carries out each of them.
pub(crate) const ALL: &[&str] = &[
    "capture-sleepers",
    "wake-sleepers",
    "read-welcome-only",
    "read-nothing",
    "send-nothing",
    "join-and-leave",
    "flood-with-hello",
    "fork-and-drop",
    "claim-at-random",
    "claim-and-release",
    "leave-again",
    "half-close",
    "forge-readers",
];

/// Pause between two rounds of an attack.
const PAUSE: Duration = Duration::from_millis(1);
/// Time for which an attacker keeps connections or a page before it takes new ones.
const STAY: Duration = Duration::from_millis(500);

/// What an attacker knows.
struct Attacker {
    dir: PathBuf,
    mode: Mode,
    /// State of the generator of random numbers.
    random: u64,
}

pub(crate) fn run(dir: &Path, attack: &str, mode: &str) {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads the parameters, and only changes the priority of this process.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameters) };
    assert_eq!(result, 0);
    let mode = if mode == "strict" { Mode::Strict } else { Mode::Newest };
    let mut attacker = Attacker { dir: dir.to_owned(), mode, random: std::process::id().into() };
    let round: fn(&mut Attacker) = match attack {
        "capture-sleepers" => |a| a.attack_sleepers(ReadableWords::capture),
        "wake-sleepers" => |a| a.attack_sleepers(ReadableWords::wake),
        "read-welcome-only" => Attacker::read_welcome_only,
        "read-nothing" => Attacker::read_nothing,
        "send-nothing" => Attacker::send_nothing,
        "join-and-leave" => Attacker::join_and_leave,
        "flood-with-hello" => Attacker::flood_with_hello,
        "fork-and-drop" => Attacker::fork_and_drop,
        "claim-at-random" => Attacker::claim_at_random,
        "claim-and-release" => Attacker::claim_and_release,
        "leave-again" => Attacker::leave_again,
        "half-close" => Attacker::half_close,
        "forge-readers" => Attacker::forge_readers,
        other => panic!("{other}?"),
    };
    report("ready");
    loop {
        round(&mut attacker);
        std::thread::sleep(PAUSE);
    }
}

/// Runs `round` with pauses, for as long as an attacker stays.
fn repeatedly(mut round: impl FnMut()) {
    let began = Instant::now();
    while began.elapsed() < STAY {
        round();
        std::thread::sleep(PAUSE);
    }
}

impl Attacker {
    fn hello(&self, credit: u32) -> Vec<u8> {
        hello_as(self.mode, credit, "hostile")
    }

    fn join(&self, credit: u32) -> Option<RawSubscriber> {
        RawSubscriber::join(&self.dir, &self.hello(credit))
    }

    fn connect(&self) -> Option<RawPeer> {
        RawPeer::try_connect(&self.dir).ok()
    }

    fn random(&mut self) -> u64 {
        self.random =
            self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.random >> 16
    }

    fn toss(&mut self) -> bool {
        self.random().is_multiple_of(2)
    }

    /// Attacks the sleepers on every word of every mapping.
    fn attack_sleepers(&mut self, attack: fn(&ReadableWords, usize) -> usize) {
        /// Words attacked in one round: all of the headers, and as many of the rest.
        const WORDS: usize = 1024;
        let Some(hostile) = self.join(1) else { return };
        let announced = std::iter::from_fn(|| hostile.peer.receive()).flat_map(|(_, fds)| fds);
        // A chunk and the track.
        let fds: Vec<Arc<OwnedFd>> = announced.take(2).collect();
        let all = fds.iter().chain([&hostile.control, &hostile.page.fd]);
        let all: Vec<_> = all.filter_map(|fd| ReadableWords::map(fd).ok()).collect();
        let mut at = 0;
        repeatedly(|| {
            for words in &all {
                let rest = (at..at + WORDS).map(|word| word % words.len());
                (0..WORDS.min(words.len())).chain(rest).for_each(|word| {
                    attack(words, word);
                });
            }
            at += WORDS;
        });
    }

    fn read_welcome_only(&mut self) {
        let deaf: Vec<_> = (0..6).map(|_| self.join(1)).collect();
        std::thread::sleep(STAY);
        drop(deaf);
    }

    fn read_nothing(&mut self) {
        let mute: Vec<_> = (0..4).filter_map(|_| self.connect()).collect();
        for peer in &mute {
            peer.send(&self.hello(1), &[]);
        }
        std::thread::sleep(STAY);
    }

    fn send_nothing(&mut self) {
        let silent: Vec<_> = (0..8).map(|_| self.connect()).collect();
        std::thread::sleep(STAY);
        drop(silent);
    }

    fn join_and_leave(&mut self) {
        if let Some(hostile) = self.join(8)
            && self.toss()
        {
            hostile.peer.send(&Message::Leave.encode(), &[]);
        }
    }

    fn flood_with_hello(&mut self) {
        for _ in 0..8 {
            let Some(peer) = self.connect() else { return };
            let mut hello = self.hello(2);
            if self.toss() {
                let at = self.random() as usize % hello.len();
                hello[at] = self.random() as u8;
            }
            // Any further HELLO is a reason for an eviction.
            for _ in 0..2 {
                peer.send(&hello, &[]);
            }
        }
    }

    /// Subscribes, and lets two processes drop everything.
    fn fork_and_drop(&mut self) {
        let interrupt = Interrupt::new().unwrap();
        let config = SubscriberConfig {
            runtime_dir: Some(self.dir.clone()),
            name: "hostile".into(),
            max_frames: 2,
            mode: Mode::Newest,
            ..SubscriberConfig::new("cam")
        };
        let joined = Subscriber::connect(config, Some(Duration::ZERO), &interrupt);
        let Ok(mut subscriber) = joined else { return };
        let wait = Wait { timeout: Some(STAY), ..Wait::default() };
        let frame = subscriber.next_frame(&wait);
        let reader = subscriber.packets(0, Start::LatestKeyframe);
        let everything = (frame, reader, subscriber);
        // SAFETY: the forked process uses only its copy of the values, and exits. glibc permits it to free memory.
        match unsafe { nix::unistd::fork() }.unwrap() {
            ForkResult::Child => {
                let _ = exit_with_parent(Signal::SIGKILL);
                let failed = catch_unwind(AssertUnwindSafe(|| drop(everything))).is_err();
                // SAFETY: `_exit` only ends the process.
                unsafe { libc::_exit(failed.into()) }
            }
            ForkResult::Parent { child } => {
                drop(everything);
                let _ = waitpid(child, None);
            }
        }
    }

    fn claim_at_random(&mut self) {
        let Some(hostile) = self.join(2) else { return };
        let page = &hostile.page;
        repeatedly(|| {
            for word in 0..page.words() {
                let value = match self.random() % 16 {
                    0..8 => 0,
                    8 => u64::MAX,
                    _ => self.random(),
                };
                // A publisher that waits takes the readers' words seriously: see `forge_readers`.
                if self.mode == Mode::Strict || word * 8 >= at::CLAIMS {
                    page.set(word * 8, &[value]);
                }
            }
        });
    }

    /// Claims all slots for a moment, again and again.
    fn claim_and_release(&mut self) {
        let crowd: Vec<_> = (0..3).filter_map(|_| self.join(1)).collect();
        let claim = |claim: u64| {
            for RawSubscriber { page, .. } in &crowd {
                (at::CLAIMS / 8..page.words()).for_each(|word| page.set(word * 8, &[claim]));
            }
        };
        repeatedly(|| {
            (1..20).for_each(|n| claim(n % 2));
            claim(1);
        });
    }

    fn leave_again(&mut self) {
        let Some(hostile) = self.join(1) else { return };
        let leave = Message::Leave.encode();
        // Without blocking, because the publisher reads only the first.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        repeatedly(|| {
            for _ in 0..50 {
                let _ = send(hostile.peer.0.as_raw_fd(), &leave, flags);
            }
        });
    }

    fn half_close(&mut self) {
        let mut closed = Vec::new();
        for how in [Shutdown::Read, Shutdown::Write, Shutdown::Both] {
            let joined = self.join(1).map(|joined| joined.peer);
            closed.extend([joined, self.connect()].into_iter().flatten().inspect(|peer| {
                let _ = shutdown(peer.0.as_raw_fd(), how);
            }));
        }
        std::thread::sleep(STAY);
    }

    /// Writes false positions of packet readers, and sleepers that do not sleep.
    fn forge_readers(&mut self) {
        let Some(hostile) = self.join(0) else { return };
        let page = &hostile.page;
        let first = std::mem::offset_of!(PageHeader, readers);
        // A publisher that waits does so for any reader that says it needs it.
        let lossless = if self.mode == Mode::Strict { READER_LOSSLESS } else { 0 };
        repeatedly(|| {
            for entry in (first..at::CLAIMS).step_by(size_of::<ReaderWords>()) {
                (0..size_of::<ReaderWords>() / 8).for_each(|word| {
                    let value = self.random();
                    page.word(entry + 8 * word).store(value, Ordering::Relaxed);
                });
                let track = (self.random() % 2) | READER_IN_USE | lossless;
                page.word(entry).store(track, Ordering::Release);
            }
            page.set(std::mem::offset_of!(PageHeader, sleeping), &[self.random()]);
        });
    }
}
