// SPDX-License-Identifier: LGPL-2.1-or-later
//! Prints frame rate, latency and losses of a key once a second.
//!
//! ```sh
//! cargo run --release --example watch -- cam1
//! cam1 1920x1080 NV12  fps 30.0  latency p50 41 µs p99 120 µs  skipped 0  duplicates 0  reconnects 0
//! ```

use std::cell::RefCell;
use std::io::Write;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use gst::glib;
use gst::prelude::*;

const HELP: &str = "watch KEY [--seconds N] [--json]";

struct Options {
    key: String,
    seconds: Option<u64>,
    json: bool,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Self> {
        let (mut key, mut seconds, mut json) = (None, None, false);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--seconds" => seconds = Some(arguments.next()?.parse().ok()?),
                "--json" => json = true,
                other if other.starts_with("--") || key.is_some() => return None,
                _ => key = Some(argument),
            }
        }
        Some(Self { key: key?, seconds, json })
    }
}

/// Returns a line about the time since the previous one. `received` is the frame count of the previous
/// line, and is updated.
fn report(
    source: &gst::Element,
    options: &Options,
    received: &mut u64,
    elapsed: Duration,
) -> String {
    let stats = source.property::<gst::Structure>("stats");
    let count = |name: &str| stats.get::<u64>(name).unwrap_or(0);
    let micros = |name: &str| count(name) / 1000;

    let fps = count("received").saturating_sub(*received) as f64 / elapsed.as_secs_f64();
    *received = count("received");
    let (p50, p99) = (micros("latency-p50"), micros("latency-p99"));
    let [skipped, duplicates, reconnects] = ["skipped", "duplicates", "reconnects"].map(count);

    let caps = source.static_pad("src").and_then(|pad| pad.current_caps());
    let video = caps.and_then(|caps| gst_video::VideoInfo::from_caps(&caps).ok());
    let key = &options.key;
    if options.json {
        // The characters of a key need no escaping in JSON.
        let (width, height, format) = video.map_or((0, 0, ""), |video| {
            (video.width(), video.height(), video.format().to_str().as_str())
        });
        return format!(
            "{{\"key\":\"{key}\",\"width\":{width},\"height\":{height},\"format\":\"{format}\",\
             \"fps\":{fps:.1},\"received\":{received},\"latency_p50_us\":{p50},\
             \"latency_p99_us\":{p99},\"skipped\":{skipped},\"duplicates\":{duplicates},\
             \"reconnects\":{reconnects}}}"
        );
    }
    let Some(video) = video else {
        return format!("{key} waiting for a publisher");
    };
    format!(
        "{key} {}x{} {}  fps {fps:.1}  latency p50 {p50} µs p99 {p99} µs  \
         skipped {skipped}  duplicates {duplicates}  reconnects {reconnects}",
        video.width(),
        video.height(),
        video.format().to_str(),
    )
}

/// Runs until the given time is over, the pipeline fails or the output is closed.
fn watch(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    gst::init()?;
    gstcuframes::plugin_register_static()?;

    let pipeline = gst::Pipeline::new();
    let source = gst::ElementFactory::make("cuframessrc")
        .property("key", &options.key)
        // After the end of the stream, wait for the next publisher of the key.
        .property_from_str("on-eos", "wait")
        .build()?;
    let sink = gst::ElementFactory::make("fakesink").property("sync", false).build()?;
    pipeline.add_many([&source, &sink])?;
    source.link(&sink)?;

    let main_loop = glib::MainLoop::new(None, false);
    let seconds = options.seconds;

    let mut last_report = Instant::now();
    let (mut received, mut ticks) = (0, 0);
    let quit = main_loop.clone();
    let timed_source = source.clone();
    glib::timeout_add_seconds_local(1, move || {
        let now = Instant::now();
        let line = report(&timed_source, &options, &mut received, now - last_report);
        last_report = now;
        ticks += 1;
        // Fails if the reader has closed the pipe, as in `watch cam1 | head`.
        let closed = writeln!(std::io::stdout(), "{line}").is_err();
        if closed || seconds.is_some_and(|seconds| ticks >= seconds) {
            quit.quit();
        }
        glib::ControlFlow::Continue
    });

    let quit = main_loop.clone();
    let bus = pipeline.bus().expect("a pipeline has a bus");
    let failure = Rc::new(RefCell::new(None));
    let bus_failure = failure.clone();
    let _watch = bus.add_watch_local(move |_, message| {
        match message.view() {
            gst::MessageView::Eos(_) => quit.quit(),
            gst::MessageView::Error(error) => {
                bus_failure.replace(Some(error.error()));
                quit.quit();
            }
            _ => {}
        }
        glib::ControlFlow::Continue
    })?;

    // If the start fails, the error message is on the bus.
    let _ = pipeline.set_state(gst::State::Playing);
    main_loop.run();
    pipeline.set_state(gst::State::Null)?;
    failure.take().map_or(Ok(()), |error| Err(error.into()))
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|first| first == "--help") {
        println!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let Some(options) = Options::parse(arguments) else {
        eprintln!("{HELP}");
        return ExitCode::from(2);
    };
    match watch(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("watch: {error}");
            ExitCode::FAILURE
        }
    }
}
