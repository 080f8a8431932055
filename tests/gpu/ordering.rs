// SPDX-License-Identifier: LGPL-2.1-or-later
//! Frames are complete when they are read, and stay until they were read.

use std::sync::Arc;

use nix::sys::signal::Signal;
use testing::{Child, TestDir, until};
use testing_gst::TestPipelineExt;

use crate::support::{DOWNLOADED, number, pixels, play, publish_camera, rising};

/// Two upstreams with a stream each, and frames that are not published. Every published frame is whole and
/// becomes ready.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn publisher_takes_frames_of_two_upstreams() {
    let test = TestDir::slow("turns");
    let watched = play(
        &test,
        "cuframessrc name=src key=cam1 mode=strict ! cudadownload ! fakesink name=out sync=false",
    );
    let seen = watched.collect("out", "sink", pixels);
    let picture = "videotestsrc is-live=true pattern=snow ! video/x-raw,format=NV12,width=1280,height=720,framerate=60/1";
    let publisher = test.pipeline(&format!(
        "funnel name=both ! cuframessink name=sink key=cam1 policy=wait \
         {picture} ! cudaupload name=a ! identity drop-probability=0.5 ! both. \
         {picture} ! cudaupload name=b ! queue ! identity drop-probability=0.5 ! both."
    ));
    let sent = ["a", "b"].map(|name| publisher.collect(name, "sink", pixels));
    publisher.play();
    until(|| seen.lock().unwrap().len() >= 90);
    drop(watched);
    let sent = sent.map(|sent| std::mem::take(&mut *sent.lock().unwrap()));
    let seen = seen.lock().unwrap();
    assert!(seen.iter().all(|picture| sent.iter().any(|sent| sent.contains(picture))));
}

/// A released frame stays unchanged until the GPU has read it, on any stream: that of the frame, the default
/// one, or that of another element. The same holds for a copy.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn frame_stays_until_gpu_has_read_it() {
    use cuframes::cuda::{DeviceMemory, Stream};
    use gstcuframes::testing;
    let test = TestDir::slow("pending");
    for mode in ["import", "copy"] {
        let watched = play(
            &test,
            &format!(
                "cuframessrc name=src key=cam1 io-mode={mode} ! video/x-raw(memory:CUDAMemory) ! fakesink name=out sync=false enable-last-sample=false"
            ),
        );
        let turn = std::sync::atomic::AtomicUsize::new(0);
        let read = |stream: &Stream, from: u64, len: usize| {
            let mut bytes = vec![0; len];
            // SAFETY: the memory of the callers is as long.
            unsafe { stream.read(from, &mut bytes) }.unwrap();
            bytes
        };
        let enqueued = watched.collect("out", "sink", move |buffer, _| {
            let memory = buffer.peek_memory(0);
            let context = testing::memory_context(memory).unwrap();
            let own = testing::memory_stream(memory).unwrap();
            // Copies need not be complete.
            own.synchronize().unwrap();
            let stream = match turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 3 {
                0 => own,
                1 => Stream::default_of(&context),
                _ => testing::new_stream(memory).unwrap(),
            };
            let (address, len) = testing::device_range(memory).unwrap();
            // On a stream that does not wait for the others.
            let before = read(&Stream::new(&context).unwrap(), address, len);
            let [ballast, copy] =
                [1 << 30, len].map(|len| DeviceMemory::new(&context, len).unwrap());
            // SAFETY: the copy is kept until it is read below, and the frame until it is released.
            unsafe {
                // This takes longer than publishing as many frames as there are slots.
                for byte in 0..1500 {
                    stream.fill(ballast.address(), byte as u8, ballast.len()).unwrap();
                }
                stream.copy(address, copy.address(), len).unwrap();
            }
            assert!(!stream.is_done().unwrap(), "the GPU is too fast for this test");
            assert!(!Stream::default_of(&context).is_idle().unwrap());
            (stream, before, copy, ballast)
        });
        let _running = publish_camera(&test, "--size 640x360 --fps 100 --gop 15", "h264");
        until(|| enqueued.lock().unwrap().len() >= 6);
        let enqueued: Vec<_> = enqueued.lock().unwrap().drain(..6).collect();
        for (stream, before, copy, _) in enqueued {
            assert!(before == read(&stream, copy.address(), copy.len()), "the frame was written");
        }
    }
}

