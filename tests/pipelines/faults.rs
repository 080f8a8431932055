// SPDX-License-Identifier: LGPL-2.1-or-later
//! Publishers and subscribers as processes, and what happens to processes: they are killed, stopped,
//! continued, restarted, replaced, told to go, and spoken to in rubbish, by a schedule that a seed gives.
//! Every frame is read and every byte of every packet; what was missed has to be counted; and who
//! lived through it has to have what it had before, and no more.
//!
//! `CUFRAMES_SEED` repeats a schedule, `CUFRAMES_SECONDS` sets how long it goes on, `CUFRAMES_CAMERAS` how
//! many publishers there are. `make soak` prints the figures.

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
use testing::{Child, TestDir};

mod actors;

/// The first of each camera lives from the beginning to the end.
const SUBSCRIBERS: [&str; 4] = ["strict", "newest", "packets", "strict"];

/// The children's end of this file.
#[test]
fn child() {
    let Some((role, dir)) = testing::role() else { return };
    match role.split(' ').collect::<Vec<_>>()[..] {
        ["publish", key, life, wide] => {
            actors::publish(&dir, key, life.parse().unwrap(), wide == "wide");
        }
        ["subscribe", key, kind] => actors::subscribe(&dir, key, kind),
        _ => panic!("{role}?"),
    }
}

/// Random numbers that a seed gives.
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

/// Something that a child said.
struct Report {
    actor: usize,
    text: String,
}

struct Actor {
    child: Child,
    id: usize,
    /// Nothing that happened to itself explains what it sees since.
    undisturbed_since: i64,
    stopped: bool,
}

/// One key, its publisher and its subscribers.
struct Camera {
    key: String,
    life: u32,
    publisher: Actor,
    /// When each life began to be there for subscribers.
    up: BTreeMap<u32, i64>,
    subscribers: Vec<Actor>,
    /// Number of the subscriber that lets nothing go, at present.
    holds: Option<usize>,
}

#[derive(Default)]
struct Figures {
    rounds: u64,
    faults: BTreeMap<&'static str, u64>,
    received: u64,
    missed: u64,
    /// From when a new publisher was there to its first frame or packet at a subscriber, in ns.
    resumes: Vec<i64>,
    /// The longest time between two frames of publishers that were not stopped, in ns.
    slowest: i64,
    clean: u64,
}

struct Stage<'a> {
    dir: &'a Path,
    sender: Sender<Report>,
    receiver: Receiver<Report>,
    next_id: usize,
    cameras: Vec<Camera>,
    figures: Figures,
    dice: Dice,
    wrong: Vec<String>,
    pongs: BTreeMap<usize, (String, u32)>,
    up: BTreeMap<usize, i64>,
    /// A round that takes longer than this has hung.
    began: Instant,
}

const HANGS: Duration = Duration::from_secs(60);

impl<'a> Stage<'a> {
    fn start(&mut self, role: &str) -> Actor {
        let mut child = Child::start(module_path!(), role, self.dir);
        self.next_id += 1;
        let (id, sender) = (self.next_id, self.sender.clone());
        child.read_in_thread(move |text| {
            let _ = sender.send(Report { actor: id, text: text.to_owned() });
        });
        Actor { child, id, undisturbed_since: now_ns(), stopped: false }
    }

    fn start_publisher(&mut self, key: &str, life: u32) -> Actor {
        let wide = if self.dice.below(2) == 0 { "wide" } else { "narrow" };
        self.start(&format!("publish {key} {life} {wide}"))
    }

