//! Tries on a real GPU what frames in its memory rest on, between two processes.
//!
//! ```sh
//! cargo run --release --example gpu-selftest
//! ```
//!
//! Prints a line for each thing tried and fails if one fails. It starts itself a second time; where
//! programs need a launcher, `$ON_GPU` holds it.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cuframes::cuda::{
    Access, Address, Context, Copy2d, Device, DeviceMemory, Event, HostAccess, RegisteredHost,
    Stream, Uuid, VmmAllocation, VmmMapping,
};
use cuframes::memory::cuda::CudaBackend;
use cuframes::memory::cuda_ipc::CudaIpcBackend;
use cuframes::memory::{Backend, Geometry, Importer, Kind};
use cuframes::{
    FrameInfo, Interrupt, Next, Publisher, PublisherConfig, Subscriber, SubscriberConfig, Wait,
};
use gst::prelude::*;
use gstcuframes::gstcuda::memory_cache::{BufferAccess, DeviceRegion, MemoryCache};
use gstcuframes::gstcuda::{self, pool};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

type Outcome<T = String> = Result<T, Box<dyn Error>>;

/// 1920x1080 in NV12.
const FRAME: usize = 1920 * 1080 * 3 / 2;
const PAGE: usize = 4096;
const ROUNDS: u64 = 50;
const FRAMES: u64 = 1000;
/// What keeps the GPU busy for a while, so that order shows.
const BALLAST: usize = 512 << 20;
const DEADLINE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, dir, key] = arguments.as_slice()
        && word == "child"
    {
        return match child(Path::new(dir), key) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                println!("FAILED {e}");
                ExitCode::FAILURE
            }
        };
    }
    let mut report = Report { failed: 0 };
    if let Err(e) = parent(&arguments[0], &mut report) {
        report.line("the program itself", Err(e));
    }
    match report.failed {
        0 => println!("all ok"),
        n => println!("{n} FAILED"),
    }
    ExitCode::from(u8::from(report.failed > 0))
}

struct Report {
    failed: u32,
}

impl Report {
    fn line(&mut self, what: &str, outcome: Outcome) {
        match outcome {
            Ok(text) if text.is_empty() => println!("ok      {what}"),
            Ok(text) => println!("ok      {what}: {text}"),
            Err(e) => {
                self.failed += 1;
                println!("FAILED  {what}: {e}");
            }
        }
    }
}

fn expect(so: bool, otherwise: impl Into<String>) -> Outcome<()> {
    if so { Ok(()) } else { Err(otherwise.into().into()) }
}

/// Waits for something that no call waits for.
fn until(what: &str, mut is_so: impl FnMut() -> Outcome<bool>) -> Outcome<Duration> {
    let start = Instant::now();
    while !is_so()? {
        expect(start.elapsed() < DEADLINE, format!("{what} did not come"))?;
        std::hint::spin_loop();
    }
    Ok(start.elapsed())
}

/// A page of shared memory.
struct Page {
    at: *mut u8,
    fd: OwnedFd,
}

