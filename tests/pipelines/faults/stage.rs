// SPDX-License-Identifier: LGPL-2.1-or-later
//! The schedule of faults, and the reports of the processes.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use cuframes::sync::clock::now_ns;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket,
};
use testing::Child;

use super::{MODULE, SUBSCRIBERS};

/// A round that takes longer has hung.
const LIMIT: Duration = Duration::from_secs(60);

/// Random numbers that a seed determines.
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) ^ self.0 >> 11
    }

    fn below(&mut self, n: u64) -> u64 {
        self.throw() % n
    }

    fn pause(&mut self, most_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.below(most_ms + 1)));
    }
}

/// A line that a child reported.
struct Report {
    actor: usize,
    text: String,
}

struct Actor {
    child: Child,
    id: usize,
    /// Time of its last fault, ns of CLOCK_MONOTONIC. Later losses need another explanation.
    undisturbed_since_ns: i64,
    stopped: bool,
}

impl Actor {
    fn stop(&mut self) {
        self.child.signal(Signal::SIGSTOP);
        self.stopped = true;
    }

    /// Continues the process if it was stopped. Returns whether it was.
    fn resume(&mut self) -> bool {
        let stopped = std::mem::take(&mut self.stopped);
        if stopped {
            self.child.signal(Signal::SIGCONT);
        }
        stopped
    }
}

/// One key, its publisher and its subscribers.
struct Camera {
    key: String,
    /// Counts the publishers of the key.
    life: u32,
    publisher: Actor,
    /// When each publisher became available for subscribers. CLOCK_MONOTONIC.
    up_ns: BTreeMap<u32, i64>,
    subscribers: Vec<Actor>,
    /// Index of the subscriber that releases nothing, at present.
    holds: Option<usize>,
}

impl Camera {
    fn actors(&mut self) -> impl Iterator<Item = &mut Actor> {
        std::iter::once(&mut self.publisher).chain(&mut self.subscribers)
    }
}

/// What the processes reported, summed up.
#[derive(Default)]
pub(super) struct Figures {
    rounds: u64,
    faults: BTreeMap<&'static str, u64>,
    received: u64,
    missed: u64,
    /// From when a new publisher was available to its first frame or packet at a subscriber.
    resumes_ns: Vec<i64>,
    /// The longest time between two frames of publishers that were not stopped.
    slowest_ns: i64,
    /// Processes that ended with the resources that they began with.
    clean: u64,
}

impl Figures {
    pub(super) fn print(mut self, seed: u64, time: Duration) {
        self.resumes_ns.sort_unstable();
        let resume = |q: f64| {
            let at = (self.resumes_ns.len().saturating_sub(1) as f64 * q).round() as usize;
            self.resumes_ns.get(at).copied().unwrap_or(0) as f64 / 1e6
        };
        println!("seed {seed}, {} rounds in {} s", self.rounds, time.as_secs());
        for (fault, count) in &self.faults {
            println!("  {count:6}  {fault}");
        }
        println!("received {}, missed and counted {}, torn 0", self.received, self.missed);
        println!(
            "resumed {} times, {:.1} ms p50, {:.1} ms p99, {:.1} ms at most",
            self.resumes_ns.len(),
            resume(0.5),
            resume(0.99),
            resume(1.0)
        );
        let slowest = self.slowest_ns as f64 / 1e6;
        println!("longest time between two frames of a publisher: {slowest:.1} ms");
        println!("{} processes ended with what they began with, leaks 0", self.clean);
    }
}

pub(super) struct Stage<'a> {
    dir: &'a Path,
    sender: Sender<Report>,
    receiver: Receiver<Report>,
    next_id: usize,
    cameras: Vec<Camera>,
    pub(super) figures: Figures,
    dice: Dice,
    /// Reports of what must not happen.
    wrong: Vec<String>,
    /// The last answer of each actor: the ping, and the life of the publisher that it sees.
    pongs: BTreeMap<usize, (String, u32)>,
    /// When each publisher became available, by actor. CLOCK_MONOTONIC.
    up_ns: BTreeMap<usize, i64>,
    round_began: Instant,
}

impl<'a> Stage<'a> {
    pub(super) fn new(dir: &'a Path, seed: u64) -> Self {
        let (sender, receiver) = channel();
        Self {
            dir,
            sender,
            receiver,
            next_id: 0,
            cameras: Vec::new(),
            figures: Figures::default(),
            dice: Dice(seed),
            wrong: Vec::new(),
            pongs: BTreeMap::new(),
            up_ns: BTreeMap::new(),
            round_began: Instant::now(),
        }
    }

    pub(super) fn add_camera(&mut self, key: String) {
        let publisher = self.start_publisher(&key, 1);
        let subscribers =
            SUBSCRIBERS.map(|kind| self.start(&format!("subscribe {key} {kind}"))).into();
        let up_ns = BTreeMap::new();
        self.cameras.push(Camera { key, life: 1, publisher, up_ns, subscribers, holds: None });
    }

