// SPDX-License-Identifier: LGPL-2.1-or-later
//! A publisher and eight honest subscribers, first alone and then among hostile subscribers, each in a process of its own.
//! All of them are processes of one user without rights, because Linux exempts root from limits.
//!
//! Numbers in frames and packets show their order, losses and tearing. What has to hold on every machine is always
//! checked: no honest subscriber is evicted or falls silent, no frame is torn, a publisher that waits drops nothing and its
//! strict subscribers receive everything, and the publisher ends while the attacks continue. Losses and the longest gap
//! between two frames also depend on what else the machine does. They are printed, and compared with those of the calm
//! phase if the phases are long. Gaps and losses do not count as far as a process waited for a CPU.
//!
//! `CUFRAMES_SECONDS` sets the length of a phase. `make siege` runs long ones.

mod attackers;
mod honest;
mod moment;
mod publisher;

use std::fmt;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use cuframes::sync::lock;
use nix::sys::resource::Resource;
use testing::{Child, TestDir, Watchdog, drop_root, limit};

/// Where the test `child` is.
const MODULE: &str = module_path!();

/// Length of a phase by default, in seconds.
const SHORT: u64 = 4;
/// Length from which on a phase tells enough to compare losses and gaps, in seconds.
const LONG: u64 = 60;
/// Frames, and packets, per second.
const RATE: u64 = 100;
const INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / RATE);
/// Time after which a test counts as hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// The tests run one after the other.
static ALONE: Mutex<()> = Mutex::new(());

/// Plays the role of a child.
#[test]
fn child() {
    let Some((role, dir)) = testing::role() else { return };
    drop_root();
    limit(Resource::RLIMIT_NOFILE, 1024);
    match role.split(' ').collect::<Vec<_>>()[..] {
        ["publish", policy, items] => publisher::run(&dir, policy, items.parse().unwrap()),
        ["honest", what, mode] => honest::run(&dir, what, mode),
        ["hostile", attack, mode] => attackers::run(&dir, attack, mode),
        _ => panic!("{role}?"),
    }
}

#[test]
fn publisher_that_drops_withstands_siege() {
    besiege("drop", "strict");
}

/// A strict subscriber may delay such a publisher on purpose, for as long as `wait-timeout`. So the attackers are not
/// strict.
#[test]
fn publisher_that_waits_withstands_siege() {
    besiege("wait", "newest");
}

fn besiege(policy: &str, hostile_mode: &str) {
    let _alone = lock(&ALONE);
    let seconds = std::env::var("CUFRAMES_SECONDS");
    let seconds = seconds.map_or(SHORT, |n| n.parse().expect("CUFRAMES_SECONDS is a number"));
    let phase = |name: &str, attacks: &[&str]| {
        let results = run_phase(policy, seconds, attacks, hostile_mode);
        println!("{name}, policy={policy}, {seconds} s\n{results}");
        results
    };
    let calm = phase("calm", &[]);
    let siege = phase("siege", attackers::ALL);
    if seconds >= LONG {
        // One in a thousand may be the machine's fault: the publisher's thread that wakes subscribers needs a CPU, too.
        let sent = seconds * RATE * honest::ALL.len() as u64;
        let allowed = calm.lost() + sent / 1000;
        assert!(siege.lost() <= allowed, "{} lost, {} when calm", siege.lost(), calm.lost());
        let (dropped, calm_dropped) = (siege.publisher.dropped, calm.publisher.dropped);
        assert!(dropped <= calm_dropped, "{dropped} dropped, {calm_dropped} when calm");
        let (gap, calm_gap) = (siege.publisher.longest_gap, calm.publisher.longest_gap);
        assert!(gap < 2 * calm_gap, "no frame for {gap:?}, {calm_gap:?} when calm");
    }
}

/// What a publisher reports.
struct Published {
    frames: u64,
    dropped: u64,
    longest_gap: Duration,
    /// The longest time that publishing a frame and a packet took. Shows whether cuframes causes a gap.
    longest_call: Duration,
}

/// What an honest subscriber reports.
struct Taken {
    received: u64,
    lost: u64,
    /// Lost items that the subscriber could not take for lack of a CPU.
    excused: u64,
    longest_gap: Duration,
}

struct Results {
    publisher: Published,
    honest: Vec<Taken>,
}