// SAFETY: only its atomics are used.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    /// As the publisher makes its control segment: sealed for writers to come.
    fn new() -> Outcome<Self> {
        let fd = memfd_create("selftest", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&fd, PAGE as i64)?;
        let page = Self::map(fd, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        let future_write = SealFlag::from_bits_retain(0x10);
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | future_write;
        fcntl(&page.fd, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(page)
    }

    /// The page of another process.
    fn open(path: &str) -> Outcome<Self> {
        Self::map(File::open(path)?.into(), ProtFlags::PROT_READ)
    }

    fn map(fd: OwnedFd, prot: ProtFlags) -> Outcome<Self> {
        let len = PAGE.try_into()?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let at = unsafe { mmap(None, len, prot, MapFlags::MAP_SHARED, fd.as_fd(), 0) }?;
        Ok(Self { at: at.cast().as_ptr(), fd })
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: the page is mapped and aligned while `self` lives; an atomic, of which any bytes are
        // valid and which others may write.
        unsafe { AtomicU64::from_ptr(self.at.cast()) }
    }

    fn register(self: &Arc<Self>, context: &Context) -> cuframes::cuda::Result<RegisteredHost> {
        // SAFETY: mapped for writing, by all callers, until the last clone is dropped.
        unsafe { RegisteredHost::new(context, self.at, PAGE, HostAccess::ReadWrite, self.clone()) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if let Some(at) = std::ptr::NonNull::new(self.at) {
            // SAFETY: the range is this mapping, and nothing borrows from it any more.
            let _ = unsafe { munmap(at.cast(), PAGE) };
        }
    }
}

/// The process that subscribes.
struct Other {
    process: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

impl Other {
    fn start(program: &str, dir: &Path, key: &str) -> Outcome<Self> {
        let mut command = match std::env::var_os("ON_GPU") {
            Some(launcher) => {
                let mut command = Command::new(launcher);
                command.arg(program);
                command
            }
            None => Command::new(program),
        };
        command.arg("child").arg(dir).arg(key).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let to = process.stdin.take().ok_or("no stdin")?;
        let from = BufReader::new(process.stdout.take().ok_or("no stdout")?).lines();
        Ok(Self { process, to, from })
    }

    /// Has it do something, and gives what it says of it.
    fn ask(&mut self, line: &str) -> Outcome {
        self.tell(line)?;
        self.answer()
    }

    fn tell(&mut self, line: &str) -> Outcome<()> {
        Ok(writeln!(self.to, "{line}")?)
    }

    fn answer(&mut self) -> Outcome {
        let line = self.from.next().ok_or("the other process is gone")??;
        match line.split_once(' ') {
            Some(("ok", text)) => Ok(text.to_owned()),
            _ => Err(line.into()),
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn parent(program: &str, report: &mut Report) -> Outcome<()> {
    let device = Device::by_ordinal(0)?;
    let yes = |b| if b { "yes" } else { "no" };
    println!(
        "{device}, {}, CUDA {}; exports fds: {}, writes values: {}, registers read-only: {}",
        device.uuid()?,
        device.driver_version(),
        yes(device.can_export_fds()),
        yes(device.can_write_values()),
        yes(device.can_register_read_only()),
    );
    report.line("devices are found by their UUID", by_uuid(&device));
    let context = Context::primary(&device)?;
    report.line("2D copies keep to their rows", copies_2d(&context));
    report.line("events order streams", events(&context));
    report.line("a page mapped read-only can be registered", read_only_page(&context));
    report.line("a write outside a registered page is refused", outside(&context));

    let dir = std::env::temp_dir().join(format!("cuframes-selftest-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let mut backends: Vec<Arc<dyn Backend>> = Vec::new();
    match CudaBackend::new(context.clone()) {
        Ok(backend) => backends.push(Arc::new(backend)),
        Err(e) => report.line("VMM memory", Err(e.into())),
    }
    backends.push(Arc::new(CudaIpcBackend::new(context.clone(), false)));
    for backend in backends {
        let kind = backend.kind();
        report.line(&format!("{kind}: lies are refused"), lies(&context, &*backend));
        if let Err(e) = two_processes(program, &dir, &context, backend, report) {
            report.line(&format!("{kind}: two processes"), Err(e));
        }
    }
    gst::init()?;
    match gstcuda::GstCuda::get() {
        Ok(_) => report.line("GStreamer takes the memory as its own", gstreamer(&context)),
        Err(e) => println!("skipped GStreamer: {e}"),
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn by_uuid(device: &Device) -> Outcome {
    expect(Device::by_uuid(device.uuid()?)? == *device, "another device")?;
    let missing = Device::by_uuid(Uuid([7; 16])).err().ok_or("a made-up UUID was found")?;
    let number = Device::by_ordinal(4711).err().ok_or("GPU 4711 was found")?;
    Ok(format!("[{missing}] [{number}]"))
}

fn copies_2d(context: &Context) -> Outcome {
    let stream = Stream::new(context)?;
    let (width, height, pitch) = (1000, 64, 1536);
    let (a, b) =
        (DeviceMemory::new(context, pitch * height)?, DeviceMemory::new(context, pitch * height)?);
    let bytes: Vec<u8> = (0..width * height).map(|i| (i % 251) as u8).collect();
    let mut back = vec![0; width * height];
    let up = Copy2d {
        from: Address::Host(bytes.as_ptr().cast_mut()),
        from_pitch: width,
        to: Address::Device(a.address()),
        to_pitch: pitch,
        width,
        height,
    };
    let across = Copy2d { from: up.to, from_pitch: pitch, to: Address::Device(b.address()), ..up };
    let down =
        Copy2d { from: across.to, to: Address::Host(back.as_mut_ptr()), to_pitch: width, ..across };
    // SAFETY: all ranges are as long as the copies, and live until the stream is waited for.
    unsafe {
        stream.fill(b.address(), 0xee, b.len())?;
        stream.copy_2d(&up)?;
        stream.copy_2d(&across)?;
        stream.copy_2d(&down)?;
    }
    stream.synchronize()?;
    expect(back == bytes, "other bytes came back")?;
    let mut row = vec![0; pitch];
    // SAFETY: the first row of `b`.
    unsafe { stream.read(b.address(), &mut row) }?;
    expect(row[width..].iter().all(|x| *x == 0xee), "the padding was written to")?;
    Ok(String::new())
}

fn events(context: &Context) -> Outcome {
    let (a, b) = (Stream::new(context)?, Stream::new(context)?);
    let (ballast, target) =
        (DeviceMemory::new(context, BALLAST)?, DeviceMemory::new(context, PAGE)?);
    let event = Event::new(context)?;
    let mut byte = [0];
    // SAFETY: both memories live until the streams are waited for.
    unsafe {
        b.fill(target.address(), 1, PAGE)?;
        b.synchronize()?;
        busy(&a, &ballast)?;
        a.fill(target.address(), 2, PAGE)?;
        event.record(&a)?;
        let early = event.is_done()?;
        b.wait_for(&event)?;
        b.read(target.address(), &mut byte)?;
        expect(event.is_done()? && a.is_done()?, "the event was not waited for")?;
        expect(byte == [2], "the other stream was too early")?;
        Ok(format!("done when recorded: {early}"))
    }
}

/// Enqueues work of some milliseconds.
///
/// # Safety
/// The memory has to live until the stream is past it.
unsafe fn busy(stream: &Stream, ballast: &DeviceMemory) -> cuframes::cuda::Result<()> {
    for i in 0..16 {
        // SAFETY: the caller's promise.
        unsafe { stream.fill(ballast.address(), i, ballast.len()) }?;
    }
    Ok(())
}

fn read_only_page(context: &Context) -> Outcome {
    if !context.device().can_register_read_only() {
        return Ok("this device has no such thing".into());
    }
    let page = Page::new()?;
    page.word().store(0x0102_0304_0506_0708, Ordering::Release);
    let view = Arc::new(Page::open(&page.path())?);
    // SAFETY: mapped read-only until the last clone is dropped.
    let registered =
        unsafe { RegisteredHost::new(context, view.at, PAGE, HostAccess::ReadOnly, view.clone()) }?;
    let stream = Stream::new(context)?;
    expect(stream.write_value(&registered, 0, 1).is_err(), "a write was not refused")?;
    let (to, mut back) = (DeviceMemory::new(context, 8)?, [0; 8]);
    // SAFETY: 8 bytes of registered memory and of device memory, which live until the read is done.
    unsafe {
        stream.copy(registered.address(), to.address(), 8)?;
        stream.read(to.address(), &mut back)?;
    }
    expect(u64::from_ne_bytes(back) == 0x0102_0304_0506_0708, "the GPU read something else")?;
    Ok(String::new())
}

fn outside(context: &Context) -> Outcome {
    let page = Arc::new(Page::new()?);
    let registered = page.register(context)?;
    let stream = Stream::new(context)?;
    for offset in [PAGE, PAGE - 4, 4, usize::MAX] {
        expect(stream.write_value(&registered, offset, 1).is_err(), format!("byte {offset}"))?;
    }
    Ok(String::new())
}

/// What a hostile publisher might send.
fn lies(context: &Context, backend: &dyn Backend) -> Outcome {
    let importer = Importer::cuda(context.clone());
    let kind = backend.kind();
    let chunk = backend.allocate(2, FRAME)?;
    let g = chunk.geometry();
    let refused = |what: &str, importer: &Importer, fd: OwnedFd, g| {
        let imported = importer.import((kind, Uuid(backend.device())), fd, g);
        imported.err().map(|e| e.to_string()).ok_or(format!("{what} was taken"))
    };
    let fd = || chunk.fd().try_clone_to_owned();
    let memfd = || memfd_create("lie", MFdFlags::MFD_CLOEXEC);
    let mut said = vec![
        refused("/dev/null", &importer, File::open("/dev/null")?.into(), g)?,
        refused("an empty memfd", &importer, memfd()?, g)?,
        refused("no slot", &importer, fd()?, Geometry { slots: 0, ..g })?,
        refused("a stride that overflows", &importer, fd()?, Geometry { stride: u64::MAX, ..g })?,
    ];
    let host = refused("device memory without a GPU", &Importer::host(), fd()?, g)?;
    said.push(host.clone());
    if kind == Kind::CudaVmm {
        said.push(refused("too many slots", &importer, fd()?, Geometry { slots: 200, ..g })?);
        // The same process may import what it exports.
        importer.import((kind, Uuid(backend.device())), fd()?, g)?;
        let text = importer.import((kind, Uuid([7; 16])), fd()?, g).err().ok_or("no such GPU")?;
        said.push(text.to_string());
    } else {
        let file = memfd()?;
        File::from(file.try_clone()?).write_all(&[0x55; 64])?;
        said.push(refused("64 bytes of nothing", &importer, file, g)?);
    }
    Ok(said.join(" | "))
}

fn two_processes(
    program: &str,
    dir: &Path,
    context: &Context,
    backend: Arc<dyn Backend>,
    report: &mut Report,
) -> Outcome<()> {
    let kind = backend.kind();
    let key = format!("selftest-{kind}");
    let mut line = |what: &str, outcome: Outcome| report.line(&format!("{kind}: {what}"), outcome);
    let mut config = PublisherConfig::new(&key);
    config.runtime_dir = Some(PathBuf::from(dir));
    let publisher = Publisher::open(config, backend, |_| {})?;
    publisher.set_format("video/x-raw(memory:CUDAMemory),format=NV12", FRAME)?;
    let stream = Stream::new(context)?;

    let loan = publisher.loan(FRAME)?.ok_or("no slot is free")?;
    let at = loan.address();
    // The subscriber holds this frame to the end, so its slot is nobody else's.
    // SAFETY: as many bytes of the slot that is on loan.
    unsafe { stream.write(at, &pattern(1)) }?;
    let info = FrameInfo { size: FRAME, ..Default::default() };
    publisher.publish(loan, &info);

    let mut other = Other::start(program, dir, &key)?;
    line("a frame crosses the socket and is read", other.answer());
    let unchanged = || -> Outcome {
        let mut bytes = vec![0; FRAME];
        // SAFETY: the slot that the subscriber holds.
        unsafe { stream.read(at, &mut bytes) }?;
        expect(bytes == pattern(1), "the publisher's pixels changed")?;
        Ok(String::new())
    };
    if kind == Kind::CudaVmm {
        line("the subscriber's writes are refused", other.ask("write"));
        line("the publisher's pixels are as they were", unchanged());
    }

    let (ballast, source) =
        (DeviceMemory::new(context, BALLAST)?, DeviceMemory::new(context, FRAME)?);
    let page = Arc::new(Page::new()?);
    let registered = page.register(context)?;
    line("copy, then a number, in this order", {
        let mut early = 0;
        let mut round = |n: u64| -> Outcome<()> {
            other.tell(&format!("wait {n} {}", page.path()))?;
            // SAFETY: all three memories live until the stream has done the round: the other process
            // says so at its end.
            unsafe {
                busy(&stream, &ballast)?;
                stream.fill(source.address(), n as u8, FRAME)?;
                stream.copy(source.address(), at, FRAME)?;
            }
            stream.write_value(&registered, 0, n)?;
            early += u64::from(page.word().load(Ordering::Acquire) == n);
            other.answer().map(|_| ())
        };
        (1..=ROUNDS)
            .try_for_each(&mut round)
            .map(|()| format!("{ROUNDS} rounds, {early} of them over before they were looked at"))
    });
    line("out of order, that test would fail", {
        let (n, unordered) = (ROUNDS + 1, Stream::new(context)?);
        other.tell(&format!("race {n} {}", page.path()))?;
        // SAFETY: as above.
        unsafe {
            busy(&stream, &ballast)?;
            stream.fill(source.address(), n as u8, FRAME)?;
            stream.copy(source.address(), at, FRAME)?;
        }
        unordered.write_value(&registered, 0, n)?;
        let wrong = other.answer()?;
        stream.synchronize()?;
        match wrong.as_str() {
            "0" => Err("it did not".into()),
            _ => Ok(format!("{wrong} of {FRAME} bytes")),
        }
    });
    let mut last = 1;
    let mut frames = |how: &str| -> Outcome {
        last += FRAMES;
        stream_of_frames(&publisher, &stream, &ballast, &mut other, (last, how))
    };
    line(
        "frames that the GPU completes, and gives back in order",
        frames("hold").and_then(|text| match text.starts_with("0 ") {
            true => Ok(format!("{text} taken, {FRAMES} published")),
            false => Err(text.into()),
        }),
    );
    line(
        "given back at once, that test would fail",
        frames("drop").and_then(|text| match text.starts_with("0 ") {
            true => Err(text.into()),
            false => Ok(text),
        }),
    );
    line("the subscriber's GPU writes to a page, the publisher sees it", {
        other.ask("release").and_then(|path| {
            let page = Page::open(&path)?;
            let waited = until("the number", || Ok(page.word().load(Ordering::Acquire) == 42))?;
            Ok(format!("after {waited:?}"))
        })
    });
    line("an interprocess event", {
        let event = Event::interprocess(context)?;
        // SAFETY: the ballast lives until the stream is waited for below.
        unsafe { busy(&stream, &ballast) }?;
        event.record(&stream)?;
        let handle: String = event.ipc_handle()?.iter().map(|b| format!("{b:02x}")).collect();
        let answer = other.ask(&format!("event {handle}"));
        expect(event.is_done()?, "the other process did not wait for it")?;
        answer
    });
    stream.synchronize()?;
    if kind == Kind::CudaVmm {
        drop(publisher);
        line("what is mapped outlives the publisher", other.ask(&format!("read {}", ROUNDS + 1)));
    }
    line("the subscriber ends well", {
        other.tell("end")?;
        let status = other.process.wait()?;
        expect(status.success(), status.to_string()).map(|()| String::new())
    });
    Ok(())
}

/// Publishes frames before they are written, to a subscriber that gives them back before it has read
/// them: only the order of streams keeps them apart.
fn stream_of_frames(
    publisher: &Publisher,
    stream: &Stream,
    ballast: &DeviceMemory,
    other: &mut Other,
    (last, how): (u64, &str),
) -> Outcome {
    let (at, len, offset, keep) = publisher.ready_word();
    // SAFETY: mapped for writing while `keep` lives, and read as what others write.
    let control =
        unsafe { RegisteredHost::new(stream.context(), at, len, HostAccess::ReadWrite, keep) }?;
    other.tell(&format!("frames {last} {how}"))?;
    let mut seq = 0;
    let info = FrameInfo { size: FRAME, ..Default::default() };
    let start = Instant::now();
    while seq < last {
        expect(start.elapsed() < DEADLINE, "the frames do not get on")?;
        let Some(loan) = publisher.loan(FRAME)? else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let at = loan.address();
        // The frame is visible before its first byte is written.
        seq = publisher.publish_unready(loan, &info);
        // SAFETY: the ballast lives until the other process has seen all frames; the slot is in a chunk
        // that waits for the stream before it goes.
        unsafe {
            stream.fill(ballast.address(), 0, ballast.len())?;
            stream.fill(at, seq as u8, FRAME)?;
        }
        stream.write_value(&control, offset, seq)?;
        // So that frames come when they are written, and slots go round while they are read.
        stream.synchronize()?;
    }
    let seen = other.answer()?;
    stream.synchronize()?;
    Ok(seen)
}

/// Bytes that are not easily right by chance.
fn pattern(seed: usize) -> Vec<u8> {
    (0..FRAME).map(|i| ((i + seed) % 253) as u8).collect()
}

fn child(dir: &Path, key: &str) -> Outcome<()> {
    let context = Context::primary(&Device::by_ordinal(0)?)?;
    let interrupt = Interrupt::new()?;
    let mut config = SubscriberConfig::new(key);
    config.runtime_dir = Some(dir.to_owned());
    config.importer = Importer::cuda(context.clone());
    let mut subscriber = Subscriber::connect(config, Some(DEADLINE), &interrupt)?;
    let wait = Wait { timeout: Some(DEADLINE), ..Wait::forever(&interrupt) };
    let Next::Item(frame) = subscriber.next_frame(&wait)? else { return Err("no frame".into()) };
    let stream = Stream::new(&context)?;
    let at = frame.address();
    let read = || -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; FRAME];
        // SAFETY: the frame's bytes, which this subscriber holds.
        unsafe { stream.read(at, &mut bytes) }?;
        Ok(bytes)
    };
    let wrong = |value: u64| -> Outcome<usize> {
        Ok(read()?.iter().filter(|b| **b != value as u8).count())
    };
    let all = |value: u64| -> Outcome<()> {
        let wrong = wrong(value)?;
        expect(wrong == 0, format!("{wrong} bytes are wrong"))
    };
    expect(read()? == pattern(1), "other pixels")?;
    println!("ok frame {} of {}", frame.seq, frame.caps);

    let ballast = DeviceMemory::new(&context, BALLAST)?;
    let own_page = Arc::new(Page::new()?);
    let registered = own_page.register(&context)?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["write"] => {
                // SAFETY: that the driver refuses it is what is tried here.
                let filled = unsafe { stream.fill(at, 0xff, FRAME) };
                let text = filled.err().ok_or("a write was taken")?.to_string();
                // SAFETY: as above.
                let written = unsafe { stream.write(at, &[0xff; 64]) };
                let second = written.err().ok_or("an upload was taken")?;
                expect(read()? == pattern(1), "the pixels changed")?;
                println!("ok {text}; {second}");
            }
            ["wait" | "race", number, path] => {
                let (number, page) = (number.parse()?, Page::open(path)?);
                until("the number", || Ok(page.word().load(Ordering::Acquire) >= number))?;
                let wrong = wrong(number)?;
                expect(
                    words[0] == "race" || wrong == 0,
                    format!("{wrong} bytes were not written yet"),
                )?;
                println!("ok {wrong}");
            }
            ["frames", last, hold] => {
                let (page, len, keep) = subscriber.page();
                // SAFETY: mapped for writing while `keep` lives, and read as what others write.
                let claims = unsafe {
                    RegisteredHost::new(&context, page, len, HostAccess::ReadWrite, keep)
                }?;
                let how = (last.parse()?, hold == "hold", &wait);
                println!("ok {}", frames(&mut subscriber, &stream, &ballast, &claims, how)?);
            }
            ["release"] => {
                // SAFETY: the ballast lives until the end, which waits for the stream.
                unsafe { busy(&stream, &ballast) }?;
                stream.write_value(&registered, 0, 42)?;
                println!("ok {}", own_page.path());
            }
            ["event", handle] => {
                let mut bytes = [0; 64];
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&handle[2 * i..2 * i + 2], 16)?;
                }
                let event = Event::open(&context, &bytes)?;
                let waited = until("the event", || Ok(event.is_done()?))?;
                println!("ok waited {waited:?}");
            }
            ["read", value] => {
                all(value.parse()?)?;
                println!("ok -");
            }
            _ => break,
        }
    }
    stream.synchronize()?;
    Ok(())
}

/// Reads frames behind work that keeps the GPU busy, and gives each back before that is done.
fn frames(
    subscriber: &mut Subscriber,
    stream: &Stream,
    ballast: &DeviceMemory,
    claims: &RegisteredHost,
    (last, hold, wait): (u64, bool, &Wait<'_>),
) -> Outcome {
    let copy = DeviceMemory::new(stream.context(), 2 * FRAME)?;
    let mut bytes = vec![0; 2 * FRAME];
    let (mut seq, mut taken, mut torn) = (0, 0, 0);
    while seq < last {
        let Next::Item(frame) = subscriber.next_frame(wait)? else {
            return Err("no frame".into());
        };
        (seq, taken) = (frame.seq, taken + 1);
        // SAFETY: the frame is read twice in stream order, before the claim is cleared in the same
        // order; the other memories live until the stream is waited for.
        unsafe {
            stream.copy(frame.address(), copy.address(), FRAME)?;
            // Long enough for the GPU to turn to the publisher's work in between.
            (0..4).try_for_each(|_| busy(stream, ballast))?;
            stream.copy(frame.address(), copy.address() + FRAME as u64, FRAME)?;
        }
        frame.release_with(|offset| hold && stream.write_value(claims, offset, 0).is_ok());
        // SAFETY: as long as the memory.
        unsafe { stream.read(copy.address(), &mut bytes) }?;
        torn += u32::from(bytes.iter().any(|b| *b != seq as u8));
    }
    Ok(format!("{torn} torn of {taken}"))
}

fn gstreamer(driver_context: &Context) -> Outcome {
    // As between a publisher and a subscriber: the memory is mapped under one context, and used by
    // GStreamer under another of the same device.
    let context = gstcuda::CudaContext::new(0)?;
    let own = context.driver_context()?;
    expect(own.device() == driver_context.device() && own != *driver_context, "odd contexts")?;
    let stream = gstcuda::CudaStream::new(&context)?;
    let len = FRAME.next_multiple_of(VmmAllocation::granularity(driver_context)?);
    let allocation = VmmAllocation::create(driver_context, len)?;
    let map = VmmMapping::new(driver_context, &allocation, len, Access::ReadWrite)?;
    let address = map.address();
    let work = stream.driver_stream(&own);
    // SAFETY: the mapping is longer.
    unsafe { work.write(address, &pattern(3)) }?;

    let strides = [1920, 1920];
    let offsets = [0, 1920 * 1080];
    let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::Nv12, 1920, 1080)
        .stride(&strides)
        .offset(&offsets)
        .size(FRAME)
        .build()?;
    let memories = MemoryCache::default();
    let map = Arc::new(map);
    // SAFETY: the mapping is held by the memory, and nothing is enqueued when that is let go of.
    let wrap = |content| unsafe {
        let (layout, context, stream) = (&info, &context, Some(&stream));
        memories.wrap(DeviceRegion { address, layout, context, stream }, content, map.clone())
    };
    let memory = wrap(BufferAccess::Read)?;
    expect(gstcuda::is_cuda(&memory), "it is no CUDA memory")?;
    expect(gstcuda::memory_stream(&memory).as_ref() == Some(&stream), "another stream")?;
    let its = gstcuda::memory_context(&memory).ok_or("no context")?;
    expect(its.driver_context()? == own && its.device_id() == 0, "another context")?;
    let layout = gstcuda::memory_info(&memory).ok_or("no info")?;
    expect(layout.stride() == strides && layout.offset() == offsets, "another layout")?;
    {
        let device = gstcuda::map_device(&memory)?;
        expect(device.address() == address && device.len() == FRAME, format!("{device:?}"))?;
    }
    // Mapped for the CPU, GStreamer downloads it.
    expect(memory.map_readable()?.as_slice() == pattern(3), "other pixels in system memory")?;
    let memory = match memory.into_mapped_memory_writable() {
        Ok(_) => return Err("memory that is not to be written was mapped for that".into()),
        Err(memory) => memory,
    };
    let holders = || Arc::strong_count(&map) - 1;
    let (first, other) = (memory.as_ptr(), wrap(BufferAccess::Read)?);
    expect(other.as_ptr() != first && holders() == 2, "memory that is in use was used again")?;
    drop((memory, other));
    expect(holders() == 0, "the memory is held by nobody, and holds its place")?;
    // SAFETY: as above.
    unsafe { work.write(address, &pattern(4)) }?;
    let again = wrap(BufferAccess::Read)?;
    expect(again.as_ptr() == first, "other memory for the same place")?;
    expect(again.map_readable()?.as_slice() == pattern(4), "what was downloaded before")?;
    drop(memories);
    expect(holders() == 1, "memory in use was freed with the others")?;
    drop(again);
    expect(holders() == 0, "memory does not let go of its place")?;

    let caps = info.to_caps()?;
    let caps = {
        let mut caps = caps;
        let features = gst::CapsFeatures::new([gstcuda::CAPS_FEATURE]);
        caps.make_mut().set_features_simple(Some(features));
        caps
    };
    // An element's own class of pool, by its looks; `info` lies otherwise than the driver would have it.
    let (lent, own_context) = (Arc::new(AtomicBool::new(false)), context.clone());
    let told = lent.clone();
    let pool = pool::lending_pool(&context, move |wanted, _| {
        told.store(true, Ordering::Release);
        let memory = gstcuda::allocate(&own_context, wanted.stream.as_deref(), &wanted.video);
        let mut buffer = gst::Buffer::new();
        buffer.make_mut().append_memory(memory.map_err(|_| gst::FlowError::Error)?);
        Ok(buffer)
    })?;
    expect(
        pool.type_().is_a(gst::glib::Type::from_name("GstCudaBufferPool").ok_or("no class")?),
        "another class",
    )?;
    let mut config = pool.config();
    config.set_params(Some(&caps), FRAME as u32, 0, 0);
    pool.set_config(config)?;
    pool.set_active(true)?;
    let buffer = pool.acquire_buffer(None)?;
    expect(lent.load(Ordering::Acquire), "the pool did not ask")?;
    expect(gstcuda::is_cuda(buffer.peek_memory(0)), "other memory")?;
    drop(buffer);
    pool.set_active(false)?;

    let wrapped = gstcuda::CudaContext::wrap(driver_context)?;
    expect(wrapped.driver_context()? == *driver_context, "another context was wrapped")?;

    let element = gst::ElementFactory::make("fakesink").build()?;
    let slot = gstcuda::ContextSlot::default();
    let first = slot.ensure(&element, -1)?.driver_context()?;
    expect(slot.ensure(&element, -1)?.driver_context()? == first, "two contexts")?;
    let shared = element.context(gstcuda::CONTEXT_TYPE).ok_or("the element was not told")?;
    let neighbour = gstcuda::ContextSlot::default();
    expect(neighbour.set_context(&element, &shared, -1), "the context was not taken")?;
    let taken = neighbour.get().ok_or("no context")?.driver_context()?;
    expect(taken == first, "the neighbour has another context")?;
    let mut query = gst::query::Context::new(gstcuda::CONTEXT_TYPE);
    expect(neighbour.answer(&element, query.query_mut()), "the query was not answered")?;
    slot.clear();
    expect(slot.get().is_none(), "the slot was not cleared")?;
    Ok(String::new())
}
