// SPDX-License-Identifier: LGPL-2.1-or-later
//! An RTSP server on 127.0.0.1 that simulates an IP camera, for the demo and the tests.
//!
//! Every frame carries its number in its pixels (`testing::stamp`), so that a test can identify it at the end
//! of any chain. All clients share one stream.

mod clock;
mod footage;
mod options;

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gst::glib;
use gst::prelude::*;
use gst_rtsp_server::prelude::*;
use gst_rtsp_server::{RTSPFilterResult, RTSPMedia, RTSPMediaFactory, RTSPServer};
use gst_video::prelude::*;
use nix::sys::signal::{SigSet, Signal};

use footage::Footage;
use testing::stamp;

use options::{Codec, HELP, Options};

/// The number of the next frame.
static NEXT_FRAME: AtomicU32 = AtomicU32::new(0);

/// Draws the number and the time of day into a raw frame.
fn mark(pad: &gst::Pad, info: &mut gst::PadProbeInfo) -> Option<()> {
    let caps = pad.current_caps()?;
    let video = gst_video::VideoInfo::from_caps(&caps).ok()?;
    let buffer = info.buffer_mut()?.make_mut();
    let mut frame = gst_video::VideoFrameRef::from_buffer_ref_writable(buffer, &video).ok()?;
    let (width, height) = (frame.width() as usize, frame.height() as usize);

    // Without colour, the stamp stays black and white after a conversion to RGB.
    for plane in [1, 2] {
        let stride = frame.plane_stride()[plane] as usize;
        let chroma = frame.plane_data_mut(plane as u32).ok()?;
        for (lines, pixels) in stamp::areas(width, height) {
            for line in lines.start / 2..lines.end.div_ceil(2) {
                chroma[line * stride..][..pixels.div_ceil(2)].fill(128);
            }
        }
    }
    let number = NEXT_FRAME.fetch_add(1, Ordering::Relaxed);
    let stride = frame.plane_stride()[0] as usize;
    let luma = frame.plane_data_mut(0).ok()?;
    stamp::write(luma, stride, width, height, number);
    let time = glib::DateTime::now_local().ok()?.format("%H:%M:%S").ok()?;
    let unit = (height / 90).max(1);
    let line = clock::size(&time, unit).1;
    clock::draw(luma, stride, (2 * unit, height / 4), unit, &time);
    clock::draw(luma, stride, (2 * unit, height / 4 + line), unit, &format!("{number:08}"));
    Some(())
}

/// Configures a new stream, which begins with the first client, and with the first after all have left.
fn configure(media: &RTSPMedia, options: &Options) {
    let bin = media.element().downcast::<gst::Bin>().expect("the factory makes bins");
    if let Some(format) = bin.by_name("format") {
        let pad = format.static_pad("src").expect("a capsfilter has one");
        pad.add_probe(gst::PadProbeType::BUFFER, |pad, info| {
            mark(pad, info).expect("the frames are writable I420");
            gst::PadProbeReturn::Ok
        });
    }
    let Some(path) = &options.file else { return };
    let appsrc = |name| bin.by_name(name).and_downcast::<gst_app::AppSrc>();
    let video = appsrc("video").expect("it is in the launch line");
    let played = Footage::open(path, options.audio).and_then(|footage| {
        let frames = options.frames.map(u64::from);
        let started = footage.play(video, appsrc("audio"), frames);
        started.map_err(|error| error.to_string()).map(|()| footage)
    });
    match played {
        Ok(footage) => {
            let footage = Mutex::new(Some(footage));
            media.connect_unprepared(move |_| drop(footage.lock().unwrap().take()));
        }
        Err(error) => eprintln!("camera: {error}"),
    }
}

