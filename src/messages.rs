// SPDX-License-Identifier: LGPL-2.1-or-later
//! Messages that elements post on the bus.

use gst::prelude::*;
use gst::subclass::prelude::*;

use cuframes::{Error, RefusalReason};

/// Posts an error of the library as an element error.
pub(crate) fn post_error<T>(element: &T, error: &Error)
where
    T: ElementImpl,
    T::Type: IsA<gst::Element>,
{
    use gst::ResourceError as R;
    let kind = match error {
        Error::Key { .. } | Error::InvalidConfig { .. } => R::Settings,
        Error::Busy { .. } | Error::Refused { reason: RefusalReason::Full, .. } => R::Busy,
        Error::Refused { reason: RefusalReason::Denied, .. } => R::NotAuthorized,
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

/// Posts an element message with this structure.
pub(crate) fn post_message<T>(element: &T, structure: gst::Structure)
where
    T: ElementImpl,
    T::Type: IsA<gst::Element>,
{
    let obj = element.obj();
    let _ = obj.post_message(gst::message::Element::builder(structure).src(&*obj).build());
}
