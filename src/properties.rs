// SPDX-License-Identifier: LGPL-2.1-or-later
//! Property values that several elements use, and deprecated names of properties.

use std::path::PathBuf;

use gst::glib;
use gst::glib::prelude::*;
use gst::prelude::GstParamSpecBuilderExt;

/// Maximum of a property that is a time, in ns: `u64::MAX` is GST_CLOCK_TIME_NONE.
pub(crate) const MAX_TIME: u64 = i64::MAX as u64;

/// Returns the value of `runtime-dir` as a path. An empty property counts as unset.
pub(crate) fn runtime_dir(dir: Option<&str>) -> Option<PathBuf> {
    dir.filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// Returns the specification of the property `runtime-dir`.
pub(crate) fn runtime_dir_spec() -> glib::ParamSpec {
    glib::ParamSpecString::builder("runtime-dir")
        .nick("Runtime Directory")
        .blurb("Directory of the publisher's socket (unset: $CUFRAMES_RUNTIME_DIR, /run/cuframes, $XDG_RUNTIME_DIR/cuframes or /tmp/cuframes-UID)")
        .mutable_ready()
        .build()
}

/// Action of a source when its publisher is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesOnLost")]
pub(crate) enum OnLost {
    #[default]
    #[enum_value(name = "Wait for the next publisher and continue", nick = "reconnect")]
    Reconnect,
    #[enum_value(name = "End the stream", nick = "eos")]
    Eos,
    #[enum_value(name = "Post an error", nick = "error")]
    Error,
}

/// Action of a source when the publisher's stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstCuframesOnEos")]
pub(crate) enum OnEos {
    #[default]
    #[enum_value(name = "End the stream", nick = "eos")]
    Eos,
    #[enum_value(name = "Wait for the publisher to start the stream again", nick = "wait")]
    Wait,
}

/// The former name of a property, accepted for one release after the renaming.
///
/// Both properties are of type uint. The alias has the flag [`glib::ParamFlags::DEPRECATED`], and the
/// range and default of its target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Alias {
    /// The former name.
    pub(crate) name: &'static str,
    /// The name that replaces it.
    pub(crate) target: &'static str,
    /// Value of the target minus value of the alias.
    pub(crate) offset: u32,
}

impl Alias {
    /// Appends the specifications of `aliases` to those of the other properties of a class.
    ///
    /// # Panics
    ///
    /// Panics if the target of an alias is missing in `specs` or is of another type than uint.
    pub(crate) fn append(aliases: &[Self], specs: &mut Vec<glib::ParamSpec>) {
        let of_aliases: Vec<_> = aliases.iter().map(|alias| alias.spec(specs)).collect();
        specs.extend(of_aliases);
    }

    fn spec(&self, specs: &[glib::ParamSpec]) -> glib::ParamSpec {
        let target = specs.iter().find(|spec| spec.name() == self.target);
        let target = target
            .and_then(|spec| spec.downcast_ref::<glib::ParamSpecUInt>())
            .expect("the target of an alias is a property of type uint");
        glib::ParamSpecUInt::builder(self.name)
            .nick(target.nick())
            .blurb(&match self.offset {
                0 => format!("Deprecated: use {}", self.target),
                offset => format!("Deprecated: use {}, which is {offset} higher", self.target),
            })
            .minimum(target.minimum() - self.offset)
            .maximum(target.maximum() - self.offset)
            .default_value(target.default_value() - self.offset)
            .flags(target.flags() | glib::ParamFlags::DEPRECATED)
            .build()
    }

    /// Sets the target of the alias called `name`. Returns whether there is one.
    ///
    /// Sets a property of `object`, so the caller must hold no lock that its `set_property` takes.
    pub(crate) fn set(
        aliases: &[Self],
        object: &impl IsA<glib::Object>,
        name: &str,
        value: &glib::Value,
    ) -> bool {
        let Some(alias) = aliases.iter().find(|alias| alias.name == name) else { return false };
        // GObject has checked type and range.
        let value: u32 = value.get().unwrap();
        object.set_property(alias.target, value + alias.offset);
        true
    }

    /// Returns the value of the alias called `name`, if there is one.
    pub(crate) fn get(
        aliases: &[Self],
        object: &impl IsA<glib::Object>,
        name: &str,
    ) -> Option<glib::Value> {
        let alias = aliases.iter().find(|alias| alias.name == name)?;
        Some((object.property::<u32>(alias.target) - alias.offset).to_value())
    }
}

#[cfg(test)]
mod tests {
    use gst::prelude::*;

    fn make(element: &str) -> gst::Element {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            gst::init().unwrap();
            crate::plugin_register_static().unwrap();
        });
        gst::ElementFactory::make(element).build().unwrap()
    }

    #[test]
    fn deprecated_alias_sets_and_reads_its_target() {
        for (element, alias, target, offset) in [
            ("cuframessrc", "max-held", "max-frames", 1),
            ("cuframessrc", "spin", "busy-poll", 0),
            ("cuframessink", "max-credit", "max-frames-per-subscriber", 0),
        ] {
            let element = make(element);
            let spec = element.find_property(alias).unwrap();
            assert!(spec.flags().contains(gst::glib::ParamFlags::DEPRECATED), "{alias}");
            assert!(spec.blurb().unwrap().starts_with(&format!("Deprecated: use {target}")));
            let default: u32 = element.property(target);
            assert_eq!(element.property::<u32>(alias), default - offset, "default of {alias}");
            assert_eq!(spec.default_value().get::<u32>().unwrap(), default - offset, "{alias}");

            let notified = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
            let count = notified.clone();
            element.connect_notify(Some(target), move |_, _| {
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            });
            element.set_property(alias, 7u32);
            assert_eq!(element.property::<u32>(target), 7 + offset, "{target} by {alias}");
            assert_eq!(element.property::<u32>(alias), 7, "{alias}");
            assert_eq!(notified.load(std::sync::atomic::Ordering::Relaxed), 1, "{target}");
            element.set_property(target, 9u32);
            assert_eq!(element.property::<u32>(alias), 9 - offset, "{alias} by {target}");
        }
    }

    #[test]
    fn uri_accepts_deprecated_alias_and_names_its_target() {
        let source = make("cuframessrc").dynamic_cast::<gst::URIHandler>().unwrap();
        source.set_uri("cuframes://cam1?max-held=0&spin=3").unwrap();
        assert_eq!(source.uri().unwrap(), "cuframes://cam1?max-frames=1&busy-poll=3");
        let error = source.set_uri("cuframes://cam1?max-held=64").unwrap_err().to_string();
        assert!(error.contains("it takes 0 to 63"), "{error}");
        let error = source.set_uri("cuframes://cam1?speed=1").unwrap_err().to_string();
        assert!(error.contains("max-frames") && !error.contains("max-held"), "{error}");
    }
}