    /// Takes note of what was said, for `time`.
    fn receive(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while let Ok(report) =
            self.receiver.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            self.note(&report);
        }
        if self.began.elapsed() > HANGS {
            self.wrong.push(format!("round {} hangs", self.figures.rounds));
        }
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
    }

    fn note(&mut self, report: &Report) {
        let words: Vec<_> = report.text.split(' ').collect();
        let number = |n: usize| words[n].parse::<i64>().unwrap();
        match words[0] {
            "up" => drop(self.up.insert(report.actor, number(2))),
            "life" => {
                let (life, at) = (number(1) as u32, number(2));
                for camera in &mut self.cameras {
                    if let Some(publisher_up) = self.up.get(&camera.publisher.id) {
                        camera.up.insert(camera.life, *publisher_up);
                    }
                    let Some(actor) = camera.subscribers.iter().find(|s| s.id == report.actor)
                    else {
                        continue;
                    };
                    let Some(up) = camera.up.get(&life) else { continue };
                    if actor.undisturbed_since < *up && !camera.publisher.stopped {
                        self.figures.resumes.push(at - up);
                    }
                }
            }
            "pong" => {
                let life = number(2) as u32;
                self.pongs.insert(report.actor, (words[1].to_owned(), life));
            }
            "account" => {
                self.figures.received += number(1) as u64;
                self.figures.missed += number(2) as u64;
            }
            "slowest" => {
                let mut publishers = self.cameras.iter().map(|c| &c.publisher);
                // One that was stopped was late for that.
                let own = publishers.find(|p| p.id == report.actor);
                let whole = |p: &Actor| number(2).saturating_sub(p.undisturbed_since) > number(1);
                if own.is_some_and(|p| !p.stopped && whole(p)) {
                    self.figures.slowest = self.figures.slowest.max(number(1));
                }
            }
            "clean" => self.figures.clean += 1,
            "ready" => {}
            // "wrong", "leak", "error" and whatever else there is.
            _ => self.wrong.push(format!("{}: {}", report.actor, report.text)),
        }
    }

    fn count(&mut self, fault: &'static str) {
        *self.figures.faults.entry(fault).or_default() += 1;
    }

    /// Does something to a camera.
    fn fault(&mut self, n: usize) {
        let which = self.dice.below(12);
        match which {
            0 | 1 => {
                self.count("publisher killed");
                self.next_publisher(n, |old| old.child.signal(Signal::SIGKILL));
            }
            2 => {
                self.count("publisher ended");
                self.next_publisher(n, |old| {
                    old.child.send_line("end");
                });
            }
            3 => {
                self.count("publisher replaced");
                // Its successor waits for the key already.
                let (key, life) = (self.cameras[n].key.clone(), self.cameras[n].life + 1);
                let next = self.start_publisher(&key, life);
                self.dice.pause(300);
                let camera = &mut self.cameras[n];
                camera.life = life;
                std::mem::replace(&mut camera.publisher, next).child.kill();
            }
            4 => {
                self.count("publisher stopped");
                let publisher = &mut self.cameras[n].publisher;
                publisher.child.signal(Signal::SIGSTOP);
                publisher.stopped = true;
            }
            5 => {
                self.count("caps changed");
                self.cameras[n].publisher.child.send_line("caps");
            }
            6 => {
                self.count("subscriber killed");
                // The first one stays.
                let s = 1 + self.dice.below(SUBSCRIBERS.len() as u64 - 1) as usize;
                let role = format!("subscribe {} {}", self.cameras[n].key, SUBSCRIBERS[s]);
                let next = self.start(&role);
                let camera = &mut self.cameras[n];
                camera.holds = camera.holds.filter(|h| *h != s);
                std::mem::replace(&mut camera.subscribers[s], next).child.kill();
            }
            7 | 8 => {
                self.count("subscriber stopped");
                let s = self.dice.below(SUBSCRIBERS.len() as u64) as usize;
                let subscriber = &mut self.cameras[n].subscribers[s];
                subscriber.child.signal(Signal::SIGSTOP);
                subscriber.stopped = true;
            }
            9 => {
                self.count("subscriber left and came");
                let s = self.dice.below(SUBSCRIBERS.len() as u64) as usize;
                let subscriber = &mut self.cameras[n].subscribers[s];
                subscriber.undisturbed_since = i64::MAX;
                subscriber.child.send_line("cycle");
            }
            10 => {
                self.count("subscriber held all it got");
                let s = self.dice.below(SUBSCRIBERS.len() as u64) as usize;
                let camera = &mut self.cameras[n];
                if let Some(held) = camera.holds.replace(s) {
                    camera.subscribers[held].child.send_line("let go");
                }
                camera.subscribers[s].child.send_line("hold");
            }
            _ => {
                self.count("rubbish said");
                let socket = self.dir.join(format!("{}.sock", self.cameras[n].key));
                for _ in 0..1 + self.dice.below(40) {
                    let message: Vec<u8> =
                        (0..self.dice.below(64)).map(|_| self.dice.throw() as u8).collect();
                    say_to(&socket, &message);
                }
            }
        }
    }

    fn next_publisher(&mut self, n: usize, end: impl FnOnce(&mut Actor)) {
        let (key, life) = (self.cameras[n].key.clone(), self.cameras[n].life + 1);
        let old = &mut self.cameras[n].publisher;
        end(old);
        if old.stopped {
            old.child.signal(Signal::SIGCONT);
        }
        let began = Instant::now();
        while !self.cameras[n].publisher.child.has_ended() {
            self.receive(Duration::from_millis(1));
            assert!(began.elapsed() < HANGS, "a publisher does not end");
        }
        self.dice.pause(100);
        let next = self.start_publisher(&key, life);
        let camera = &mut self.cameras[n];
        camera.life = life;
        camera.publisher = next;
    }

    /// Lets everybody go on, and waits until every subscriber sees its camera as it is now.
    fn recover(&mut self) {
        let now = now_ns();
        for camera in &mut self.cameras {
            for actor in std::iter::once(&mut camera.publisher).chain(&mut camera.subscribers) {
                if std::mem::take(&mut actor.stopped) {
                    actor.child.signal(Signal::SIGCONT);
                    actor.undisturbed_since = i64::MAX;
                }
            }
        }
        let mut again = 0;
        loop {
            again += 1;
            let ping = format!("{}.{again}", self.figures.rounds);
            let mut asked = Vec::new();
            for camera in &mut self.cameras {
                for subscriber in &mut camera.subscribers {
                    subscriber.child.send_line(&format!("ping {ping}"));
                    asked.push((subscriber.id, camera.life));
                }
            }
            let answered = |s: &Self, life: &dyn Fn(u32, u32) -> bool| {
                let right = |(id, now): &(usize, u32)| {
                    s.pongs.get(id).is_some_and(|(p, l)| *p == ping && life(*l, *now))
                };
                asked.iter().all(right)
            };
            while !answered(self, &|_, _| true) {
                self.receive(Duration::from_millis(5));
            }
            if answered(self, &|seen, now| seen == now) {
                break;
            }
        }
        for camera in &mut self.cameras {
            for actor in std::iter::once(&mut camera.publisher).chain(&mut camera.subscribers) {
                if actor.undisturbed_since >= now {
                    actor.undisturbed_since = now_ns();
                }
            }
        }
    }

    fn report(&mut self, seed: u64, time: Duration) {
        let f = &mut self.figures;
        f.resumes.sort_unstable();
        let resume = |q: f64| {
            let at = (f.resumes.len().saturating_sub(1) as f64 * q).round() as usize;
            f.resumes.get(at).copied().unwrap_or(0) as f64 / 1e6
        };
        println!("seed {seed}, {} rounds in {} s", f.rounds, time.as_secs());
        for (fault, count) in &f.faults {
            println!("  {count:6}  {fault}");
        }
        println!("received {}, missed and counted {}, torn 0", f.received, f.missed);
        println!(
            "resumed {} times, {:.1} ms p50, {:.1} ms p99, {:.1} ms at most",
            f.resumes.len(),
            resume(0.5),
            resume(0.99),
            resume(1.0)
        );
        println!(
            "longest time between two frames of a publisher: {:.1} ms",
            f.slowest as f64 / 1e6
        );
        println!("{} processes ended with what they began with, leaks 0", f.clean);
    }
}

