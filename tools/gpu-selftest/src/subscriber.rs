// SPDX-License-Identifier: LGPL-2.1-or-later
//! The process that subscribes: executes the commands of its publisher.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use cuframes::cuda::{Context, Device, DeviceMemory, Event, HostAccess, RegisteredHost, Stream};
use cuframes::memory::Importer;
use cuframes::{Frame, Interrupt, Next, Subscriber, SubscriberConfig, Wait};

use crate::page::SharedPage;
use crate::report::{DEADLINE, Outcome, expect, wait_until};
use crate::workload::{Ballast, FRAME, pattern};

/// Subscribes to the key, checks the first frame, and executes commands until one says `end`.
pub(crate) fn run(dir: &Path, key: &str) -> Outcome<()> {
    let mut session = Session::connect(dir, key)?;
    for line in std::io::stdin().lines() {
        match session.execute(&line?)? {
            Some(answer) => println!("ok {answer}"),
            None => break,
        }
    }
    session.stream.synchronize()?;
    Ok(())
}

/// Result of the command `frames`.
pub(crate) struct Tally {
    /// Frames that were written while they were read.
    pub(crate) torn: u64,
    /// Frames that were read.
    pub(crate) taken: u64,
}

impl Tally {
    /// Parses the text of a tally.
    pub(crate) fn parse(text: &str) -> Outcome<Self> {
        let (torn, taken) = text.split_once(" torn of ").ok_or(text)?;
        Ok(Self { torn: torn.parse()?, taken: taken.parse()? })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} torn of {}", self.torn, self.taken)
    }
}

struct Session {
    /// The first frame, held until the end.
    frame: Frame,
    subscriber: Subscriber,
    context: Context,
    stream: Stream,
    ballast: Ballast,
    page: Arc<SharedPage>,
    registered: RegisteredHost,
}

impl Session {
    fn connect(dir: &Path, key: &str) -> Outcome<Self> {
        let context = Context::primary(&Device::by_ordinal(0)?)?;
        let interrupt = Interrupt::new()?;
        let mut config = SubscriberConfig::new(key);
        config.runtime_dir = Some(dir.to_owned());
        config.importer = Importer::cuda(context.clone());
        let mut subscriber = Subscriber::connect(config, Some(DEADLINE), &interrupt)?;
        let frame = next_frame(&mut subscriber)?;
        let page = Arc::new(SharedPage::new()?);
        // SAFETY: a page of this process.
        let registered = unsafe { page.register(&context, HostAccess::ReadWrite) }?;
        let (stream, ballast) = (Stream::new(&context)?, Ballast::new(&context)?);
        let session = Self { frame, subscriber, context, stream, ballast, page, registered };
        expect(session.pixels()? == pattern(1), "other pixels")?;
        println!("ok frame {} of {}", session.frame.seq, session.frame.caps);
        Ok(session)
    }

    /// Executes a command and returns the answer; `None` for the end.
    fn execute(&mut self, command: &str) -> Outcome<Option<String>> {
        let words: Vec<&str> = command.split(' ').collect();
        let answer = match words[..] {
            ["write"] => self.write()?,
            ["wait", number, path] => {
                let wrong = self.wrong_bytes_after(number, path)?;
                expect(wrong == 0, format!("{wrong} bytes were not written yet"))?;
                wrong.to_string()
            }
            ["race", number, path] => self.wrong_bytes_after(number, path)?.to_string(),
            ["frames", last, release] => {
                self.take_frames(last.parse()?, release == "hold")?.to_string()
            }
            ["release"] => self.write_number()?,
            ["event", handle] => self.wait_for_event(handle)?,
            ["read", value] => {
                let wrong = self.wrong_bytes(value.parse()?)?;
                expect(wrong == 0, format!("{wrong} bytes are wrong"))?;
                "-".into()
            }
            _ => return Ok(None),
        };
        Ok(Some(answer))
    }