/// Prints a line for the parent process, which may have ended.
fn report(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn count_clients(server: &RTSPServer) {
    let counts = Arc::new(Mutex::new((0u32, 0u32)));
    server.connect_client_connected(move |_, client| {
        let change = |counts: &Mutex<(u32, u32)>, connected: bool| {
            let mut counts = counts.lock().unwrap();
            match connected {
                true => *counts = (counts.0 + 1, counts.1 + 1),
                false => counts.0 -= 1,
            }
            // Under the lock, so that the lines are in order.
            report(&format!("clients {} total {}", counts.0, counts.1));
        };
        change(&counts, true);
        let counts = counts.clone();
        client.connect_closed(move |_| change(&counts, false));
    });
}

fn cut(server: &RTSPServer) -> usize {
    let mut count = 0;
    server.client_filter(Some(&mut |_, _| {
        count += 1;
        RTSPFilterResult::Remove
    }));
    count
}

/// Serves until a signal ends it.
fn serve(mut options: Options, signals: SigSet) -> Result<(), String> {
    gst::init().map_err(|error| error.to_string())?;
    if let Some(path) = &options.file {
        options.codec = match Footage::open(path, options.audio)?.video_type().as_str() {
            "video/x-h265" => Codec::H265,
            _ => Codec::H264,
        };
    }
    let options = Arc::new(options);
    let factory = RTSPMediaFactory::new();
    factory.set_launch(&options.launch()?);
    factory.set_shared(true);
    // For SIGUSR2: the capsfilter of the running stream, and the divisor of its size.
    let running = Arc::new(Mutex::new((glib::WeakRef::<gst::Element>::new(), 1)));
    factory.connect_media_configure({
        let (options, running) = (options.clone(), running.clone());
        move |_, media| {
            configure(media, &options);
            let bin = media.element().downcast::<gst::Bin>().ok();
            let format = bin.and_then(|bin| bin.by_name("format"));
            let weak = glib::WeakRef::new();
            weak.set(format.as_ref());
            *running.lock().unwrap() = (weak, 1);
        }
    });

    let server = RTSPServer::new();
    server.set_address("127.0.0.1");
    server.set_service(&options.port.to_string());
    server.mount_points().expect("a new server has them").add_factory(&options.path, factory);
    count_clients(&server);
    let attached = server.attach(None);
    let _source = attached.map_err(|_| format!("port {} cannot be opened", options.port))?;
    report(&format!("ready rtsp://127.0.0.1:{}{}", server.bound_port(), options.path));

    // UDP clients that disappear are noticed by the timeout of their sessions.
    let sessions = server.session_pool().expect("a new server has one");
    glib::timeout_add(Duration::from_secs(2), move || {
        sessions.cleanup();
        glib::ControlFlow::Continue
    });

    let main_loop = glib::MainLoop::new(None, false);
    std::thread::spawn({
        let (main_loop, server, options) = (main_loop.clone(), server.clone(), options.clone());
        move || {
            loop {
                match signals.wait() {
                    Ok(Signal::SIGUSR1) => report(&format!("cut {}", cut(&server))),
                    Ok(Signal::SIGUSR2) => {
                        let mut running = running.lock().unwrap();
                        let Some(format) = running.0.upgrade() else {
                            continue;
                        };
                        running.1 = 3 - running.1;
                        let caps = options.caps(running.1);
                        format.set_property("caps", &caps);
                        let info = gst_video::VideoInfo::from_caps(&caps).expect("made as such");
                        report(&format!("size {}x{}", info.width(), info.height()));
                    }
                    // In the main loop, because a `quit` before it runs would be lost.
                    _ => {
                        glib::idle_add_once(move || main_loop.quit());
                        return;
                    }
                }
            }
        }
    });
    main_loop.run();
    cut(&server);
    Ok(())
}

fn main() -> ExitCode {
    // Before any thread starts. All threads inherit the mask, so that only `wait` gets these signals.
    let handled = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];
    let signals: SigSet = handled.into_iter().collect();
    signals.thread_block().expect("these signals can be blocked");

    let (message, code) = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => match serve(options, signals) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(message) => (message, 1),
        },
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(message) => (message, 2),
    };
    eprintln!("camera: {message}");
    ExitCode::from(code)
}
