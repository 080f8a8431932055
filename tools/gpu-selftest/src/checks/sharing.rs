// SPDX-License-Identifier: LGPL-2.1-or-later
//! A publisher, and a subscriber in a process of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cuframes::cuda::{Context, DeviceMemory, Event, HostAccess, RegisteredHost, Stream};
use cuframes::memory::{Backend, Kind};
use cuframes::{FrameInfo, Publisher, PublisherConfig, SharedWords};

use crate::page::SharedPage;
use crate::peer::Peer;
use crate::report::{DEADLINE, Outcome, Report, expect, wait_until};
use crate::subscriber::Tally;
use crate::workload::{Ballast, FRAME, pattern};

/// Rounds of the check that a number follows a copy.
const ROUNDS: u64 = 50;
/// Frames of each check of stream order between the processes.
const FRAMES: u64 = 1000;

pub(crate) fn check(
    program: &str,
    dir: &Path,
    context: &Context,
    backend: Arc<dyn Backend>,
    report: &mut Report,
) -> Outcome<()> {
    let kind = backend.kind();
    let mut line =
        |check: &str, outcome: Outcome| report.line(&format!("{kind}: {check}"), outcome);
    let mut pair = Pair::start(program, dir, context, backend)?;
    line("a frame reaches the subscriber", pair.peer.receive());
    if kind == Kind::CudaVmm {
        line("the subscriber's writes are refused", pair.peer.request("write"));
        line("the publisher's pixels are unchanged", pair.first_frame_is_unchanged());
    }
    line("a number written after a copy is visible after it", pair.number_follows_copy());
    line("that check fails without stream order", pair.number_overtakes_copy());
    line("frames are completed and released in stream order", pair.ordered_release());
    line("that check fails with immediate release", pair.immediate_release());
    line("the publisher sees a number from the subscriber's GPU", pair.number_from_subscriber());
    line("an interprocess event is waited for", pair.interprocess_event());
    pair.stream.synchronize()?;

    let Pair { publisher, mut peer, .. } = pair;
    if kind == Kind::CudaVmm {
        drop(publisher);
        let last_content = ROUNDS + 1;
        line("mapped memory outlives the publisher", peer.request(&format!("read {last_content}")));
    }
    line("the subscriber exits successfully", {
        peer.send("end")?;
        let status = peer.wait()?;
        expect(status.success(), status.to_string()).map(|()| String::new())
    });
    Ok(())
}

/// A publisher with one published frame, and its subscriber, which holds that frame until it exits.
struct Pair {
    publisher: Publisher,
    peer: Peer,
    context: Context,
    stream: Stream,
    /// Address of the first frame. The subscriber holds it, so its slot is not used for others.
    first_frame: u64,
    ballast: Ballast,
    source: DeviceMemory,
    page: Arc<SharedPage>,
    registered: RegisteredHost,
    /// Sequence number of the last published frame.
    last_seq: u64,
}

impl Pair {
    fn start(
        program: &str,
        dir: &Path,
        context: &Context,
        backend: Arc<dyn Backend>,
    ) -> Outcome<Self> {
        let key = format!("selftest-{}", backend.kind());
        let mut config = PublisherConfig::new(&key);
        config.runtime_dir = Some(dir.to_owned());
        let publisher = Publisher::open(config, backend, |_| {})?;
        publisher.set_format("video/x-raw(memory:CUDAMemory),format=NV12", FRAME)?;
        let stream = Stream::new(context)?;
        let loan = publisher.loan(FRAME)?.ok_or("no slot is free")?;
        let first_frame = loan.address();
        // SAFETY: the loaned slot is as long.
        unsafe { stream.write(first_frame, &pattern(1)) }?;
        publisher.publish(loan, &frame_info());

        let peer = Peer::start(program, dir, &key)?;
        let page = Arc::new(SharedPage::new()?);
        // SAFETY: a page of this process.
        let registered = unsafe { page.register(context, HostAccess::ReadWrite) }?;
        Ok(Self {
            publisher,
            peer,
            context: context.clone(),
            stream,
            first_frame,
            ballast: Ballast::new(context)?,
            source: DeviceMemory::new(context, FRAME)?,
            page,
            registered,
            last_seq: 1,
        })
    }

    fn first_frame_is_unchanged(&self) -> Outcome {
        let mut bytes = vec![0; FRAME];
        // SAFETY: the slot of the first frame is as long.
        unsafe { self.stream.read(self.first_frame, &mut bytes) }?;
        expect(bytes == pattern(1), "the publisher's pixels changed")?;
        Ok(String::new())
    }

