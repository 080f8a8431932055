// SPDX-License-Identifier: LGPL-2.1-or-later
//! Buffers made from frames: their memory, layout, timestamps and flags.

use gst_video::video_frame::VideoBufferExt;

use crate::caps::{PlaneSize, plane_size};
use crate::{meta, time};
use cuframes::{Frame, FrameInfo};

/// A frame as the content of a GstMemory. Dropping the memory releases the frame.
struct FrameBytes(Frame);

impl AsRef<[u8]> for FrameBytes {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes().expect("a frame in host memory")
    }
}

/// Returns a buffer on a frame in host memory, without a copy.
pub(super) fn wrap(frame: Frame) -> gst::Buffer {
    gst::Buffer::from_slice(FrameBytes(frame))
}

/// Returns a buffer with this memory.
pub(super) fn with_memory(memory: gst::Memory) -> gst::Buffer {
    let mut buffer = gst::Buffer::new();
    buffer.make_mut().append_memory(memory);
    buffer
}

/// Returns whether all planes are within the frame's bytes, and the crop rectangle within the video size.
pub(super) fn fits(frame: &FrameInfo, video: &gst_video::VideoInfo) -> bool {
    let crop_fits = frame.crop.is_none_or(|c| {
        let within =
            |start: u32, len: u32, whole| start.checked_add(len).is_some_and(|end| end <= whole);
        within(c.x, c.width, video.width()) && within(c.y, c.height, video.height())
    });
    crop_fits
        && frame.planes.len() == video.n_planes() as usize
        && frame.planes.iter().enumerate().all(|(n, plane)| {
            let PlaneSize { rows, row_bytes } = plane_size(video, n);
            let last_row = u64::try_from(plane.stride).ok().map(|s| s * (rows as u64 - 1));
            last_row.is_some_and(|last| {
                u64::from(plane.offset) + last + row_bytes as u64 <= frame.size as u64
            })
        })
}

/// Attaches the layout of the frame's planes and its crop rectangle to a buffer that has the frame's
/// own layout.
pub(super) fn add_layout(
    buffer: &mut gst::BufferRef,
    frame: &FrameInfo,
    video: &gst_video::VideoInfo,
) -> Result<(), gst::FlowError> {
    let (planes, (offsets, strides)) = (frame.planes.len(), frame.planes.to_arrays());
    gst_video::VideoMeta::add_full(
        buffer,
        gst_video::VideoFrameFlags::empty(),
        video.format(),
        video.width(),
        video.height(),
        &offsets[..planes],
        &strides[..planes],
    )
    .map_err(|_| gst::FlowError::Error)?;
    if let Some(c) = frame.crop {
        gst_video::VideoCropMeta::add(buffer, (c.x, c.y, c.width, c.height));
    }
    Ok(())
}

/// The place of a frame in the stream that goes downstream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    /// Sequence number that the publisher gave the frame.
    pub(super) seq: u64,
    /// Running time.
    pub(super) pts: gst::ClockTime,
    /// Frames are missing before this one.
    pub(super) discont: bool,
}

/// Sets timestamps, flags, offsets and metadata of a buffer.
pub(super) fn describe(buffer: &mut gst::BufferRef, frame: &FrameInfo, position: Position) {
    let flags = gst::BufferFlags::from_bits_truncate(frame.flags);
    let mut flags = gst::BufferFlags::from_bits_truncate(time::portable_flags(flags));
    if position.discont {
        flags |= gst::BufferFlags::DISCONT;
    }
    buffer.set_flags(flags);
    buffer.set_video_flags(gst_video::VideoBufferFlags::from_bits_truncate(frame.flags));
    buffer.set_pts(position.pts);
    buffer.set_duration(frame.duration.map(gst::ClockTime::from_nseconds));
    buffer.set_offset(position.seq);
    buffer.set_offset_end(position.seq + 1);
    if let Some(packet) = frame.packet {
        meta::add_packet(buffer, packet);
    }
    meta::add_references(buffer, &frame.references);
}