    /// Causes some faults, and waits until every subscriber has recovered.
    pub(super) fn round(&mut self) {
        self.figures.rounds += 1;
        self.round_began = Instant::now();
        for _ in 0..1 + self.dice.below(3) {
            let camera = self.dice.below(self.cameras.len() as u64) as usize;
            self.fault(camera);
            let pause = self.dice.below(100);
            self.receive(Duration::from_millis(pause));
        }
        if self.cameras.iter_mut().any(|camera| camera.actors().any(|actor| actor.stopped)) {
            let pause = self.dice.below(500);
            self.receive(Duration::from_millis(pause));
        }
        self.recover();
    }

    /// Ends all processes, and checks that each has the resources that it began with.
    pub(super) fn end(&mut self) {
        self.round_began = Instant::now();
        let (mut publishers, mut subscribers) = (Vec::new(), Vec::new());
        for camera in std::mem::take(&mut self.cameras) {
            publishers.push(camera.publisher);
            subscribers.extend(camera.subscribers);
        }
        // Subscribers first: afterwards a publisher has to have its initial resources.
        for mut actors in [subscribers, publishers] {
            let clean = self.figures.clean + actors.len() as u64;
            for actor in &mut actors {
                actor.child.send_line("end");
            }
            while self.figures.clean < clean {
                self.receive(Duration::from_millis(5));
            }
            actors.into_iter().for_each(|actor| actor.child.wait());
        }
    }

    fn start(&mut self, role: &str) -> Actor {
        let mut child = Child::start(MODULE, role, self.dir);
        self.next_id += 1;
        let (id, sender) = (self.next_id, self.sender.clone());
        child.read_in_thread(move |text| {
            let _ = sender.send(Report { actor: id, text: text.to_owned() });
        });
        Actor { child, id, undisturbed_since_ns: now_ns(), stopped: false }
    }

    fn start_publisher(&mut self, key: &str, life: u32) -> Actor {
        let wide = if self.dice.below(2) == 0 { "wide" } else { "narrow" };
        self.start(&format!("publish {key} {life} {wide}"))
    }

