// SPDX-License-Identifier: LGPL-2.1-or-later
//! Kinds of memory and formats, mapped, copied and downloaded.

use gst::prelude::*;
use testing::{TestDir, skip, until};
use testing_gst::TestPipelineExt;

use crate::support::{
    decoder, every_frame, launch, number, pixels, play, publish_camera, rising, subscriber,
};

/// All kinds of memory, and all ways of synchronization, between processes.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn every_kind_of_memory_crosses() {
    let test = TestDir::slow("kinds");
    for (memory, sync) in [
        ("vmm", "timeline"),
        ("vmm", "host"),
        ("ipc", "timeline"),
        ("ipc", "event"),
        ("auto", "event"),
    ] {
        let subscribers =
            ["", "io-mode=copy"].map(|how| subscriber(&test, &how.len().to_string(), how));
        let (_camera, decode) = decoder("--size 640x360 --gop 15", "h264");
        let publisher = play(
            &test,
            &format!(
                "{decode} ! cuframessink name=sink key=cam1 policy=wait memory={memory} sync-mode={sync}"
            ),
        );
        subscribers.into_iter().for_each(every_frame);
        let stats = publisher.stats("sink");
        let kind = if sync == "event" { "ipc" } else { memory };
        assert_eq!(stats.get::<String>("memory").unwrap(), kind);
        assert_eq!(stats.get::<String>("sync-mode").unwrap(), sync);
    }
    let refused =
        play(&test, "videotestsrc ! cudaupload ! cuframessink key=cam2 memory=vmm sync-mode=event");
    assert!(refused.error().message().contains("memory=ipc"));
}

/// Frames of every layout arrive unchanged: written or copied into the slots, read in place or copied, and
/// downloaded by the source or by another element.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn every_format_crosses() {
    let test = TestDir::slow("formats");
    let ways = ["mapped", "copied", "downloaded", "host"];
    for format in ["NV12", "P010_10LE", "I420", "YV12", "Y444", "Y444_16LE", "BGRA", "RGBx"] {
        for copied in [false, true] {
            let watched = play(
                &test,
                "cuframessrc name=a key=cam1 io-mode=import ! video/x-raw(memory:CUDAMemory) ! fakesink name=mapped \
                 cuframessrc name=b key=cam1 io-mode=copy ! video/x-raw(memory:CUDAMemory) ! fakesink name=copied \
                 cuframessrc name=c key=cam1 ! cudadownload ! fakesink name=downloaded \
                 cuframessrc name=d key=cam1 ! video/x-raw ! fakesink name=host",
            );
            let seen = ways.map(|name| watched.collect(name, "sink", pixels));
            let own = if copied { "identity drop-allocation=true !" } else { "" };
            let publisher = test.pipeline(&format!(
                "videotestsrc is-live=true pattern=snow ! video/x-raw,format={format},width=318,height=202 \
                 ! cudaupload name=upload ! {own} cuframessink name=sink key=cam1"
            ));
            let sent = publisher.collect("upload", "sink", pixels);
            publisher.play();
            until(|| seen.iter().all(|seen| seen.lock().unwrap().len() >= 5));
            drop(watched);
            assert_eq!(publisher.stat("sink", "copied") > 0, copied, "{format}");
            let sent = sent.lock().unwrap();
            for (way, seen) in ways.iter().zip(seen) {
                let whole = seen.lock().unwrap().iter().all(|picture| sent.contains(picture));
                assert!(whole, "{format} {way}, copied into the slots: {copied}");
            }
        }
    }
}

/// GStreamer's memory stays with its slot, and the CPU reads the frame that is in the slot.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn memory_is_created_once_per_slot() {
    let test = TestDir::slow("once");
    let branch = |mode: &str| {
        format!(
            "cuframessrc name={mode} key=cam1 io-mode={mode} ! video/x-raw(memory:CUDAMemory) \
             ! fakesink name={mode}-out sync=false "
        )
    };
    let watched = play(&test, &(branch("import") + &branch("copy")));
    let mark = gst::glib::Quark::from_str("cuframes-test-seen");
    let look = move |buffer: &gst::Buffer, pad: &gst::Pad| {
        let memory = buffer.peek_memory(0).as_ptr().cast_mut().cast::<gst::ffi::GstMiniObject>();
        use gst::glib::translate::IntoGlib;
        // SAFETY: the memory is valid. The mark is not null, and is not freed.
        let is_new = unsafe {
            let seen = gst::ffi::gst_mini_object_get_qdata(memory, mark.into_glib());
            let any = std::ptr::NonNull::dangling().as_ptr();
            gst::ffi::gst_mini_object_set_qdata(memory, mark.into_glib(), any, None);
            seen.is_null()
        };
        (is_new, number(buffer, pad))
    };
    let all = ["import", "copy"].map(|mode| watched.collect(&format!("{mode}-out"), "sink", look));
    let _running = publish_camera(&test, "--size 640x360 --gop 15", "h264");
    until(|| all.iter().all(|seen| seen.lock().unwrap().len() >= 90));
    watched.set_state(gst::State::Null).unwrap();
    for (seen, most) in all.iter().zip([16, 2]) {
        let seen = seen.lock().unwrap();
        let made = seen.iter().filter(|(is_new, _)| *is_new).count();
        assert!(made <= most, "{made} for {} frames", seen.len());
        rising(&seen.iter().map(|(_, number)| *number).collect::<Vec<_>>());
    }
}

