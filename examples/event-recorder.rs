//! Records what happens, with what came before it: whenever the picture changes, a file is written that
//! begins some seconds earlier.
//!
//! ```sh
//! cargo run --release --example event-recorder -- cam1 events/
//! events/1.mp4: 12.4 % of the picture changed
//! events/1.mp4: done
//! ```
//!
//! One source takes the decoded frames and looks for motion; only while there is some does another take
//! the packets, which the publisher has kept, and writes them as they are. Nothing is encoded.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use gst::prelude::*;

const HELP: &str = "\
event-recorder KEY DIRECTORY [--before SECONDS] [--after SECONDS] [--threshold PERCENT] [--events N]

Writes DIRECTORY/1.mp4, 2.mp4 and so on, from H.264 in track 0 of KEY. A file begins 5 s before the
change (--before) and ends when nothing has changed for 5 s (--after). A change is 2 % of the picture
(--threshold). With --events it ends after so many files.";

/// Frames are compared at this size, where noise does not count.
const SMALL: &str = "video/x-raw,format=GRAY8,width=64,height=36";
/// A pixel has changed by this much of 255.
const CHANGED: u8 = 25;

struct Options {
    key: String,
    directory: PathBuf,
    before: Duration,
    after: Duration,
    threshold: f64,
    events: u32,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Self> {
        let mut options = Self {
            key: arguments.next().filter(|key| !key.starts_with("--"))?,
            directory: arguments.next()?.into(),
            before: Duration::from_secs(5),
            after: Duration::from_secs(5),
            threshold: 2.0,
            events: u32::MAX,
        };
        while let Some(name) = arguments.next() {
            let value = arguments.next()?;
            let seconds = || value.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
            match name.as_str() {
                "--before" => options.before = seconds()?,
                "--after" => options.after = seconds()?,
                "--threshold" => options.threshold = value.parse().ok()?,
                "--events" => options.events = value.parse().ok()?,
                _ => return None,
            }
        }
        Some(options)
    }
}

/// A pipeline that ends with its scope.
struct Pipeline(gst::Pipeline);

impl Pipeline {
    fn play(description: &str) -> Result<Self, Box<dyn Error>> {
        let pipeline = gst::parse::launch(description)?.downcast::<gst::Pipeline>();
        let pipeline = Self(pipeline.map_err(|_| "not a pipeline")?);
        // A failed start says why on the bus.
        let _ = pipeline.0.set_state(gst::State::Playing);
        Ok(pipeline)
    }

    /// Fails if the pipeline has; waits for its end, if it is to come.
    fn check(&self, wait: impl Into<Option<gst::ClockTime>>) -> Result<(), Box<dyn Error>> {
        let kinds = [gst::MessageType::Error, gst::MessageType::Eos];
        let message = self.0.bus().ok_or("no bus")?.timed_pop_filtered(wait, &kinds);
        match message.as_ref().map(|m| m.view()) {
            Some(gst::MessageView::Error(e)) => Err(e.error().into()),
            _ => Ok(()),
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let _ = self.0.set_state(gst::State::Null);
    }
}

/// The packets of the key into a file, from `before` ago on.
fn record(options: &Options, file: &Path) -> Result<Pipeline, Box<dyn Error>> {
    Pipeline::play(&format!(
        "cuframespacketsrc key={} preroll-time={} ! h264parse ! mp4mux ! filesink location=\"{}\"",
        options.key,
        options.before.as_nanos(),
        file.display()
    ))
}

/// How many percent of the pixels differ.
fn difference(a: &[u8], b: &[u8]) -> f64 {
    let changed = a.iter().zip(b).filter(|(a, b)| a.abs_diff(**b) >= CHANGED).count();
    100.0 * changed as f64 / a.len().max(1) as f64
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    gst::init()?;
    gstcuframes::plugin_register_static()?;
    std::fs::create_dir_all(&options.directory)?;
    let frames = Pipeline::play(&format!(
        "cuframessrc key={} ! videoconvert ! videoscale ! {SMALL} \
         ! appsink name=frames sync=false drop=true max-buffers=1",
        options.key
    ))?;
    let sink = frames.0.by_name("frames").and_downcast::<gst_app::AppSink>().ok_or("no appsink")?;
    let mut events = 0;
    let mut last: Vec<u8> = Vec::new();
    let mut recording: Option<(Pipeline, PathBuf, Instant)> = None;
    loop {
        // Now and then without a frame, so that a file ends also when the camera does.
        let sample = sink.try_pull_sample(gst::ClockTime::from_mseconds(200));
        let change = match sample.as_ref().and_then(|s| s.buffer()) {
            Some(buffer) => {
                let picture = buffer.map_readable()?.to_vec();
                let before = std::mem::replace(&mut last, picture);
                if before.is_empty() { 0.0 } else { difference(&before, &last) }
            }
            None => 0.0,
        };
        let moves = change >= options.threshold;
        match &mut recording {
            None if moves => {
                events += 1;
                let file = options.directory.join(format!("{events}.mp4"));
                println!("{}: {change:.1} % of the picture changed", file.display());
                recording = Some((record(options, &file)?, file, Instant::now()));
            }
            Some((_, _, moved)) if moves => *moved = Instant::now(),
            _ => {}
        }
        let over = |(.., moved): &mut (_, _, Instant)| moved.elapsed() > options.after;
        if let Some((pipeline, file, _)) = recording.take_if(over) {
            // The muxer completes the file.
            pipeline.0.send_event(gst::event::Eos::new());
            pipeline.check(gst::ClockTime::NONE)?;
            println!("{}: done", file.display());
            if events == options.events {
                return Ok(());
            }
        }
        for pipeline in [Some(&frames), recording.as_ref().map(|r| &r.0)].into_iter().flatten() {
            pipeline.check(gst::ClockTime::ZERO)?;
        }
        if sink.is_eos() && recording.is_none() {
            return Ok(());
        }
    }
}

fn main() -> ExitCode {
    let Some(options) = Options::parse(std::env::args().skip(1)) else {
        println!("{HELP}");
        return ExitCode::from(2);
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("event-recorder: {error}");
            ExitCode::FAILURE
        }
    }
}