/// Says something to whoever listens there, and goes.
fn say_to(path: &Path, message: &[u8]) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    if connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).is_ok() {
        let _ = send(fd.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL);
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn processes_survive_faults() {
    if std::env::var("CUFRAMES_TEST_ROLE").is_ok() {
        return;
    }
    let seed = setting("CUFRAMES_SEED").unwrap_or_else(|| now_ns() as u64 % 1_000_000);
    let seconds = setting("CUFRAMES_SECONDS").unwrap_or(60);
    let cameras = setting("CUFRAMES_CAMERAS").unwrap_or(1);
    println!("CUFRAMES_SEED={seed}");
    let test = TestDir::no_timeout("faults");
    let (sender, receiver) = channel();
    let mut stage = Stage {
        dir: &test.dir,
        sender,
        receiver,
        next_id: 0,
        cameras: Vec::new(),
        figures: Figures::default(),
        dice: Dice(seed),
        wrong: Vec::new(),
        pongs: BTreeMap::new(),
        up: BTreeMap::new(),
        began: Instant::now(),
    };
    for n in 0..cameras {
        let key = format!("cam{n}");
        let publisher = stage.start_publisher(&key, 1);
        let subscribers =
            SUBSCRIBERS.map(|kind| stage.start(&format!("subscribe {key} {kind}"))).into();
        let camera =
            Camera { key, life: 1, publisher, up: BTreeMap::new(), subscribers, holds: None };
        stage.cameras.push(camera);
    }
    stage.recover();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        stage.figures.rounds += 1;
        stage.began = Instant::now();
        for _ in 0..1 + stage.dice.below(3) {
            let camera = stage.dice.below(cameras) as usize;
            stage.fault(camera);
            let pause = stage.dice.below(100);
            stage.receive(Duration::from_millis(pause));
        }
        if stage
            .cameras
            .iter()
            .any(|c| c.publisher.stopped || c.subscribers.iter().any(|s| s.stopped))
        {
            let pause = stage.dice.below(500);
            stage.receive(Duration::from_millis(pause));
        }
        stage.recover();
    }

    // Subscribers first: a publisher has to be as it was when they have gone.
    stage.began = Instant::now();
    let cameras = std::mem::take(&mut stage.cameras);
    let (mut publishers, mut subscribers) = (Vec::new(), Vec::new());
    for camera in cameras {
        publishers.push(camera.publisher);
        subscribers.extend(camera.subscribers);
    }
    for mut actors in [subscribers, publishers] {
        let clean = stage.figures.clean + actors.len() as u64;
        for actor in &mut actors {
            actor.child.send_line("end");
        }
        while stage.figures.clean < clean {
            stage.receive(Duration::from_millis(5));
        }
        actors.into_iter().for_each(|actor| actor.child.wait());
    }
    // A publisher that is killed while it warms up leaves a key that nobody uses again.
    let files = test.files().into_iter().filter(|name| !name.starts_with("warm-"));
    assert_eq!(files.collect::<Vec<_>>(), [""; 0]);
    stage.report(seed, began.elapsed());
}
