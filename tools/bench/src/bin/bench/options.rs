// SPDX-License-Identifier: LGPL-2.1-or-later
//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use crate::Failure;
use crate::systems::{SYSTEMS, System};

/// Size and rate of frames. A rate of 0 means full speed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Picture {
    pub width: u32,
    pub height: u32,
    pub fps: u32,
}

impl Picture {
    pub fn size(self) -> String {
        format!("{}x{}", self.width, self.height)
    }

    pub fn text(self) -> String {
        match self.fps {
            0 => format!("{}, as fast as it goes", self.size()),
            fps => format!("{}, {fps} frames a second", self.size()),
        }
    }

    /// Returns the frames per second that determine the duration of a turn.
    pub fn pace(self) -> u32 {
        if self.fps == 0 { 30 } else { self.fps }
    }

    pub fn caps(self) -> String {
        let Self { width, height, fps } = self;
        format!("video/x-raw,format=NV12,width={width},height={height},framerate={fps}/1")
    }
}

/// The conditions of one result.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    pub picture: Picture,
    pub system: &'static str,
    pub cameras: u32,
    /// For each camera.
    pub subscribers: u32,
}

pub struct Options {
    pub frames: u32,
    pub fps: Vec<u32>,
    pub sizes: Vec<(u32, u32)>,
    pub cameras: Vec<u32>,
    pub subscribers: Vec<u32>,
    pub rounds: u32,
    pub lives: u32,
    /// Seconds for which a publisher is silent.
    pub idle: u32,
    /// Seconds for which everything runs before the measurement, because a decoder that starts has to catch
    /// up.
    pub settle: u32,
    pub steps: bool,
    pub trace: bool,
    /// Elements that process each frame after the measurement.
    pub behind: String,
    /// The file that the simulated camera plays instead of a test picture. Results name the size and rate of
    /// the options.
    pub file: Option<PathBuf>,
    pub codec: String,
    pub out: PathBuf,
    pub systems: Vec<&'static System>,
}

fn list<T: FromStr>(text: &str) -> Result<Vec<T>, T::Err> {
    text.split(',').map(str::parse).collect()
}

impl Options {
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut options = Self {
            frames: 300,
            fps: vec![30],
            sizes: vec![(1920, 1080)],
            cameras: vec![1],
            subscribers: vec![1],
            rounds: 3,
            lives: 3,
            idle: 3,
            settle: 0,
            steps: true,
            trace: true,
            behind: String::new(),
            file: None,
            codec: "h264".into(),
            out: "out/bench".into(),
            systems: Vec::new(),
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--frames" => options.frames = value()?.parse()?,
                "--fps" => options.fps = list(&value()?)?,
                "--size" => {
                    let size = |text: &str| -> Result<_, Failure> {
                        let (w, h) = text.split_once('x').ok_or("a size is WIDTHxHEIGHT")?;
                        Ok((w.parse()?, h.parse()?))
                    };
                    options.sizes = value()?.split(',').map(size).collect::<Result<_, _>>()?;
                }
                "--cameras" => options.cameras = list(&value()?)?,
                "--subscribers" => options.subscribers = list(&value()?)?,
                "--rounds" => options.rounds = value()?.parse()?,
                "--lives" => options.lives = value()?.parse()?,
                "--idle" => options.idle = value()?.parse()?,
                "--settle" => options.settle = value()?.parse()?,
                "--no-steps" => options.steps = false,
                "--no-trace" => options.trace = false,
                "--behind" => options.behind = value()?,
                "--file" => options.file = Some(value()?.into()),
                "--codec" => options.codec = value()?,
                "--out" => options.out = value()?.into(),
                name => options.systems.push(
                    System::find(name).ok_or(format!("there is no option or system '{name}'"))?,
                ),
            }
        }
        if options.systems.is_empty() {
            options.systems = SYSTEMS.iter().collect();
        }
        let counts = [&options.cameras, &options.subscribers];
        if options.frames == 0 || options.rounds == 0 || counts.iter().any(|c| c.contains(&0)) {
            return Err("frames, rounds, cameras and subscribers are at least 1".into());
        }
        Ok(options)
    }

    /// Returns all cases in the order of a turn. Systems are adjacent.
    pub fn cases(&self) -> Vec<(Case, &'static System)> {
        let mut cases = Vec::new();
        let sizes = self.sizes.iter().flat_map(|size| self.fps.iter().map(move |fps| (size, fps)));
        for (&(width, height), &fps) in sizes {
            for &cameras in &self.cameras {
                for &count in &self.subscribers {
                    for &system in &self.systems {
                        // A system without subscribers hands nothing over.
                        let subscribers = if system.subscriber.is_empty() { 0 } else { count };
                        let picture = Picture { width, height, fps };
                        let case = Case { picture, system: system.name, cameras, subscribers };
                        // A camera has a clock, and no full speed.
                        if fps > 0 || !system.has_camera() {
                            cases.push((case, system));
                        }
                    }
                }
            }
        }
        cases
    }
}