impl Results {
    /// Number of frames and packets that honest subscribers missed although they had a CPU, and of frames that were not
    /// published.
    fn lost(&self) -> u64 {
        self.publisher.dropped + self.honest.iter().map(|t| t.lost - t.excused).sum::<u64>()
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Published { frames, dropped, longest_gap, longest_call } = &self.publisher;
        write!(f, "  publisher: {frames} frames, {dropped} dropped, ")?;
        writeln!(f, "gap {longest_gap:?}, longest call {longest_call:?}")?;
        for ([what, mode], taken) in honest::ALL.iter().zip(&self.honest) {
            let Taken { received, lost, excused, longest_gap } = taken;
            write!(f, "  {what} {mode}: {received} received, {lost} lost, ")?;
            writeln!(f, "{excused} of them for lack of a CPU, gap {longest_gap:?}")?;
        }
        Ok(())
    }
}

/// Reports of a child, read by a thread.
struct Reports {
    name: String,
    child: Child,
    lines: Receiver<String>,
}

impl Reports {
    fn start(role: String, dir: &TestDir) -> Self {
        let mut child = Child::start(MODULE, &role, &dir.dir);
        let (sender, lines) = channel();
        child.read_in_thread(move |line| drop(sender.send(line.to_owned())));
        Self { name: role, child, lines }
    }

    /// Returns the next report, which has to come within `limit`.
    #[track_caller]
    fn next(&self, limit: Duration) -> String {
        let line = self.lines.recv_timeout(limit);
        line.unwrap_or_else(|e| panic!("'{}' does not answer: {e}", self.name))
    }

    /// Returns the next report as numbers.
    #[track_caller]
    fn numbers<const N: usize>(&self, limit: Duration) -> [u64; N] {
        let line = self.next(limit);
        let numbers: Vec<u64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
        numbers.try_into().unwrap()
    }
}

fn run_phase(policy: &str, seconds: u64, attacks: &[&str], hostile_mode: &str) -> Results {
    let time = Duration::from_secs(seconds);
    let _watchdog = Watchdog::with_limit("siege", time + 4 * PATIENCE);
    let test = TestDir::no_timeout("siege").unprivileged();
    let items = seconds * RATE;
    let mut publisher = Reports::start(format!("publish {policy} {items}"), &test);
    assert_eq!(publisher.next(PATIENCE), "ready");
    let start = |[what, mode]: &[&str; 2]| Reports::start(format!("honest {what} {mode}"), &test);
    let mut honest: Vec<_> = honest::ALL.iter().map(start).collect();
    honest.iter().for_each(|one| assert_eq!(one.next(PATIENCE), "ready"));
    let start = |attack: &&str| Reports::start(format!("hostile {attack} {hostile_mode}"), &test);
    let hostile: Vec<_> = attacks.iter().map(start).collect();
    hostile.iter().for_each(|one| assert_eq!(one.next(PATIENCE), "ready"));

    publisher.child.resume();
    let [frames, dropped, gap_us, call_us] = publisher.numbers(time + PATIENCE);
    let [longest_gap, longest_call] = [gap_us, call_us].map(Duration::from_micros);
    let published = Published { frames, dropped, longest_gap, longest_call };
    if policy == "wait" {
        assert_eq!(dropped, 0, "a publisher that waits drops no frame");
    }
    let taken = honest.iter().map(|one| {
        let [received, lost, excused, gap_us] = one.numbers(PATIENCE);
        let longest_gap = Duration::from_micros(gap_us);
        if policy == "wait" && one.name.ends_with("strict") {
            let sent = if one.name.contains("frames") { frames } else { items };
            assert_eq!((received, lost), (sent, 0), "{}", one.name);
        }
        assert!(received > 0);
        Taken { received, lost, excused, longest_gap }
    });
    let taken = taken.collect();
    honest.iter_mut().for_each(|one| one.child.resume());
    // The attacks continue.
    publisher.child.resume();
    assert_eq!(publisher.next(PATIENCE), "closed");
    publisher.child.finish();
    honest.into_iter().for_each(|one| one.child.finish());
    // An attack that failed would have attacked nothing.
    for mut one in hostile {
        assert!(!one.child.has_ended(), "'{}' ended", one.name);
        one.child.kill();
    }
    Results { publisher: published, honest: taken }
}
