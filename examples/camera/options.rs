// SPDX-License-Identifier: LGPL-2.1-or-later
//! The camera's command line, and the pipeline that it describes.

use std::path::PathBuf;
use std::str::FromStr;

pub(crate) const HELP: &str = "\
Plays the part of an IP camera: an RTSP server on 127.0.0.1.

Usage: camera [OPTION]...
  --port N          TCP port, 0 for any that is free (8554)
  --path PATH       path of the stream (/cam)
  --codec CODEC     h264 or h265 (h264)
  --size WxH        picture size in pixels, even numbers (1920x1080)
  --fps N[/D]       frame rate (30)
  --gop N           frames from one keyframe to the next (one second)
  --bitrate KBITS   kbit/s of video (4147 at 1920x1080 and 30 fps, else in proportion)
  --bframes N       B-frames between two other frames, 0 to 16 (0)
  --slices N        slices of each picture, H.264 without B-frames only (1); with more than one, a client that
                    joins others may miss the first slices of its first picture
  --audio           add sound, which is AAC
  --audio-codec C   add sound in another codec: aac, pcmu or l16
  --file PATH       loop the H.264 or H.265 of this file, as it is, instead of a test picture
  --frames N        end each stream after N frames
  --help

Lines on standard output:
  ready URL           it accepts connections
  clients N total M   N clients are connected, there have been M so far
  cut N               N connections were closed on SIGUSR1
  size WxH            the picture has a new size

Signals:
  SIGUSR1             closes all connections at once
  SIGUSR2             switches between the full and half the width and height
  SIGINT, SIGTERM     end it

Frame numbers go up for the life of the process, also from one stream to the next.
";

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Codec {
    H264,
    H265,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Sound {
    Aac,
    Pcmu,
    L16,
}

pub(crate) struct Options {
    pub(crate) port: u16,
    pub(crate) path: String,
    pub(crate) codec: Codec,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) fps: (u32, u32),
    pub(crate) gop: Option<u32>,
    pub(crate) bitrate: Option<u32>,
    pub(crate) bframes: u32,
    pub(crate) slices: u32,
    pub(crate) audio: bool,
    pub(crate) sound: Sound,
    pub(crate) file: Option<PathBuf>,
    pub(crate) frames: Option<u32>,
}