    /// Enqueues writing `value` to every byte of the first frame, with a delay.
    fn enqueue_copy(&self, value: u64) -> Outcome<()> {
        // SAFETY: the callers wait for the stream, or for the subscriber that sees the result, before
        // they drop the three memories.
        unsafe {
            self.ballast.keep_busy(&self.stream)?;
            self.stream.fill(self.source.address(), value as u8, FRAME)?;
            self.stream.copy(self.source.address(), self.first_frame, FRAME)?;
        }
        Ok(())
    }

    /// The subscriber polls for a number, and must find the complete copy that was enqueued before it.
    fn number_follows_copy(&mut self) -> Outcome {
        let mut early = 0;
        for n in 1..=ROUNDS {
            self.peer.send(&format!("wait {n} {}", self.page.path()))?;
            self.enqueue_copy(n)?;
            self.stream.write_value(&self.registered, 0, n)?;
            early += u64::from(self.page.load() == n);
            self.peer.receive()?;
        }
        Ok(format!("{ROUNDS} rounds, {early} of them complete when enqueued"))
    }

    /// Control of [`Self::number_follows_copy`]: the number is on another stream, so the subscriber must
    /// find an incomplete copy.
    fn number_overtakes_copy(&mut self) -> Outcome {
        let (n, unordered) = (ROUNDS + 1, Stream::new(&self.context)?);
        self.peer.send(&format!("race {n} {}", self.page.path()))?;
        self.enqueue_copy(n)?;
        unordered.write_value(&self.registered, 0, n)?;
        let wrong = self.peer.receive()?;
        self.stream.synchronize()?;
        match wrong.as_str() {
            "0" => Err("it did not fail".into()),
            _ => Ok(format!("{wrong} of {FRAME} bytes wrong")),
        }
    }

    fn ordered_release(&mut self) -> Outcome {
        let tally = self.publish_frames("hold")?;
        expect(tally.torn == 0, tally.to_string())?;
        Ok(format!("{tally}, {FRAMES} published"))
    }

    /// Control of [`Self::ordered_release`].
    fn immediate_release(&mut self) -> Outcome {
        let tally = self.publish_frames("drop")?;
        expect(tally.torn > 0, format!("it did not fail: {tally}"))?;
        Ok(tally.to_string())
    }

    /// Publishes [`FRAMES`] frames before they are written, to a subscriber that releases each before it
    /// has read it. Only stream order keeps the two apart.
    fn publish_frames(&mut self, release: &str) -> Outcome<Tally> {
        let SharedWords { base: at, len, keep_alive: keep } = self.publisher.ready_words();
        let access = HostAccess::ReadWrite;
        // SAFETY: mapped for writing while `keep` exists, and read through atomics.
        let control = unsafe { RegisteredHost::new(&self.context, at, len, access, keep) }?;
        let last = self.last_seq + FRAMES;
        self.peer.send(&format!("frames {last} {release}"))?;
        let start = Instant::now();
        while self.last_seq < last {
            expect(start.elapsed() < DEADLINE, "the subscriber makes no progress")?;
            let Some(loan) = self.publisher.loan(FRAME)? else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            let (address, offset) = (loan.address(), loan.ready_offset());
            // The frame is visible before its first byte is written.
            let seq = self.publisher.publish_unready(loan, &frame_info());
            // SAFETY: the stream is synchronized below, before the ballast and the slot's chunk go.
            unsafe {
                self.ballast.fill(&self.stream, 0)?;
                self.stream.fill(address, seq as u8, FRAME)?;
            }
            self.stream.write_value(&control, offset, seq)?;
            // Keeps the publisher at the pace of the GPU, so that slots are reused while they are read.
            self.stream.synchronize()?;
            self.last_seq = seq;
        }
        Tally::parse(&self.peer.receive()?)
    }

    fn number_from_subscriber(&mut self) -> Outcome {
        let page = SharedPage::open(&self.peer.request("release")?)?;
        let waited = wait_until("number", || Ok(page.load() == 42))?;
        Ok(format!("after {waited:?}"))
    }

    fn interprocess_event(&mut self) -> Outcome {
        let event = Event::interprocess(&self.context)?;
        // SAFETY: the ballast exists until the stream is synchronized, at the end of the checks.
        unsafe { self.ballast.keep_busy(&self.stream) }?;
        event.record(&self.stream)?;
        let handle: String = event.ipc_handle()?.iter().map(|b| format!("{b:02x}")).collect();
        let answer = self.peer.request(&format!("event {handle}"));
        expect(event.is_done()?, "the subscriber did not wait for it")?;
        answer
    }
}

fn frame_info() -> FrameInfo {
    FrameInfo { size: FRAME, ..Default::default() }
}