    /// Reads the first frame.
    fn pixels(&self) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; FRAME];
        // SAFETY: the frame, which this process holds, is as long.
        unsafe { self.stream.read(self.frame.address(), &mut bytes) }?;
        Ok(bytes)
    }

    /// Counts the bytes of the first frame that differ from the value.
    fn wrong_bytes(&self, value: u64) -> Outcome<usize> {
        Ok(self.pixels()?.iter().filter(|b| **b != value as u8).count())
    }

    /// As [`Self::wrong_bytes`], as soon as the number is in the page.
    fn wrong_bytes_after(&self, number: &str, path: &str) -> Outcome<usize> {
        let (number, page) = (number.parse()?, SharedPage::open(path)?);
        wait_until("number", || Ok(page.load() >= number))?;
        self.wrong_bytes(number)
    }

    /// Tries to write the first frame, which must fail.
    fn write(&self) -> Outcome {
        let address = self.frame.address();
        // SAFETY: the driver has to refuse the write, which is what this checks.
        let fill = unsafe { self.stream.fill(address, 0xff, FRAME) };
        let fill = fill.err().ok_or("a write was accepted")?;
        // SAFETY: as above.
        let upload = unsafe { self.stream.write(address, &[0xff; 64]) };
        let upload = upload.err().ok_or("an upload was accepted")?;
        expect(self.pixels()? == pattern(1), "the pixels changed")?;
        Ok(format!("{fill}; {upload}"))
    }

    /// Makes the GPU write a number to this process's page, with a delay. Returns the path of the page.
    fn write_number(&self) -> Outcome {
        // SAFETY: the ballast exists until the end, where the stream is synchronized.
        unsafe { self.ballast.keep_busy(&self.stream) }?;
        self.stream.write_value(&self.registered, 0, 42)?;
        Ok(self.page.path())
    }

    /// Waits for an event of the publisher.
    fn wait_for_event(&self, handle: &str) -> Outcome {
        let mut bytes = [0; 64];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&handle[2 * i..2 * i + 2], 16)?;
        }
        let event = Event::open(&self.context, &bytes)?;
        let waited = wait_until("event", || Ok(event.is_done()?))?;
        Ok(format!("waited {waited:?}"))
    }

    /// Takes frames up to the number `last`. Reads each twice with work in between, and releases it before
    /// that is done: in stream order with `in_order`, otherwise at once.
    fn take_frames(&mut self, last: u64, in_order: bool) -> Outcome<Tally> {
        let cuframes::SharedPage { base: page, len, keep_alive: keep } = self.subscriber.page();
        let access = HostAccess::ReadWrite;
        // SAFETY: mapped for writing while `keep` exists, and read through atomics.
        let claims = unsafe { RegisteredHost::new(&self.context, page, len, access, keep) }?;
        let copy = DeviceMemory::new(&self.context, 2 * FRAME)?;
        let mut bytes = vec![0; 2 * FRAME];
        let (mut seq, mut tally) = (0, Tally { torn: 0, taken: 0 });
        while seq < last {
            let frame = next_frame(&mut self.subscriber)?;
            seq = frame.seq;
            tally.taken += 1;
            // SAFETY: with `in_order` the claim is cleared after both reads; otherwise the frame may
            // change, which is what this checks. The other memories exist until the read below is done.
            unsafe {
                self.stream.copy(frame.address(), copy.address(), FRAME)?;
                // Long enough that the GPU executes work of the publisher in between.
                (0..4).try_for_each(|_| self.ballast.keep_busy(&self.stream))?;
                self.stream.copy(frame.address(), copy.address() + FRAME as u64, FRAME)?;
            }
            frame.release_with(|offset| {
                in_order && self.stream.write_value(&claims, offset, 0).is_ok()
            });
            // SAFETY: the memory is as long.
            unsafe { self.stream.read(copy.address(), &mut bytes) }?;
            tally.torn += u64::from(bytes.iter().any(|b| *b != seq as u8));
        }
        Ok(tally)
    }
}

fn next_frame(subscriber: &mut Subscriber) -> Outcome<Frame> {
    let wait = Wait { timeout: Some(DEADLINE), ..Wait::default() };
    match subscriber.next_frame(&wait)? {
        Next::Item(frame) => Ok(frame),
        _ => Err("no frame".into()),
    }
}
