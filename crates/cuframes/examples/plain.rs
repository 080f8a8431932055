// SPDX-License-Identifier: LGPL-2.1-or-later
//! Publishes and subscribes to frames and packets without GStreamer.
//!
//! ```sh
//! cargo run -p cuframes --example plain -- publish cam1 &
//! cargo run -p cuframes --example plain -- watch cam1
//! ```
//!
//! Frames are grey, each lighter than the one before. The packet of a frame is a text with its number.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use cuframes::memory::host::HostBackend;
use cuframes::{
    FrameInfo, Interrupt, Next, PacketInfo, Plane, Publisher, PublisherConfig, Start, Subscriber,
    SubscriberConfig, TrackConfig, Wait,
};

const HELP: &str = "plain publish|watch KEY [FRAMES]";
const WIDTH: usize = 320;
const HEIGHT: usize = 240;
const CAPS: &str =
    "video/x-raw, format=(string)GRAY8, width=(int)320, height=(int)240, framerate=(fraction)30/1";
const INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / 30);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["publish", key] => publish(key, u64::MAX),
        ["publish", key, frames] => publish(key, frames.parse()?),
        ["watch", key] => watch(key, u64::MAX),
        ["watch", key, frames] => watch(key, frames.parse()?),
        _ => Err(HELP.into()),
    }
}

fn publish(key: &str, frames: u64) -> Result<(), Box<dyn Error>> {
    // The publisher's own thread calls the closure when subscribers join and leave.
    let print = |event| eprintln!("{event:?}");
    let publisher = Publisher::open(PublisherConfig::new(key), Arc::new(HostBackend), print)?;
    publisher.set_format(CAPS, WIDTH * HEIGHT)?;
    let track =
        publisher.add_track(0, "text/x-raw, format=(string)utf8", TrackConfig::default())?;
    for number in 0..frames {
        let pts = Some(monotonic_ns());
        let packet = PacketInfo { pts, keyframe: true, ..Default::default() };
        let pushed = track.push(packet, format!("frame {number}").as_bytes());
        pushed.map_err(|_| "the packet has more bytes than the track's ring")?;
        // Without a free slot the frame is dropped. A publisher waits only if its policy says so.
        match publisher.loan(WIDTH * HEIGHT)? {
            Some(mut slot) => {
                slot.bytes_mut()[..WIDTH * HEIGHT].fill(number as u8);
                let planes = [Plane { offset: 0, stride: WIDTH as i32 }].into_iter().collect();
                let size = WIDTH * HEIGHT;
                publisher.publish(slot, &FrameInfo { pts, size, planes, ..Default::default() });
            }
            None => publisher.count_dropped(),
        }
        std::thread::sleep(INTERVAL);
    }
    // Subscribers get the end after the last frame and the last packet.
    publisher.end_of_frames();
    track.end();
    Ok(())
}

fn watch(key: &str, frames: u64) -> Result<(), Box<dyn Error>> {
    // Another thread ends every wait with `interrupt.set()`.
    let interrupt = Interrupt::new()?;
    let mut camera = Subscriber::connect(SubscriberConfig::new(key), None, &interrupt)?;
    let mut packets = camera.packets(0, Start::LatestKeyframe);
    let forever = Wait::default();
    let at_once = Wait { timeout: Some(Duration::ZERO), ..forever };
    for _ in 0..frames {
        match camera.next_frame(&forever)? {
            // The publisher does not overwrite the slot until `frame` is dropped.
            Next::Item(frame) => println!(
                "frame {} of {}: grey {}, {} skipped",
                frame.seq,
                frame.caps,
                frame.bytes().unwrap()[0],
                frame.skipped
            ),
            // The publisher ended or disconnected. A new subscriber would wait for the next publisher.
            Next::Eos | Next::Lost { .. } => break,
            Next::TimedOut | Next::Interrupted => unreachable!("neither was asked for"),
        }
        while let Next::Item(packet) = packets.next(&at_once)? {
            println!("packet {}: {}", packet.seq, String::from_utf8_lossy(&packet.data));
        }
    }
    Ok(())
}

/// Returns the time of the clock that timestamps use.
fn monotonic_ns() -> i64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    let now = now.expect("every Linux has this clock");
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}
