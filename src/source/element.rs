// SPDX-License-Identifier: LGPL-2.1-or-later
//! Parts of the GObject implementation that are the same in both source elements.

use gst::prelude::*;
use gst::subclass::prelude::*;

use crate::messages::post_error;

/// Implements `ObjectImpl`, `GstObjectImpl` and `URIHandlerImpl` for a source element.
///
/// The element has the fields `settings: Mutex<Settings>` and `stats: Mutex<Stats>`. `Settings` has the
/// constant `ALIASES` and the methods `properties`, `set` and `get`; `Stats` has `to_structure`.
macro_rules! impl_source {
    ($element:ty, settings: $settings:ty, uri_scheme: $scheme:expr) => {
        impl ObjectImpl for $element {
            fn properties() -> &'static [glib::ParamSpec] {
                static PROPERTIES: std::sync::LazyLock<Vec<glib::ParamSpec>> =
                    std::sync::LazyLock::new(<$settings>::properties);
                &PROPERTIES
            }

            fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
                let aliases = <$settings>::ALIASES;
                if !crate::properties::Alias::set(aliases, &*self.obj(), pspec.name(), value) {
                    lock(&self.settings).set(pspec.name(), value);
                }
            }

            fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
                if pspec.name() == "stats" {
                    return lock(&self.stats).to_structure().to_value();
                }
                let alias =
                    crate::properties::Alias::get(<$settings>::ALIASES, &*self.obj(), pspec.name());
                alias.unwrap_or_else(|| lock(&self.settings).get(pspec.name()))
            }

            fn constructed(&self) {
                self.parent_constructed();
                let obj = self.obj();
                obj.set_live(true);
                obj.set_format(gst::Format::Time);
            }
        }

        impl GstObjectImpl for $element {}

        impl URIHandlerImpl for $element {
            const URI_TYPE: gst::URIType = gst::URIType::Src;

            fn protocols() -> &'static [&'static str] {
                &[$scheme]
            }

            fn uri(&self) -> Option<String> {
                crate::uri::get(self.obj().upcast_ref(), $scheme)
            }

            fn set_uri(&self, uri: &str) -> Result<(), glib::Error> {
                crate::uri::set(self.obj().upcast_ref(), $scheme, uri)
            }
        }
    };
}

/// Defines the methods of `BaseSrcImpl` that are the same in both source elements: `is_seekable`,
/// `unlock`, `unlock_stop` and `caps`. The element has the field `pad: SourcePad`.
macro_rules! base_src_methods {
    () => {
        fn is_seekable(&self) -> bool {
            false
        }

        fn unlock(&self) -> Result<(), gst::ErrorMessage> {
            self.pad.interrupt.set();
            Ok(())
        }

        fn unlock_stop(&self) -> Result<(), gst::ErrorMessage> {
            self.pad.interrupt.clear();
            Ok(())
        }

        fn caps(&self, filter: Option<&gst::Caps>) -> Option<gst::Caps> {
            Some(self.pad.query_caps(&*self.obj(), filter))
        }
    };
}

pub(crate) use {base_src_methods, impl_source};

/// Restores the base class's handling of the ALLOCATION query. Call in `class_init`.
///
/// The bindings' implementation requires exclusive ownership of the query. In uridecodebin3, another
/// element holds a reference to it.
pub(crate) fn inherit_allocation<T>(class: &mut T::Class)
where
    T: ObjectSubclass<ParentType = gst_base::PushSrc>,
{
    let class = std::ptr::from_mut(class).cast::<gst_base::ffi::GstPushSrcClass>();
    // SAFETY: a class structure begins with that of its parent class, which is a GstPushSrcClass by the
    // bound. The parent's class structure is created before that of a subclass, and is never freed.
    unsafe {
        let parent = T::type_data().as_ref().parent_class();
        let parent = parent as *const gst_base::ffi::GstPushSrcClass;
        (*class).parent_class.decide_allocation = (*parent).parent_class.decide_allocation;
    }
}

/// Checks the key when the element leaves NULL. Posts the error if the key is invalid.
pub(crate) fn check_key<T>(
    element: &T,
    transition: gst::StateChange,
    key: Option<&str>,
) -> Result<(), gst::StateChangeError>
where
    T: ElementImpl,
    T::Type: IsA<gst::Element>,
{
    if transition != gst::StateChange::NullToReady {
        return Ok(());
    }
    cuframes::check_key(key.unwrap_or_default()).map_err(|e| {
        post_error(element, &e);
        gst::StateChangeError
    })
}
