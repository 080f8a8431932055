//! What the elements have in common: caps, errors, properties.

use std::path::PathBuf;
use std::str::FromStr;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use crate::gstcuda::GstCuda;
use cuframes::{Error, RefusalReason};

/// The formats that are most used, in the order in which they are preferred; all others follow.
const PREFERRED: [gst_video::VideoFormat; 4] = [
    gst_video::VideoFormat::Nv12,
    gst_video::VideoFormat::I420,
    gst_video::VideoFormat::P01010le,
    gst_video::VideoFormat::Rgba,
];

/// Every raw format that planes, offsets and strides describe.
pub fn frame_caps() -> gst::Caps {
    let plain = |f: &gst_video::VideoFormat| {
        let info = gst_video::VideoFormatInfo::from_format(*f);
        info.n_planes() > 0 && !info.flags().contains(gst_video::VideoFormatFlags::COMPLEX)
    };
    let others = gst_video::VideoFormat::iter_raw().filter(|f| !PREFERRED.contains(f));
    let formats = PREFERRED.into_iter().chain(others.filter(plain));
    let host = gst_video::VideoCapsBuilder::new().format_list(formats).build();
    // Without GStreamer's CUDA library (1.24 on) nobody could make or take such frames.
    if GstCuda::get().is_err() {
        return host;
    }
    let mut caps = gst_video::VideoCapsBuilder::new()
        .features([CUDA_MEMORY])
        .format_list(CUDA_FORMATS)
        .build();
    caps.merge(host);
    caps
}

/// Rows of a plane, and bytes of a row that are pixels.
pub fn plane_size(video: &gst_video::VideoInfo, plane: usize) -> (usize, usize) {
    let format = video.format_info();
    if plane > 0 && format.flags().contains(gst_video::VideoFormatFlags::PALETTE) {
        // 256 colours of 4 bytes.
        return (1, 1024);
    }
    let of_plane =
        (0..format.n_components()).filter(|c| format.plane()[*c as usize] as usize == plane);
    of_plane.fold((1, 0), |(rows, row), c| {
        let height = video.comp_height(c as u8) as usize;
        let width = video.comp_width(c as u8) as usize * format.pixel_stride()[c as usize] as usize;
        // A format of several pixels a word has no stride of one pixel; then the rows alone count.
        (rows.max(height), row.max(width))
    })
}

/// The feature of caps whose frames are in the memory of a GPU.
pub const CUDA_MEMORY: &str = "memory:CUDAMemory";

/// Whether the frames with these caps are in the memory of a GPU.
pub fn is_cuda(caps: &gst::Caps) -> bool {
    caps.features(0).is_some_and(|f| f.contains(CUDA_MEMORY))
}

/// What the elements of GStreamer's CUDA plugin use.
const CUDA_FORMATS: [gst_video::VideoFormat; 12] = {
    use gst_video::VideoFormat as F;
    [
        F::Nv12,
        F::P01010le,
        F::P012Le,
        F::P016Le,
        F::I420,
        F::Yv12,
        F::Y444,
        F::Y44416le,
        F::Bgra,
        F::Rgba,
        F::Rgbx,
        F::Bgrx,
    ]
};

/// Whole access units, with codec data in the caps or in the stream; and what cameras send beside video.
pub fn packet_caps() -> gst::Caps {
    let codec = |name: &str, formats: &[&str], alignment: &str| {
        gst::Structure::builder(name)
            .field("stream-format", gst::List::new(formats))
            .field("alignment", alignment)
            .build()
    };
    let versions = gst::List::new([2i32, 4]);
    let mut caps = gst::Caps::builder_full()
        .structure(codec("video/x-h264", &["byte-stream", "avc", "avc3"], "au"))
        .structure(codec("video/x-h265", &["byte-stream", "hvc1", "hev1"], "au"))
        .structure(codec("video/x-av1", &["obu-stream"], "tu"));
    for name in ["video/x-vp8", "video/x-vp9", "image/jpeg"] {
        caps = caps.structure(gst::Structure::new_empty(name));
    }
    caps = caps
        .structure(gst::Structure::builder("audio/mpeg").field("mpegversion", versions).build());
    let others = ["audio/x-opus", "audio/x-alaw", "audio/x-mulaw", "audio/x-adpcm"];
    for name in others.into_iter().chain(["application/x-onvif-metadata", "meta/x-klv"]) {
        caps = caps.structure(gst::Structure::new_empty(name));
    }
    caps.build()
}

/// Brackets in the caps of one stream, at most. Those with headers have some.
const MAX_BRACKETS: usize = 64;

/// Caps as another process wrote them; `None` if they are none. GStreamer's parser calls itself for what
/// is nested, so some thousand brackets would take all of a thread's stack.
pub fn parse_caps(text: &str) -> Option<gst::Caps> {
    let brackets = text.bytes().filter(|byte| b"{<[".contains(byte)).count();
    (brackets <= MAX_BRACKETS).then(|| gst::Caps::from_str(text).ok())?
}

/// The longest time of a property, in ns: the largest number is none to GStreamer.
pub const MAX_TIME: u64 = i64::MAX as u64;

/// An unset or empty property is none.
pub fn runtime_dir(dir: Option<&str>) -> Option<PathBuf> {
    dir.filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// Posts what went wrong as an element error.
pub fn post_error<T>(element: &T, error: &Error)
where
    T: ElementImpl,
    T::Type: IsA<gst::Element>,
{
    use gst::ResourceError as R;
    let kind = match error {
        Error::Key { .. } | Error::Value { .. } => R::Settings,
        Error::Busy { .. } | Error::Refused { code: RefusalReason::Full, .. } => R::Busy,
        Error::Refused { code: RefusalReason::Denied, .. } => R::NotAuthorized,
        Error::RuntimeDir { .. } => R::OpenReadWrite,
        Error::NoPublisher { .. } => R::NotFound,
        _ => R::Failed,
    };
    let obj = element.obj();
    let details = format!("{error:?}");
    let message = gst::message::Error::builder(kind, &error.to_string())
        .src(obj.upcast_ref::<gst::Element>())
        .debug(&details)
        .build();
    let _ = obj.post_message(message);
}

/// What a source does when its publisher goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesOnLost")]
pub enum OnLost {
    #[default]
    #[enum_value(name = "Wait for the next publisher and go on", nick = "reconnect")]
    Reconnect,
    #[enum_value(name = "End the stream", nick = "eos")]
    Eos,
    #[enum_value(name = "Post an error", nick = "error")]
    Error,
}

/// What a source does when the publisher's stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesOnEos")]
pub enum OnEos {
    #[default]
    #[enum_value(name = "End the stream", nick = "eos")]
    Eos,
    #[enum_value(name = "Wait for a publisher that goes on", nick = "wait")]
    Wait,
}
