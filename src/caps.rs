// SPDX-License-Identifier: LGPL-2.1-or-later
//! Caps of frames and packets, and the plane sizes of video formats.

use std::str::FromStr;

use crate::gstcuda::GstCuda;
use cuframes::Error;
use cuframes::protocol::wire::check_caps;

/// Caps feature of frames in GPU memory.
pub(crate) const CUDA_MEMORY: &str = "memory:CUDAMemory";

/// The most common formats, in order of preference; all other formats follow them.
const PREFERRED: [gst_video::VideoFormat; 4] = [
    gst_video::VideoFormat::Nv12,
    gst_video::VideoFormat::I420,
    gst_video::VideoFormat::P01010le,
    gst_video::VideoFormat::Rgba,
];

/// The formats that the elements of GStreamer's CUDA plugin use.
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

/// Returns the caps of frames: every raw format that planes, offsets and strides describe.
pub(crate) fn frame_caps() -> gst::Caps {
    let has_planes = |f: &gst_video::VideoFormat| {
        let info = gst_video::VideoFormatInfo::from_format(*f);
        info.n_planes() > 0 && !info.flags().contains(gst_video::VideoFormatFlags::COMPLEX)
    };
    let others = gst_video::VideoFormat::iter_raw().filter(|f| !PREFERRED.contains(f));
    let formats = PREFERRED.into_iter().chain(others.filter(has_planes));
    let host = gst_video::VideoCapsBuilder::new().format_list(formats).build();
    // Without GStreamer's CUDA library (1.24 or later), no element can produce or consume such frames.
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

/// Returns whether frames with these caps are in GPU memory.
pub(crate) fn is_cuda(caps: &gst::Caps) -> bool {
    caps.features(0).is_some_and(|f| f.contains(CUDA_MEMORY))
}

/// Returns the caps of packets: whole access units, with codec data in the caps or in the stream,
/// and the audio and metadata formats that cameras send beside video.
pub(crate) fn packet_caps() -> gst::Caps {
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

/// Returns the template of an element's only pad, which is named after its direction.
pub(crate) fn always_template(direction: gst::PadDirection, caps: &gst::Caps) -> gst::PadTemplate {
    let name = if direction == gst::PadDirection::Src { "src" } else { "sink" };
    gst::PadTemplate::new(name, direction, gst::PadPresence::Always, caps)
        .expect("the template is valid")
}

/// Maximum number of opening brackets in the caps of one stream. Caps with stream headers have some.
const MAX_BRACKETS: usize = 64;

/// Parses caps that another process wrote. Returns `None` if they are invalid.
///
/// The number of brackets is limited, because GStreamer's parser is recursive: some thousand nested
/// brackets overflow a thread's stack.
pub(crate) fn parse_caps(text: &str) -> Option<gst::Caps> {
    (brackets(text) <= MAX_BRACKETS).then(|| gst::Caps::from_str(text).ok())?
}

/// Returns caps as the text that sources parse.
///
/// # Errors
/// [`Error::InvalidConfig`] if sources reject the text.
pub(crate) fn caps_text(caps: &gst::Caps) -> Result<String, Error> {
    let text = caps.to_string();
    check_caps(&text)?;
    let brackets = brackets(&text);
    let problem = if brackets > MAX_BRACKETS {
        format!(
            "have {brackets} opening brackets: use at most {MAX_BRACKETS}, for example by fewer lists"
        )
    } else if parse_caps(&text).is_none() {
        "have a value that GStreamer can't write as text, such as an object: remove it".to_owned()
    } else {
        return Ok(text);
    };
    Err(Error::InvalidConfig { what: "The caps", problem })
}

fn brackets(text: &str) -> usize {
    text.bytes().filter(|byte| b"{<[".contains(byte)).count()
}

/// Size of one plane of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlaneSize {
    pub(crate) rows: usize,
    /// Bytes of a row that are pixels; the stride may be larger.
    pub(crate) row_bytes: usize,
}

/// Returns the size of plane number `plane`.
///
/// `row_bytes` is 0 for formats that pack several pixels into a word: they have no stride of a single
/// pixel.
pub(crate) fn plane_size(video: &gst_video::VideoInfo, plane: usize) -> PlaneSize {
    let format = video.format_info();
    if plane > 0 && format.flags().contains(gst_video::VideoFormatFlags::PALETTE) {
        // 256 colours of 4 bytes.
        return PlaneSize { rows: 1, row_bytes: 1024 };
    }
    let components =
        (0..format.n_components()).filter(|c| format.plane()[*c as usize] as usize == plane);
    components.fold(PlaneSize { rows: 1, row_bytes: 0 }, |size, c| {
        let rows = video.comp_height(c as u8) as usize;
        let row_bytes =
            video.comp_width(c as u8) as usize * format.pixel_stride()[c as usize] as usize;
        PlaneSize { rows: size.rows.max(rows), row_bytes: size.row_bytes.max(row_bytes) }
    })
}
