// SPDX-License-Identifier: LGPL-2.1-or-later
//! Records events: whenever the image changes, a file is written that starts some seconds before the change.
//!
//! ```sh
//! cargo run --release --example event-recorder -- cam1 events/
//! events/1.mp4: 12.4 % of the picture changed
//! events/1.mp4: done
//! ```
//!
//! One pipeline detects motion in the decoded frames. During motion a second pipeline writes the packets,
//! which are never encoded again. The publisher keeps recent packets, which the file starts with.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use gst::prelude::*;

const HELP: &str = "\
event-recorder KEY DIRECTORY [--before SECONDS] [--after SECONDS] [--threshold PERCENT] [--events N]

Writes DIRECTORY/1.mp4, 2.mp4 and so on, from H.264 packets in track 0 of KEY.

  --before SECONDS     start of a file, before the first change (default 5)
  --after SECONDS      end of a file, after the last change (default 5)
  --threshold PERCENT  pixels that count as a change of the image (default 2)
  --events N           exit after N files";

/// Caps of the frames that are compared. Scaling them down removes noise.
const SMALL: &str = "video/x-raw,format=GRAY8,width=64,height=36";
/// Smallest difference of a changed pixel, of 255.
const MIN_DIFFERENCE: u8 = 25;

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

/// A pipeline that is stopped when dropped.
struct Pipeline(gst::Pipeline);

impl Pipeline {
    fn play(description: &str) -> Result<Self, Box<dyn Error>> {
        let pipeline = gst::parse::launch(description)?.downcast::<gst::Pipeline>();
        let pipeline = Self(pipeline.map_err(|_| "not a pipeline")?);
        // If the start fails, the error message is on the bus.
        let _ = pipeline.0.set_state(gst::State::Playing);
        Ok(pipeline)
    }

    /// Waits for the end of the stream, up to `timeout`. Fails if the pipeline has failed.
    fn check(&self, timeout: impl Into<Option<gst::ClockTime>>) -> Result<(), Box<dyn Error>> {
        let kinds = [gst::MessageType::Error, gst::MessageType::Eos];
        let message = self.0.bus().ok_or("no bus")?.timed_pop_filtered(timeout, &kinds);
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

/// A file that is being written.
struct Recording {
    pipeline: Pipeline,
    file: PathBuf,
    /// The time of the last change of the image.
    changed: Instant,
}

impl Recording {
    /// Starts to write the packets of the key to a file, beginning `options.before` ago.
    fn start(options: &Options, file: PathBuf) -> Result<Self, Box<dyn Error>> {
        let pipeline = Pipeline::play(&format!(
            "cuframespacketsrc key={} preroll-time={} ! h264parse ! mp4mux ! filesink location=\"{}\"",
            options.key,
            options.before.as_nanos(),
            file.display()
        ))?;
        Ok(Self { pipeline, file, changed: Instant::now() })
    }

    /// Completes the file.
    fn finish(self) -> Result<(), Box<dyn Error>> {
        // At the end of the stream the muxer writes the index of the file.
        self.pipeline.0.send_event(gst::event::Eos::new());
        self.pipeline.check(gst::ClockTime::NONE)?;
        println!("{}: done", self.file.display());
        Ok(())
    }
}

/// Compares each frame with the previous one.
#[derive(Default)]
struct MotionDetector {
    previous: Vec<u8>,
}

impl MotionDetector {
    /// Returns the percentage of pixels that differ from the previous frame.
    fn change(&mut self, buffer: &gst::BufferRef) -> Result<f64, Box<dyn Error>> {
        let current = buffer.map_readable()?.to_vec();
        let pixels = current.iter().zip(&self.previous);
        let changed = pixels.filter(|(a, b)| a.abs_diff(**b) >= MIN_DIFFERENCE).count();
        self.previous = current;
        Ok(100.0 * changed as f64 / self.previous.len().max(1) as f64)
    }
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
    let mut detector = MotionDetector::default();
    let mut recording: Option<Recording> = None;
    let mut events = 0;
    loop {
        // The timeout ends a recording also when the camera delivers no more frames.
        let sample = sink.try_pull_sample(gst::ClockTime::from_mseconds(200));
        let change = match sample.as_ref().and_then(|s| s.buffer()) {
            Some(buffer) => detector.change(buffer)?,
            None => 0.0,
        };
        if change >= options.threshold {
            match &mut recording {
                Some(recording) => recording.changed = Instant::now(),
                None => {
                    events += 1;
                    let file = options.directory.join(format!("{events}.mp4"));
                    println!("{}: {change:.1} % of the picture changed", file.display());
                    recording = Some(Recording::start(options, file)?);
                }
            }
        }
        if let Some(ended) = recording.take_if(|r| r.changed.elapsed() > options.after) {
            ended.finish()?;
            if events == options.events {
                return Ok(());
            }
        }
        for pipeline in
            [Some(&frames), recording.as_ref().map(|r| &r.pipeline)].into_iter().flatten()
        {
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
