// SPDX-License-Identifier: LGPL-2.1-or-later
//! Frames of NVDEC, which writes into the slots.

use gst::prelude::*;
use nix::sys::signal::Signal;
use testing::{TestDir, until};

use crate::support::{
    DOWNLOADED, decoder, every_frame, number, play, publish_camera, rising, subscriber,
};

fn nvdec_to_four_processes(name: &'static str, options: &str, codec: &str) {
    let test = TestDir::slow(name);
    // The subscribers start first, and wait.
    let modes = ["", "", "io-mode=copy", "max-frames=1"];
    let start = |(n, mode): (usize, &&str)| subscriber(&test, &format!("{n}.raw"), mode);
    let subscribers: Vec<_> = modes.iter().enumerate().map(start).collect();
    let _running = publish_camera(&test, options, codec);
    subscribers.into_iter().for_each(every_frame);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn nvdec_h264_reaches_four_processes() {
    nvdec_to_four_processes("nvdec-h264", "--codec h264 --size 640x360 --gop 15", "h264");
}

/// With a stamped file, `$CUFRAMES_H265`, where the packed GStreamer has no H.265 encoder.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn nvdec_h265_reaches_four_processes() {
    let options = match std::env::var("CUFRAMES_H265") {
        Ok(file) => format!("--file {file}"),
        Err(_) => "--codec h265 --size 640x360 --gop 15".to_owned(),
    };
    nvdec_to_four_processes("nvdec-h265", &options, "h265");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn downstream_in_host_memory_gets_downloads() {
    let test = TestDir::slow("download");
    let watched = play(&test, DOWNLOADED);
    let seen = watched.collect("out", "sink", number);
    let _running = publish_camera(&test, "--size 640x360 --gop 15", "h264");
    until(|| watched.stat("src", "received") >= 60);
    assert_eq!(watched.stat("src", "downloaded"), watched.stat("src", "received"));
    watched.set_state(gst::State::Null).unwrap();
    rising(&seen.lock().unwrap());
}

/// A publisher that is killed, most likely while its GPU copies, blocks no subscriber.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn killed_publisher_is_replaced() {
    let test = TestDir::slow("killed");
    let watched = play(&test, DOWNLOADED);
    let seen = watched.collect("out", "sink", number);
    for round in 0..3 {
        let (camera, publisher) = publish_camera(&test, "--size 640x360 --gop 5", "h264");
        let before = watched.stat("src", "received");
        until(|| {
            watched.stat("src", "reconnects") >= round
                && watched.stat("src", "received") > before + 20
        });
        publisher.signal(Signal::SIGKILL);
        drop(camera);
        // Each camera counts from the beginning.
        rising(&std::mem::take(&mut *seen.lock().unwrap()));
    }
}

/// Upstream gets slots from the pool, and writes into them.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn upstream_writes_into_the_slots() {
    let test = TestDir::slow("lent");
    for make in [
        "NVDEC",
        "videotestsrc is-live=true ! video/x-raw,format=NV12,width=640,height=360 ! cudaupload ! cudaconvertscale ! video/x-raw(memory:CUDAMemory),width=320,height=180",
    ] {
        let (camera, decode) = decoder("--size 640x360 --gop 15", "h264");
        let nvdec = make == "NVDEC";
        let make = if nvdec { &decode } else { make };
        let subscriber = nvdec.then(|| subscriber(&test, "lent.raw", ""));
        let watched = play(&test, DOWNLOADED);
        let publisher =
            play(&test, &format!("{make} ! cuframessink name=sink key=cam1 policy=wait"));
        subscriber.into_iter().for_each(every_frame);
        until(|| watched.stat("src", "received") >= 30);
        assert!(publisher.stat("sink", "published") >= 30);
        assert_eq!(publisher.stat("sink", "copied"), 0);
        assert_eq!(publisher.stat("sink", "dropped"), 0);
        drop(camera);
    }
}

/// Two sources in one pipeline, in the process of the publisher. Each gets every frame.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn subscribers_share_process_of_publisher() {
    let test = TestDir::slow("two");
    let (_camera, decode) = decoder("--size 640x360 --gop 15", "h264");
    let both = play(
        &test,
        "cuframessrc name=a key=cam1 mode=strict ! cudadownload ! fakesink name=x sync=false \
         cuframessrc name=b key=cam1 mode=strict ! cudadownload ! fakesink name=y sync=false",
    );
    let seen = ["x", "y"].map(|name| both.collect(name, "sink", number));
    let _publisher = play(&test, &format!("{decode} ! cuframessink key=cam1 policy=wait"));
    until(|| seen.iter().all(|seen| seen.lock().unwrap().len() >= 60));
    for (source, seen) in ["a", "b"].iter().zip(&seen) {
        let seen = seen.lock().unwrap();
        assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1), "{source}: {seen:?}");
    }
}