    /// Takes reports for `time`.
    fn receive(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while let Ok(report) =
            self.receiver.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            self.note(&report);
        }
        if self.round_began.elapsed() > LIMIT {
            self.wrong.push(format!("round {} hangs", self.figures.rounds));
        }
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
    }

    fn note(&mut self, report: &Report) {
        let words: Vec<_> = report.text.split(' ').collect();
        let number = |n: usize| words[n].parse::<i64>().unwrap();
        match words[0] {
            "up" => drop(self.up_ns.insert(report.actor, number(2))),
            "life" => self.note_life(report.actor, number(1) as u32, number(2)),
            "pong" => {
                let life = number(2) as u32;
                self.pongs.insert(report.actor, (words[1].to_owned(), life));
            }
            "account" => {
                self.figures.received += number(1) as u64;
                self.figures.missed += number(2) as u64;
            }
            "slowest" => self.note_slowest(report.actor, number(1), number(2)),
            "clean" => self.figures.clean += 1,
            "ready" => {}
            // "wrong", "leak", "error" and anything else.
            _ => self.wrong.push(format!("{}: {}", report.actor, report.text)),
        }
    }

    /// A subscriber got the first frame or packet of a publisher.
    fn note_life(&mut self, actor: usize, life: u32, at_ns: i64) {
        for camera in &mut self.cameras {
            if let Some(up_ns) = self.up_ns.get(&camera.publisher.id) {
                camera.up_ns.insert(camera.life, *up_ns);
            }
            let Some(actor) = camera.subscribers.iter().find(|s| s.id == actor) else { continue };
            let Some(up_ns) = camera.up_ns.get(&life) else { continue };
            if actor.undisturbed_since_ns < *up_ns && !camera.publisher.stopped {
                self.figures.resumes_ns.push(at_ns - up_ns);
            }
        }
    }

    /// A publisher took this long for a frame, unless it was stopped meanwhile.
    fn note_slowest(&mut self, actor: usize, took_ns: i64, at_ns: i64) {
        let mut publishers = self.cameras.iter().map(|c| &c.publisher);
        let own = publishers.find(|p| p.id == actor);
        let whole = |p: &Actor| at_ns.saturating_sub(p.undisturbed_since_ns) > took_ns;
        if own.is_some_and(|p| !p.stopped && whole(p)) {
            self.figures.slowest_ns = self.figures.slowest_ns.max(took_ns);
        }
    }

    fn count(&mut self, fault: &'static str) {
        *self.figures.faults.entry(fault).or_default() += 1;
    }

    /// Causes a random fault of a camera.
    fn fault(&mut self, n: usize) {
        match self.dice.below(12) {
            0 | 1 => {
                self.count("publisher killed");
                self.restart_publisher(n, |old| old.child.signal(Signal::SIGKILL));
            }
            2 => {
                self.count("publisher ended");
                self.restart_publisher(n, |old| {
                    old.child.send_line("end");
                });
            }
            3 => self.replace_publisher(n),
            4 => {
                self.count("publisher stopped");
                self.cameras[n].publisher.stop();
            }
            5 => {
                self.count("caps changed");
                self.cameras[n].publisher.child.send_line("caps");
            }
            6 => self.kill_subscriber(n),
            7 | 8 => {
                self.count("subscriber stopped");
                self.any_subscriber(n).stop();
            }
            9 => {
                self.count("subscriber left and joined");
                let subscriber = self.any_subscriber(n);
                subscriber.undisturbed_since_ns = i64::MAX;
                subscriber.child.send_line("cycle");
            }
            10 => self.hold_frames(n),
            _ => self.send_random(n),
        }
    }

    fn any_subscriber(&mut self, n: usize) -> &mut Actor {
        let s = self.dice.below(SUBSCRIBERS.len() as u64) as usize;
        &mut self.cameras[n].subscribers[s]
    }

    /// Kills a publisher whose successor already waits for the key.
    fn replace_publisher(&mut self, n: usize) {
        self.count("publisher replaced");
        let (key, life) = (self.cameras[n].key.clone(), self.cameras[n].life + 1);
        let next = self.start_publisher(&key, life);
        self.dice.pause(300);
        let camera = &mut self.cameras[n];
        camera.life = life;
        std::mem::replace(&mut camera.publisher, next).child.kill();
    }

    /// Ends a publisher, waits for its end, and starts the next.
    fn restart_publisher(&mut self, n: usize, end: impl FnOnce(&mut Actor)) {
        let (key, life) = (self.cameras[n].key.clone(), self.cameras[n].life + 1);
        let old = &mut self.cameras[n].publisher;
        end(old);
        if old.stopped {
            old.child.signal(Signal::SIGCONT);
        }
        let began = Instant::now();
        while !self.cameras[n].publisher.child.has_ended() {
            self.receive(Duration::from_millis(1));
            assert!(began.elapsed() < LIMIT, "a publisher does not end");
        }
        self.dice.pause(100);
        let next = self.start_publisher(&key, life);
        let camera = &mut self.cameras[n];
        camera.life = life;
        camera.publisher = next;
    }

    fn kill_subscriber(&mut self, n: usize) {
        self.count("subscriber killed");
        // The first one lives to the end.
        let s = 1 + self.dice.below(SUBSCRIBERS.len() as u64 - 1) as usize;
        let role = format!("subscribe {} {}", self.cameras[n].key, SUBSCRIBERS[s]);
        let next = self.start(&role);
        let camera = &mut self.cameras[n];
        camera.holds = camera.holds.filter(|h| *h != s);
        std::mem::replace(&mut camera.subscribers[s], next).child.kill();
    }

    fn hold_frames(&mut self, n: usize) {
        self.count("subscriber held all it got");
        let s = self.dice.below(SUBSCRIBERS.len() as u64) as usize;
        let camera = &mut self.cameras[n];
        if let Some(held) = camera.holds.replace(s) {
            camera.subscribers[held].child.send_line("release");
        }
        camera.subscribers[s].child.send_line("hold");
    }

    fn send_random(&mut self, n: usize) {
        self.count("random messages sent");
        let socket = self.dir.join(format!("{}.sock", self.cameras[n].key));
        for _ in 0..1 + self.dice.below(40) {
            let message: Vec<u8> =
                (0..self.dice.below(64)).map(|_| self.dice.throw() as u8).collect();
            send_to(&socket, &message);
        }
    }

    /// Continues all processes, and waits until every subscriber sees the present publisher.
    pub(super) fn recover(&mut self) {
        let now = now_ns();
        for actor in self.cameras.iter_mut().flat_map(Camera::actors) {
            if actor.resume() {
                actor.undisturbed_since_ns = i64::MAX;
            }
        }
        let mut attempt = 0;
        let mut recovered = false;
        while !recovered {
            attempt += 1;
            recovered = self.ping(&format!("{}.{attempt}", self.figures.rounds));
        }
        for actor in self.cameras.iter_mut().flat_map(Camera::actors) {
            if actor.undisturbed_since_ns >= now {
                actor.undisturbed_since_ns = now_ns();
            }
        }
    }

    /// Waits until every subscriber has answered with its next frame. Returns whether all of these are of
    /// the present publisher.
    fn ping(&mut self, ping: &str) -> bool {
        let mut asked = Vec::new();
        for camera in &mut self.cameras {
            for subscriber in &mut camera.subscribers {
                subscriber.child.send_line(&format!("ping {ping}"));
                asked.push((subscriber.id, camera.life));
            }
        }
        let answer = |stage: &Self, id| stage.pongs.get(&id).filter(|(p, _)| p == ping).cloned();
        while asked.iter().any(|(id, _)| answer(self, *id).is_none()) {
            self.receive(Duration::from_millis(5));
        }
        asked.iter().all(|(id, life)| answer(self, *id).is_some_and(|(_, seen)| seen == *life))
    }
}

/// Sends a message to a publisher, and closes the connection.
fn send_to(path: &Path, message: &[u8]) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    if connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).is_ok() {
        let _ = send(fd.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL);
    }
}