impl Options {
    /// Parses arguments; `None` if they ask for help.
    pub(crate) fn parse(
        mut arguments: impl Iterator<Item = String>,
    ) -> Result<Option<Self>, String> {
        let mut options = Self {
            port: 8554,
            path: "/cam".into(),
            codec: Codec::H264,
            width: 1920,
            height: 1080,
            fps: (30, 1),
            gop: None,
            bitrate: None,
            bframes: 0,
            slices: 1,
            audio: false,
            sound: Sound::Aac,
            file: None,
            frames: None,
        };
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
            match name.as_str() {
                "--help" | "-h" => return Ok(None),
                "--port" => options.port = number(&name, &value()?, 0)?,
                "--path" => options.path = format!("/{}", value()?.trim_start_matches('/')),
                "--codec" => {
                    options.codec = match value()?.as_str() {
                        "h264" => Codec::H264,
                        "h265" => Codec::H265,
                        other => return Err(format!("--codec is h264 or h265, not {other}")),
                    }
                }
                "--size" => {
                    let value = value()?;
                    (options.width, options.height) = pair(&value, 'x')
                        .filter(|&(w, h)| {
                            [w, h].iter().all(|n| n % 2 == 0 && *n >= 64 && *n <= 8192)
                        })
                        .ok_or(format!(
                            "--size is WxH, even numbers from 64 to 8192, not {value}"
                        ))?;
                }
                "--fps" => {
                    let value = value()?;
                    options.fps = pair(&value, '/')
                        .or_else(|| Some((value.parse().ok()?, 1)))
                        .filter(|&(n, d)| n > 0 && d > 0 && n / d <= 1000 && d < 1 << 20)
                        .ok_or(format!("--fps is a rate such as 25 or 30000/1001, not {value}"))?;
                }
                "--gop" => options.gop = Some(number(&name, &value()?, 1)?),
                "--bitrate" => options.bitrate = Some(number(&name, &value()?, 1)?),
                "--bframes" => options.bframes = number(&name, &value()?, 0)?,
                "--slices" => options.slices = number(&name, &value()?, 1)?,
                "--audio" => options.audio = true,
                "--audio-codec" => {
                    options.audio = true;
                    options.sound = match value()?.as_str() {
                        "aac" => Sound::Aac,
                        "pcmu" => Sound::Pcmu,
                        "l16" => Sound::L16,
                        other => {
                            return Err(format!("--audio-codec is aac, pcmu or l16, not {other}"));
                        }
                    }
                }
                "--file" => options.file = Some(value()?.into()),
                "--frames" => options.frames = Some(number(&name, &value()?, 1)?),
                _ => return Err(format!("there is no option {name}; --help lists them")),
            }
        }
        match options.bframes {
            0..=16 => Ok(Some(options)),
            other => Err(format!("--bframes is 0 to 16, not {other}")),
        }
    }

    /// Returns the elements of the stream in the syntax of a media factory.
    pub(crate) fn launch(&self) -> Result<String, String> {
        let (pay, parse) = match self.codec {
            Codec::H264 => ("rtph264pay aggregate-mode=zero-latency", "h264parse"),
            Codec::H265 => ("rtph265pay aggregate-mode=zero-latency", "h265parse"),
        };
        // Parameter sets precede each keyframe, because a client may join, or the size change, at any time.
        let pay = format!("{parse} ! {pay} name=pay0 pt=96 config-interval=-1");
        let pay_audio = "aacparse ! rtpmp4gpay name=pay1 pt=97";
        // At most half a second ahead of the clock.
        let appsrc = "appsrc is-live=true format=time block=true max-bytes=0 max-time=500000000";

        let mut launch = if self.file.is_some() {
            format!("{appsrc} name=video ! {pay}")
        } else {
            format!(
                "videotestsrc is-live=true pattern=smpte75 horizontal-speed=4 num-buffers={} \
                 ! capsfilter name=format caps=\"{}\" ! queue ! {} ! {pay}",
                self.frames.map_or(-1, i64::from),
                self.caps(1),
                self.encoder(),
            )
        };
        let aac = ["voaacenc", "avenc_aac"]
            .into_iter()
            .find(|name| gst::ElementFactory::find(name).is_some());
        match (self.audio, &self.file) {
            (false, _) => {}
            (true, Some(_)) => launch += &format!(" {appsrc} name=audio ! {pay_audio}"),
            (true, None) => {
                let (rate, rest) = match self.sound {
                    Sound::Aac => (48000, format!("{} ! {pay_audio}", aac.unwrap_or("voaacenc"))),
                    Sound::Pcmu => (8000, "mulawenc ! rtppcmupay name=pay1 pt=97".to_owned()),
                    Sound::L16 => (8000, "rtpL16pay name=pay1 pt=97".to_owned()),
                };
                launch += &format!(
                    " audiotestsrc is-live=true wave=ticks ! audioconvert \
                     ! audio/x-raw,rate={rate},channels={} ! queue ! {rest}",
                    if rate == 8000 { 1 } else { 2 },
                );
            }
        }
        // Words that name no element pass the check.
        launch.split_whitespace().try_for_each(have_element)?;
        Ok(format!("( {launch} )"))
    }

    fn encoder(&self) -> String {
        let (n, d) = self.fps;
        let gop = self.gop.unwrap_or(n.div_ceil(d));
        let pixels_per_second = u64::from(self.width * self.height) * u64::from(n) / u64::from(d);
        let bitrate = self.bitrate.map_or((pixels_per_second / 15_000).max(200), u64::from);
        let bframes = self.bframes;
        let common = format!("speed-preset=ultrafast key-int-max={gop} bitrate={bitrate}");
        match (self.codec, bframes) {
            // With more threads, x264enc would create a slice for each.
            (Codec::H264, 0) => {
                let slices = self.slices;
                format!("x264enc tune=zerolatency threads=1 option-string=slices={slices} {common}")
            }
            (Codec::H264, _) => format!("x264enc b-adapt=false bframes={bframes} {common}"),
            (Codec::H265, 0) => format!("x265enc tune=zerolatency {common}"),
            (Codec::H265, _) => {
                format!("x265enc option-string=\"bframes={bframes}:b-adapt=0\" {common}")
            }
        }
    }

    /// Returns the raw format, with width and height divided by `divisor`.
    pub(crate) fn caps(&self, divisor: u32) -> gst::Caps {
        gst_video::VideoCapsBuilder::new()
            .format(gst_video::VideoFormat::I420)
            // Chroma has half the width and height, so that both are even.
            .width((self.width / divisor / 2 * 2) as i32)
            .height((self.height / divisor / 2 * 2) as i32)
            .framerate(gst::Fraction::new(self.fps.0 as i32, self.fps.1 as i32))
            .build()
    }
}

fn number<T: FromStr + PartialOrd>(name: &str, value: &str, least: T) -> Result<T, String> {
    let number = value.parse().ok().filter(|number| *number >= least);
    number.ok_or(format!("{name} is a number, not {value}"))
}

fn pair(value: &str, separator: char) -> Option<(u32, u32)> {
    let (a, b) = value.split_once(separator)?;
    Some((a.parse().ok()?, b.parse().ok()?))
}

/// Fails with the Debian package if `word` names an element that is not installed.
fn have_element(word: &str) -> Result<(), String> {
    let package = match word {
        "x264enc" => "gstreamer1.0-plugins-ugly",
        "x265enc" | "h264parse" | "h265parse" | "voaacenc" => "gstreamer1.0-plugins-bad",
        "rtph264pay" | "rtph265pay" | "rtpmp4gpay" | "rtppcmupay" | "rtpL16pay" | "mulawenc"
        | "aacparse" => "gstreamer1.0-plugins-good",
        "videotestsrc" | "audiotestsrc" | "appsrc" | "audioconvert" => "gstreamer1.0-plugins-base",
        _ => return Ok(()),
    };
    match gst::ElementFactory::find(word) {
        Some(_) => Ok(()),
        None => Err(format!("the GStreamer element {word} is missing: apt-get install {package}")),
    }
}