/// A converter drops a frame before the GPU has read it, so that frames have to use its stream.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn frames_use_stream_of_downstream() {
    use gstcuframes::testing;
    let test = TestDir::slow("stream");
    let watched = play(
        &test,
        "cuframessrc name=src key=cam1 ! cudaconvertscale name=scale \
         ! video/x-raw(memory:CUDAMemory),width=320,height=180 ! fakesink name=out sync=false",
    );
    let stream = |buffer: &gst::Buffer, _: &gst::Pad| {
        testing::memory_stream(buffer.peek_memory(0)).map(|stream| stream.handle() as usize)
    };
    let (before, behind) =
        (watched.collect("scale", "sink", stream), watched.collect("out", "sink", stream));
    let _running = publish_camera(&test, "--size 640x360 --gop 15", "h264");
    until(|| behind.lock().unwrap().len() >= 5);
    let (before, behind) = (before.lock().unwrap(), behind.lock().unwrap());
    assert!(before[0].is_some());
    assert_eq!(before[..5], behind[..5]);
}

/// Plays the role of a child: a publisher that is killed while its GPU still works on the frame that it
/// published.
#[test]
fn child() {
    use cuframes::cuda::{Context, Device, DeviceMemory, HostAccess, RegisteredHost, Stream};
    use cuframes::memory::cuda::CudaBackend;
    use cuframes::{FrameInfo, Publisher, PublisherConfig, SharedWords};
    let Some((_, dir)) = testing::role() else { return };
    let context = Context::primary(&Device::by_ordinal(0).unwrap()).unwrap();
    let mut config = PublisherConfig::new("cam1");
    config.runtime_dir = Some(dir);
    let (joined, came) = std::sync::mpsc::channel();
    let backend = Arc::new(CudaBackend::new(context.clone()).unwrap());
    let publisher = Publisher::open(config, backend, move |_| joined.send(()).unwrap()).unwrap();
    let size = 640 * 360 * 3 / 2;
    let caps = "video/x-raw(memory:CUDAMemory),format=NV12,width=640,height=360,framerate=30/1";
    publisher.set_format(caps, size).unwrap();
    came.recv().unwrap();
    let stream = Stream::new(&context).unwrap();
    let ballast = DeviceMemory::new(&context, 1 << 30).unwrap();
    let SharedWords { base: at, len, keep_alive: keep } = publisher.ready_words();
    // SAFETY: the words are mapped for writing while `keep` lives, and accessed through atomics by others.
    let ready =
        unsafe { RegisteredHost::new(&context, at, len, HostAccess::ReadWrite, keep) }.unwrap();
    let planes = cuframes::Planes::new(&[0, 640 * 360], &[640, 640]);
    let info = FrameInfo { size, planes, ..Default::default() };
    let loan = publisher.loan(size).unwrap().unwrap();
    let (address, offset) = (loan.address(), loan.ready_offset());
    let seq = publisher.publish_unready(loan, &info);
    // SAFETY: both memories live longer than this process.
    unsafe {
        for byte in 0..=255 {
            stream.fill(ballast.address(), byte, ballast.len()).unwrap();
        }
        stream.fill(address, 7, size).unwrap();
    }
    stream.write_value(&ready, offset, seq).unwrap();
    assert!(!stream.is_done().unwrap(), "the GPU is too fast for this test");
    nix::sys::signal::raise(Signal::SIGKILL).unwrap();
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn publisher_killed_while_gpu_works_hangs_no_subscriber() {
    let test = TestDir::slow("enqueued");
    let watched = play(&test, DOWNLOADED);
    let seen = watched.collect("out", "sink", number);
    let status = Child::start(module_path!(), "publish", &test.dir).status();
    assert!(!status.success());
    // The frame was never complete, so that no subscriber gets it. The source continues with the next
    // publisher.
    let _running = publish_camera(&test, "--size 640x360 --gop 5", "h264");
    until(|| watched.stat("src", "received") > 20);
    assert_eq!(watched.stat("src", "reconnects"), 1);
    rising(&seen.lock().unwrap());
}
