// SPDX-License-Identifier: LGPL-2.1-or-later
//! Plays a media file in a loop into appsrcs, without encoding it again. Timestamps continue across the loop.

use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use gst::prelude::*;

/// A file, opened and ready to play. Dropping it stops it.
pub(crate) struct Footage {
    pipeline: Running,
    video: gst_app::AppSink,
    audio: Option<gst_app::AppSink>,
}

/// Stops its pipeline when it is dropped.
struct Running(gst::Pipeline);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.set_state(gst::State::Null);
    }
}

/// Events while a file is opened.
enum News {
    /// A track has its first buffer, and so its caps.
    Prerolled,
    /// All tracks that were found have theirs. GStreamer sometimes loses that message when elements are added
    /// during a state change.
    Done,
    Broken(gst::glib::Error),
}

/// The position of the present round in the stream.
#[derive(Default)]
struct Round {
    /// Offset from times of the file to times of the stream.
    offset: gst::ClockTime,
    /// The first and last moment of video seen in the file, in its own time.
    video: Option<(gst::ClockTime, gst::ClockTime)>,
    frames: u64,
}

impl Footage {
    /// Opens the first H.264 or H.265 and, if asked for, the first AAC track.
    pub(crate) fn open(path: &Path, with_audio: bool) -> Result<Self, String> {
        let pipeline = gst::Pipeline::new();
        let source = make("filesrc")?;
        source.set_property("location", path);
        let demuxer = make("parsebin")?;
        pipeline.add_many([&source, &demuxer]).unwrap();
        source.link(&demuxer).unwrap();

        let sinks = Arc::new(Mutex::new((None, None)));
        let (sender, receiver) = mpsc::channel();
        pipeline.bus().unwrap().set_sync_handler({
            let sender = sender.clone();
            move |_, message| {
                let _ = match message.view() {
                    gst::MessageView::AsyncDone(_) => sender.send(News::Done),
                    gst::MessageView::Error(error) => sender.send(News::Broken(error.error())),
                    _ => Ok(()),
                };
                gst::BusSyncReply::Drop
            }
        });
        demuxer.connect_pad_added({
            let pipeline = pipeline.downgrade();
            let sinks = sinks.clone();
            move |_, pad| {
                let mut sinks = sinks.lock().unwrap();
                let caps = caps_of(pad);
                let Some(format) = caps.structure(0) else {
                    return;
                };
                let (kind, slot) = match format.name().as_str() {
                    "video/x-h264" | "video/x-h265" => ("video", &mut sinks.0),
                    "audio/mpeg" if with_audio && format.get("mpegversion") == Ok(4) => {
                        ("audio", &mut sinks.1)
                    }
                    _ => return,
                };
                let Some(pipeline) = pipeline.upgrade().filter(|_| slot.is_none()) else {
                    return;
                };
                // The demuxer has one thread, so that no track may block the other, whose packets are
                // somewhat earlier or later in the file.
                let queue = make("queue").expect("GStreamer itself has it");
                queue.set_property("max-size-time", 5 * gst::ClockTime::SECOND.nseconds());
                queue.set_property("max-size-bytes", 0u32);
                queue.set_property("max-size-buffers", 0u32);
                // The appsrc on the other side sets the pace.
                let sink = gst_app::AppSink::builder().name(kind).sync(false).max_buffers(1);
                let sender = sender.clone();
                let prerolled = move |_: &gst_app::AppSink| {
                    let _ = sender.send(News::Prerolled);
                    Ok(gst::FlowSuccess::Ok)
                };
                let callbacks = gst_app::AppSinkCallbacks::builder().new_preroll(prerolled);
                let sink = slot.insert(sink.callbacks(callbacks.build()).build());
                pipeline.add_many([&queue, sink.upcast_ref()]).unwrap();
                queue.link(sink).unwrap();
                pad.link(&queue.static_pad("sink").unwrap()).unwrap();
                queue.sync_state_with_parent().unwrap();
                sink.sync_state_with_parent().unwrap();
            }
        });

        // Returning early stops the pipeline as well.
        let pipeline = Running(pipeline);
        let cannot = |reason: &str| format!("cannot play {}: {reason}", path.display());
        let _ = pipeline.0.set_state(gst::State::Paused);
        // A file without a track for the sinks fails, because nothing takes its data.
        let mut missing = 1 + usize::from(with_audio);
        while missing > 0 {
            match receiver.recv_timeout(Duration::from_secs(10)) {
                Ok(News::Prerolled) => missing -= 1,
                Ok(News::Done) => break,
                Ok(News::Broken(error)) if error.matches(gst::StreamError::Failed) => break,
                Ok(News::Broken(error)) => return Err(cannot(error.message())),
                Err(_) => return Err(cannot("it did not start within ten seconds")),
            }
        }
        let (video, audio) = std::mem::take(&mut *sinks.lock().unwrap());
        let video = video.ok_or_else(|| cannot("it has no H.264 or H.265 track"))?;
        if with_audio && audio.is_none() {
            return Err(cannot("it has no AAC track"));
        }
        Ok(Self { pipeline, video, audio })
    }

