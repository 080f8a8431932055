//! What the elements have in common: caps, errors, properties.

use std::path::PathBuf;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use crate::{Code, Error};

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
    gst_video::VideoCapsBuilder::new().format_list(formats).build()
}

/// Whole access units, with codec data in the caps or in the stream.
pub fn packet_caps() -> gst::Caps {
    let codec = |name: &str, formats: &[&str]| {
        gst::Structure::builder(name)
            .field("stream-format", gst::List::new(formats))
            .field("alignment", "au")
            .build()
    };
    gst::Caps::builder_full()
        .structure(codec("video/x-h264", &["byte-stream", "avc", "avc3"]))
        .structure(codec("video/x-h265", &["byte-stream", "hvc1", "hev1"]))
        .build()
}

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
        Error::Busy { .. } | Error::Refused { code: Code::Full, .. } => R::Busy,
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