/// GStreamer refuses to map a frame for writing, and the driver refuses to write to its address.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn writing_subscriber_is_refused() {
    use cuframes::cuda::Stream;
    use gstcuframes::testing;
    let test = TestDir::slow("write");
    let other = subscriber(&test, "other.raw", "");
    let vandal = play(
        &test,
        "cuframessrc name=src key=cam1 ! video/x-raw(memory:CUDAMemory) ! fakesink name=out sync=false",
    );
    let refused = vandal.collect("out", "sink", |buffer, _| {
        let memory = buffer.peek_memory(0);
        let context = testing::memory_context(memory).unwrap();
        let (address, len) = testing::device_range(memory).unwrap();
        // SAFETY: zeros are a valid GstMapInfo; the memory is valid, and not mapped if that fails.
        let mapped = unsafe {
            let mut info: gst::ffi::GstMapInfo = std::mem::zeroed();
            gst::ffi::gst_memory_map(memory.as_ptr().cast_mut(), &mut info, gst::ffi::GST_MAP_WRITE)
        };
        // SAFETY: the driver refuses the write, which this test checks.
        let filled = unsafe { Stream::default_of(&context).fill(address, 0, len) };
        (mapped == gst::glib::ffi::GFALSE, filled.is_err())
    });
    let _running = publish_camera(&test, "--size 640x360 --gop 15", "h264");
    every_frame(other);
    let refused = refused.lock().unwrap();
    assert!(refused.len() > 10 && refused.iter().all(|r| *r == (true, true)), "{refused:?}");
}

/// Returns whether this machine has two GPUs. Reports the test as skipped if not.
fn has_two_gpus() -> bool {
    let two = cuframes::cuda::Device::all().unwrap().len() > 1;
    if !two {
        skip("this machine has one GPU");
    }
    two
}

const ON_SECOND: &str = "videotestsrc is-live=true pattern=ball ! video/x-raw,format=NV12,width=640,height=360 \
     ! cudaupload cuda-device-id=1 ! cuframessink name=sink key=cam1";

/// Returns sums of the bytes of frames, by number. The ball moves, so that they differ.
fn sums(test: &TestDir, source: &str, device: i32) -> Vec<(u64, u64)> {
    let watched = play(
        test,
        &format!("{source} ! video/x-raw(memory:CUDAMemory) ! fakesink name=out sync=false"),
    );
    let seen = watched.collect("out", "sink", move |buffer, _| {
        let memory = buffer.peek_memory(0);
        let context = gstcuframes::testing::memory_context(memory).unwrap();
        assert_eq!(context.device().ordinal(), device);
        let map = buffer.map_readable().unwrap();
        (buffer.offset(), map.iter().map(|b| u64::from(*b)).sum())
    });
    until(|| seen.lock().unwrap().len() >= 30);
    watched.set_state(gst::State::Null).unwrap();
    std::mem::take(&mut *seen.lock().unwrap())
}

#[test]
#[ignore = "needs two NVIDIA GPUs"]
fn frames_reach_another_gpu() {
    if !has_two_gpus() {
        return;
    }
    let test = TestDir::slow("peers");
    for memory in ["vmm", "ipc"] {
        // A process of its own, because a process cannot open its own memory with memory=ipc.
        let _publisher =
            launch(&test, &ON_SECOND.replace("key=cam1", &format!("key=cam1 memory={memory}")));
        // By default, a source uses the publisher's GPU.
        let own = sums(&test, "cuframessrc key=cam1 mode=strict", 1);
        let peer = sums(&test, "cuframessrc key=cam1 mode=strict cuda-device-id=0", 0);
        let copied =
            sums(&test, "cuframessrc key=cam1 mode=strict cuda-device-id=0 io-mode=copy", 0);
        for all in [own, peer, copied] {
            assert!(all.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1), "{all:?}");
            assert!(all.windows(2).any(|pair| pair[1].1 != pair[0].1), "{all:?}");
        }
    }
}
