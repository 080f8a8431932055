// SPDX-License-Identifier: LGPL-2.1-or-later
//! How a subscriber learns the number of a frame, and when that frame reached the sink.

use std::fs::File;
use std::sync::atomic::{AtomicI64, Ordering};

use gst::prelude::*;
use gst_video::prelude::*;
use gstcuframes::testing;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use crate::Failure;
use ::testing::stamp;

/// The stamp of a frame.
pub struct Stamp {
    /// In ns of CLOCK_MONOTONIC; 0 while the publisher warms up, negative if unknown.
    pub time: i64,
    pub number: Option<u64>,
    /// The process id of the publisher.
    pub publisher: i64,
    /// Parts of the frame have different stamps.
    pub torn: bool,
}

/// Where the stamp of a frame is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Place {
    /// At the beginning, in the middle and at the end of the frame's bytes, with the time.
    Pixels,
    /// The number that examples/camera draws, which survives a codec. It has no time.
    Drawn,
    /// None: writing to or reading from device memory would be measured as well.
    Device,
}

/// Times that cannot be in the pixels. The publisher stores the time of its last frame in a shared page, and
/// a subscriber assumes that it belongs to the frame just received. That is true while a frame takes less
/// than the time to the next one. Frames that seem to take `limit`, which is half of that, or more are
/// reported as late and have no latency.
#[derive(Clone, Copy)]
struct Page {
    words: &'static [AtomicI64; 2],
    limit: i64,
}

#[derive(Clone, Copy)]
pub struct Stamps {
    pub place: Place,
    page: Option<Page>,
    /// Our source numbers frames.
    numbered: bool,
}

/// Time, number, process.
const LEN: usize = 24;

fn places(len: usize) -> Option<[usize; 3]> {
    (len >= 3 * LEN).then(|| [0, len / 2, len - LEN])
}

impl Stamps {
    /// Opens the stamps, with the path of a page if there is one.
    pub fn open(place: Place, page: &str, limit: i64, numbered: bool) -> Result<Self, Failure> {
        let stamps = Self { place, page: None, numbered };
        if page.is_empty() {
            return Ok(stamps);
        }
        let len = size_of::<[AtomicI64; 2]>();
        let mut options = File::options();
        let file = options.create(true).truncate(false).read(true).write(true).open(page)?;
        file.set_len(len as u64)?;
        let (all, shared) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping, to which nothing else in this process refers.
        let at = unsafe { mmap(None, len.try_into()?, all, shared, &file, 0) }?;
        // SAFETY: the mapping is as long as the atomics and aligned to a page, never unmapped, and every
        // process uses it as these atomics only. No process truncates the file.
        let words = unsafe { at.cast::<[AtomicI64; 2]>().as_ref() };
        Ok(Self { page: Some(Page { words, limit }), ..stamps })
    }

    pub fn are_pixels(self) -> bool {
        self.place == Place::Pixels
    }

    /// Returns the latency from which on it is unknown.
    pub fn limit(self) -> i64 {
        self.page.map_or(i64::MAX, |page| page.limit)
    }

    pub fn write(self, buffer: &mut gst::Buffer, time: i64, number: u64) {
        let publisher = i64::from(std::process::id());
        if self.are_pixels()
            && let Ok(mut map) = buffer.make_mut().map_writable()
            && let Some(places) = places(map.len())
        {
            for at in places {
                let words = [time, number as i64, publisher].map(i64::to_ne_bytes);
                map[at..at + LEN].copy_from_slice(words.as_flattened());
            }
        }
        // cudaupload pushes frames that are still being uploaded.
        self.wait(buffer);
        if let Some(Page { words: [last, process], .. }) = self.page {
            process.store(publisher, Ordering::Relaxed);
            last.store(time, Ordering::Release);
        }
    }

    /// Waits until the frame is complete. Elements that copy on a GPU push frames before.
    pub fn wait(self, buffer: &gst::BufferRef) {
        if self.place == Place::Device {
            testing::sync(buffer.peek_memory(0));
        }
    }

    /// Reads the stamp; `None` if the frame is in unexpected memory.
    pub fn read(self, buffer: &gst::BufferRef, pad: &gst::Pad) -> Option<Stamp> {
        let page = self.page.map(|p| p.words.each_ref().map(|w| w.load(Ordering::Acquire)));
        let [time, publisher] = page.unwrap_or([-1, 0]);
        let numbered = Some(buffer.offset()).filter(|n| self.numbered && *n != u64::MAX);
        let stamp = Stamp { time, number: numbered, publisher, torn: false };
        let is_on_device = || buffer.peek_memory(0).is_type("gst.cuda.memory");
        match self.place {
            Place::Pixels => {
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
            Place::Drawn if is_on_device() => Some(stamp),
            Place::Drawn => {
                let caps = pad.current_caps()?;
                let video = gst_video::VideoInfo::from_caps(&caps).ok()?;
                let frame =
                    gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &video).ok()?;
                let (width, height) = (video.width() as usize, video.height() as usize);
                let (luma, stride) = (frame.plane_data(0).ok()?, frame.plane_stride()[0] as usize);
                let (top, bottom) = stamp::read_both(luma, stride, width, height);
                let torn = top.is_some() && bottom.is_some() && top != bottom;
                Some(Stamp { number: top.or(bottom).map(u64::from), torn, ..stamp })
            }
            Place::Device => is_on_device().then_some(stamp),
        }
    }
}