    /// Returns the media type of the video, such as `video/x-h264`.
    pub(crate) fn video_type(&self) -> String {
        let caps = caps_of(&self.video.static_pad("sink").unwrap());
        caps.structure(0).unwrap().name().to_string()
    }

    /// Starts to play. Ends the streams after `frames` frames if there is such a limit.
    ///
    /// The appsrcs have to block when they are full, so that the reader stays at most that far ahead while
    /// the sinks after them play in real time.
    pub(crate) fn play(
        &self,
        video: gst_app::AppSrc,
        audio: Option<gst_app::AppSrc>,
        frames: Option<u64>,
    ) -> Result<(), gst::StateChangeError> {
        let round = Arc::new(Mutex::new(Round::default()));
        forward(&self.video, video, &round, frames, true);
        if let (Some(sink), Some(audio)) = (&self.audio, audio) {
            forward(sink, audio, &round, frames, false);
        }
        let pipeline = self.pipeline.0.downgrade();
        let bus = self.pipeline.0.bus().unwrap();
        bus.set_sync_handler(move |_, message| {
            match message.view() {
                // All tracks are at their end. This is a streaming thread, which must not seek.
                gst::MessageView::Eos(_) => {
                    if let Some(pipeline) = pipeline.upgrade() {
                        round.lock().unwrap().next();
                        pipeline.call_async(|pipeline| {
                            let start = gst::ClockTime::ZERO;
                            if let Err(error) = pipeline.seek_simple(gst::SeekFlags::FLUSH, start) {
                                eprintln!("The file cannot be started again: {error}");
                            }
                        });
                    }
                }
                gst::MessageView::Error(error) => eprintln!("The file broke off: {error}"),
                _ => {}
            }
            gst::BusSyncReply::Drop
        });
        self.pipeline.0.set_state(gst::State::Playing).map(|_| ())
    }
}

impl Round {
    /// Lets the first frame of the next round follow the last frame of this one.
    fn next(&mut self) {
        if let Some((first, end)) = self.video.take() {
            self.offset += end - first;
        }
    }
}

fn forward(
    sink: &gst_app::AppSink,
    source: gst_app::AppSrc,
    round: &Arc<Mutex<Round>>,
    frames: Option<u64>,
    is_video: bool,
) {
    let round = round.clone();
    let mut audio_end = gst::ClockTime::ZERO;
    let next = move |sink: &gst_app::AppSink| {
        let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        let mut buffer = sample.buffer_owned().ok_or(gst::FlowError::Error)?;
        let time = sample.segment().and_then(|segment| segment.downcast_ref::<gst::ClockTime>());
        let time = time.ok_or(gst::FlowError::Error)?;
        let (pts, dts) = (time.to_running_time(buffer.pts()), time.to_running_time(buffer.dts()));
        let duration = buffer.duration().unwrap_or_default();
        {
            let mut round = round.lock().unwrap();
            if frames.is_some_and(|frames| round.frames >= frames) {
                drop(round);
                return source.end_of_stream().and(Err(gst::FlowError::Eos));
            }
            let offset = round.offset;
            match pts {
                Some(pts) if is_video => {
                    let (first, end) = round.video.unwrap_or((pts, pts));
                    round.video = Some((first.min(pts), end.max(pts + duration)));
                    round.frames += 1;
                }
                // Audio lasted longer than video. Its packets at the beginning of the new round are skipped.
                Some(pts) if pts + offset + duration / 2 < audio_end => {
                    return Ok(gst::FlowSuccess::Ok);
                }
                Some(pts) => audio_end = pts + offset + duration,
                None => {}
            }
            let buffer = buffer.make_mut();
            buffer.set_pts(pts.map(|pts| pts + offset));
            buffer.set_dts(dts.map(|dts| dts + offset));
        }
        source.set_caps(sample.caps_owned().as_ref());
        // Blocks while the appsrc is full.
        source.push_buffer(buffer)
    };
    sink.set_callbacks(gst_app::AppSinkCallbacks::builder().new_sample(next).build());
}

fn make(element: &str) -> Result<gst::Element, String> {
    gst::ElementFactory::make(element).build().map_err(|error| error.to_string())
}

/// Returns the caps that the pad has or will have.
fn caps_of(pad: &gst::Pad) -> gst::Caps {
    pad.current_caps().unwrap_or_else(|| pad.query_caps(None))
}
