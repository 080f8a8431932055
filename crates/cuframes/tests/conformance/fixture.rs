// SPDX-License-Identifier: LGPL-2.1-or-later
//! Kinds of memory under test, and helpers of the tests.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use cuframes::cuda::{Context, Device, Stream};
use cuframes::memory::cuda::CudaBackend;
use cuframes::memory::host::HostBackend;
use cuframes::memory::{Backend, Importer};
use cuframes::{
    Error, Frame, Interrupt, Loan, Next, Policy, Publisher, Subscriber, SubscriberConfig,
};
use testing::{TestDir, TestSubscriber, fill, info, number, until};

/// A kind of memory under test.
pub(crate) trait MemoryFixture {
    fn backend() -> Arc<dyn Backend>;
    fn importer() -> Importer;
    /// Writes the number to every word of the slot.
    fn write(loan: &mut Loan, n: u64);
    /// Returns the number that is in every word of the frame; `None` if the words differ.
    fn read(frame: &Frame) -> Option<u64>;
}

pub(crate) struct Host;

impl MemoryFixture for Host {
    fn backend() -> Arc<dyn Backend> {
        Arc::new(HostBackend)
    }
    fn importer() -> Importer {
        Importer::host()
    }
    fn write(loan: &mut Loan, n: u64) {
        fill(loan.bytes_mut(), n);
    }
    fn read(frame: &Frame) -> Option<u64> {
        let bytes = frame.bytes().unwrap();
        assert_eq!(frame.address(), bytes.as_ptr() as u64);
        number(bytes)
    }
}

/// Device memory as fds of the driver. The tests write and read it synchronously. Asynchronous work of a GPU
/// is tested in tests/gpu.
pub(crate) struct Cuda;

impl Cuda {
    fn context() -> Context {
        let device = Device::by_ordinal(0).expect("a GPU");
        Context::primary(&device).expect("a context")
    }
}

impl MemoryFixture for Cuda {
    fn backend() -> Arc<dyn Backend> {
        Arc::new(CudaBackend::new(Self::context()).expect("memory that can be exported"))
    }
    fn importer() -> Importer {
        Importer::cuda(Self::context())
    }
    fn write(loan: &mut Loan, n: u64) {
        let mut bytes = vec![0; loan.len()];
        fill(&mut bytes, n);
        // SAFETY: the loan is as many bytes of device memory, which nothing else uses.
        unsafe { Stream::default_of(&Self::context()).write(loan.address(), &bytes) }.unwrap();
    }
    fn read(frame: &Frame) -> Option<u64> {
        let mut bytes = vec![0; frame.info.size];
        // SAFETY: the frame is as many bytes of device memory, which do not change while it lives.
        unsafe { Stream::default_of(&Self::context()).read(frame.address(), &mut bytes) }.unwrap();
        number(&bytes)
    }
}

pub(crate) const FRAMES: u64 = 500;
/// Frames of tests that do not read them.
pub(crate) const HASTE: u64 = 10_000;
pub(crate) const PATIENT: Policy = Policy::Wait(Duration::from_secs(60));

#[track_caller]
pub(crate) fn publish<M: MemoryFixture>(publisher: &Publisher, n: u64) {
    testing::publish(publisher, n, M::write);
}

#[track_caller]
pub(crate) fn intact<M: MemoryFixture>(frame: &Frame) {
    assert_eq!(M::read(frame), Some(frame.seq));
    assert_eq!(frame.info.pts, Some(frame.seq as i64));
}

/// Runs `f` in a thread of its own, and returns when that thread sleeps.
pub(crate) fn asleep<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let (sender, receiver) = channel();
    let thread = std::thread::spawn(move || {
        sender.send(std::fs::read_link("/proc/thread-self").unwrap()).unwrap();
        f()
    });
    let stat = std::path::Path::new("/proc").join(receiver.recv().unwrap()).join("stat");
    until(|| {
        let stat = std::fs::read_to_string(&stat).unwrap_or_default();
        thread.is_finished() || stat.rsplit_once(") ").is_some_and(|(_, s)| s.starts_with('S'))
    });
    thread
}

/// Publishes a frame of another size than [`SIZE`].
pub(crate) fn publish_sized<M: MemoryFixture>(publisher: &Publisher, n: u64, size: usize) {
    let mut loan = publisher.loan(size).unwrap().unwrap();
    assert!(loan.len() >= size, "{} bytes for a frame of {size}", loan.len());
    M::write(&mut loan, n);
    assert_eq!(publisher.publish(loan, &info(n, size)), n);
}

/// Takes and releases frames as fast as it can, to the end of the stream. Returns how many were received.
pub(crate) fn hurry(mut viewer: TestSubscriber) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        loop {
            match viewer.next_frame() {
                Next::Item(_) => {}
                Next::Eos => return viewer.subscriber.counters().received,
                other => panic!("{other:?}"),
            }
        }
    })
}

pub(crate) fn connect(test: &TestDir, config: SubscriberConfig) -> Result<Subscriber, Error> {
    let config = SubscriberConfig { runtime_dir: Some(test.dir.clone()), ..config };
    Subscriber::connect(config, None, &Interrupt::new().unwrap())
}

/// Returns whether a pool that needs so many slots has them, and at most as many more as a chunk has.
pub(crate) fn fits(slots: u32, needed: u32) -> bool {
    (needed..needed + 4).contains(&slots)
}
