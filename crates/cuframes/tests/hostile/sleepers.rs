// SPDX-License-Identifier: LGPL-2.1-or-later
//! Subscribers that attack the sleep of other subscribers, through memory that they may only read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use cuframes::memory::host::HostBackend;
use cuframes::{Mode, Next, PacketInfo, Start, TrackConfig, Wait};
use testing::raw::{RawSubscriber, hello_as};
use testing::{ReadableWords, TestDir, publish};

const ROUNDS: u64 = 30;
/// Words of a mapping that are attacked: all of its header.
const WORDS: usize = 1024;

/// What happens to the sleepers on a word.
type Attack = fn(&ReadableWords, usize) -> usize;

#[test]
fn sleepers_are_not_moved_elsewhere() {
    attack_sleepers("hostile-capture", ReadableWords::capture);
}

#[test]
fn needless_wake_ups_lose_nothing() {
    attack_sleepers("hostile-wake", ReadableWords::wake);
}

/// Subscribers of frames and packets that wait without a timeout receive everything under the attack.
fn attack_sleepers(name: &str, attack: Attack) {
    let test = TestDir::new(name);
    let publisher = test.publisher(std::sync::Arc::new(HostBackend), |_| {});
    let track = publisher.add_track(0, "a", TrackConfig::default()).unwrap();
    let mut viewer = test.subscriber(|c| c.mode = Mode::Strict);
    let listener = test.subscriber(|c| (c.mode, c.max_frames) = (Mode::Strict, 0));
    let mut reader = listener.subscriber.packets(0, Start::NextKeyframe);

    let hostile = RawSubscriber::join(&test.dir, &hello_as(Mode::Newest, 1, "hostile")).unwrap();
    let announced = std::iter::from_fn(|| hostile.peer.receive()).flat_map(|(_, fds)| fds);
    // A chunk and the track. The publisher announces them in either order.
    let fds = announced.take(2).chain([hostile.control.clone(), hostile.page.fd.clone()]);
    let words: Vec<_> = fds.map(|fd| ReadableWords::map(fd).unwrap()).collect();

    let stop = AtomicBool::new(false);
    let interrupts = [viewer.interrupt.clone(), listener.interrupt.clone()];
    std::thread::scope(|scope| {
        let (frames, came) = channel();
        scope.spawn(move || {
            while let Next::Item(frame) = viewer.next_frame() {
                frames.send(frame.seq).unwrap();
            }
        });
        let (packets, arrived) = channel();
        scope.spawn(move || {
            while let Next::Item(packet) = reader.next(&Wait::default()).unwrap() {
                packets.send(packet.seq).unwrap();
            }
        });
        let attacker = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for words in &words {
                    (0..words.len().min(WORDS)).for_each(|word| {
                        attack(words, word);
                    });
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let outcome = (1..=ROUNDS).try_for_each(|n| {
            publish(&publisher, n, |loan, n| testing::fill(loan.bytes_mut(), n));
            received(&came, n, "the frame")?;
            let keyframe = PacketInfo { keyframe: true, ..Default::default() };
            assert_eq!(track.push(keyframe, &[0; 8]), Ok(n - 1));
            received(&arrived, n - 1, "the packet")?;
            // The subscribers fall asleep, and are attacked.
            std::thread::sleep(Duration::from_millis(5));
            Ok::<_, String>(())
        });
        stop.store(true, Ordering::Relaxed);
        attacker.join().unwrap();
        interrupts.iter().for_each(|interrupt| interrupt.set());
        outcome.unwrap();
    });
}

/// Waits until the subscriber has received the item.
fn received(receiver: &Receiver<u64>, expected: u64, what: &str) -> Result<(), String> {
    // As long as a watchdog, after which no other test could run.
    match receiver.recv_timeout(Duration::from_secs(30)) {
        Ok(n) if n == expected => Ok(()),
        Ok(n) => Err(format!("{what} {n} arrives instead of {expected}")),
        Err(RecvTimeoutError::Timeout) => Err(format!("{what} {expected} never arrives")),
        Err(RecvTimeoutError::Disconnected) => Err(format!("{what} {expected}: the wait ended")),
    }
}
