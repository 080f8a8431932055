//! How a subscriber learns which frame it has, and when that frame reached the sink.

use std::fs::File;
use std::sync::atomic::{AtomicI64, Ordering};

use gst::prelude::*;
use gst_video::prelude::*;
use gstcuframes::gpu::gstcuda;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use crate::Failure;
use crate::drawn;

/// What stands in a frame.
pub struct Stamp {
    /// 0 while the publisher warms up; negative where none is known.
    pub time: i64,
    pub number: Option<u64>,
    /// The process.
    pub publisher: i64,
    /// Its parts are of different frames.
    pub torn: bool,
}

#[derive(Clone, Copy)]
pub enum Stamps {
    /// At the beginning, in the middle and at the end of the frame's bytes.
    Pixels,
    /// The number that examples/camera draws; it survives a codec.
    Drawn,
    /// Device memory can't be stamped without work that would be measured as well, so the publisher keeps
    /// the time of its last frame here, and a subscriber takes it for that of the frame it just got. That
    /// holds while a frame takes less than the time to the next one, so what seems to take `limit`, half
    /// of that, or more is not counted but reported as late.
    Shared { words: &'static [AtomicI64; 2], limit: i64 },
}

/// Time, number, process.
const LEN: usize = 24;

fn places(len: usize) -> Option<[usize; 3]> {
    (len >= 3 * LEN).then(|| [0, len / 2, len - LEN])
}

impl Stamps {
    pub fn open(how: &str, limit: i64) -> Result<Self, Failure> {
        let path = match how {
            "pixels" => return Ok(Self::Pixels),
            "drawn" => return Ok(Self::Drawn),
            path => path,
        };
        let len = size_of::<[AtomicI64; 2]>();
        let mut options = File::options();
        let file = options.create(true).truncate(false).read(true).write(true).open(path)?;
        file.set_len(len as u64)?;
        let (all, shared) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping, which nothing else in this process refers to.
        let at = unsafe { mmap(None, len.try_into()?, all, shared, &file, 0) }?;
        // SAFETY: the mapping is as long as the atomics and aligned to a page, never unmapped, and every
        // process uses it as these atomics only. Nobody makes the file shorter.
        Ok(Self::Shared { words: unsafe { at.cast::<[AtomicI64; 2]>().as_ref() }, limit })
    }

    pub fn are_drawn(self) -> bool {
        matches!(self, Self::Drawn)
    }

    pub fn are_pixels(self) -> bool {
        matches!(self, Self::Pixels)
    }

    pub fn limit(self) -> i64 {
        match self {
            Self::Shared { limit, .. } => limit,
            _ => i64::MAX,
        }
    }

    pub fn write(self, buffer: &mut gst::Buffer, time: i64, number: u64) {
        let publisher = i64::from(std::process::id());
        match self {
            Self::Pixels => {
                if let Ok(mut map) = buffer.make_mut().map_writable()
                    && let Some(places) = places(map.len())
                {
                    for at in places {
                        let words = [time, number as i64, publisher].map(i64::to_ne_bytes);
                        map[at..at + LEN].copy_from_slice(words.as_flattened());
                    }
                }
            }
            Self::Drawn => {}
            Self::Shared { words: [last, process], .. } => {
                // cudaupload hands on frames that are still being uploaded.
                gstcuda::sync(buffer.peek_memory(0));
                process.store(publisher, Ordering::Relaxed);
                last.store(time, Ordering::Release);
            }
        }
    }

    /// `None` if the frame is in another memory than it should be.
    pub fn read(self, buffer: &gst::BufferRef, pad: &gst::Pad) -> Option<Stamp> {
        match self {
            Self::Pixels => {
                let map = buffer.map_readable().ok()?;
                let [first, others @ ..] = places(map.len())?.map(|at| &map[at..at + LEN]);
                let word = |n: usize| first[n * 8..][..8].try_into().ok().map(i64::from_ne_bytes);
                Some(Stamp {
                    time: word(0)?,
                    number: word(1).map(|n| n as u64),
                    publisher: word(2)?,
                    torn: others.iter().any(|o| *o != first),
                })
            }
            Self::Drawn => {
                let unknown = Stamp { time: -1, number: None, publisher: 0, torn: false };
                if gstcuda::is_cuda(buffer.peek_memory(0)) {
                    return Some(unknown);
                }
                let caps = pad.current_caps()?;
                let video = gst_video::VideoInfo::from_caps(&caps).ok()?;
                let frame =
                    gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &video).ok()?;
                let (width, height) = (video.width() as usize, video.height() as usize);
                let (luma, stride) = (frame.plane_data(0).ok()?, frame.plane_stride()[0] as usize);
                let (top, bottom) = drawn::read_both(luma, stride, width, height);
                let torn = top.is_some() && bottom.is_some() && top != bottom;
                Some(Stamp { number: top.or(bottom).map(u64::from), torn, ..unknown })
            }
            Self::Shared { words: [last, process], .. } => gstcuda::is_cuda(buffer.peek_memory(0))
                .then(|| Stamp {
                    time: last.load(Ordering::Acquire),
                    number: None,
                    publisher: process.load(Ordering::Relaxed),
                    torn: false,
                }),
        }
    }
}
