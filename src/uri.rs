//! URIs of keys: `cuframes://cam1?mode=strict`. What follows the question mark are properties.

use gst::glib;
use gst::glib::translate::*;
use gst::prelude::*;

fn bad(text: String) -> glib::Error {
    glib::Error::new(gst::URIError::BadUri, &text)
}

/// The properties that a URI can set: the element's own, but for the key, which is the host.
fn properties(element: &gst::Element) -> Vec<glib::ParamSpec> {
    let own = element.type_();
    let settable = |p: &&glib::ParamSpec| {
        p.owner_type() == own
            && p.flags().contains(glib::ParamFlags::READWRITE)
            && p.name() != "key"
    };
    element.list_properties().iter().filter(settable).cloned().collect()
}

fn unescape(text: &str) -> Result<String, glib::Error> {
    let plain = glib::uri_unescape_string(text, glib::GStr::NONE);
    plain.map(Into::into).ok_or_else(|| bad(format!("'{text}' is not escaped as in a URI")))
}

/// Sets key and properties by the URI, all or none.
///
/// Errors: another scheme, a bad key, a property that is not there, a value that it does not take; or
/// the element is beyond READY.
pub fn set(element: &gst::Element, scheme: &str, uri: &str) -> Result<(), glib::Error> {
    let example = || format!("use {scheme}://KEY or {scheme}://KEY?PROPERTY=VALUE&…");
    let (key, query) = uri
        .split_once("://")
        .filter(|(of, _)| of.eq_ignore_ascii_case(scheme))
        .map(|(_, rest)| rest.split_once('?').unwrap_or((rest, "")))
        .ok_or_else(|| bad(format!("'{uri}' is no such URI: {}", example())))?;
    // Some take a host without a path for one that lacks it.
    let key = unescape(key.strip_suffix('/').unwrap_or(key))?;
    cuframes::check_key(&key).map_err(|e| bad(e.to_string()))?;
    let mut values = vec![("key".to_owned(), key.to_value())];
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, text) = part
            .split_once('=')
            .ok_or_else(|| bad(format!("'{part}' in '{uri}' has no value: {}", example())))?;
        let (name, text) = (unescape(name)?, unescape(text)?);
        let property =
            properties(element).into_iter().find(|p| p.name() == name).ok_or_else(|| {
                let names: Vec<_> =
                    properties(element).iter().map(|p| p.name().to_owned()).collect();
                bad(format!(
                    "'{name}' in '{uri}' can't be set by a URI: there are {}",
                    names.join(", ")
                ))
            })?;
        values.push((name, value(&property, &text, uri)?));
    }
    if element.current_state() > gst::State::Ready {
        return Err(glib::Error::new(
            gst::URIError::BadState,
            "The URI can't be changed while the element runs: set it to READY first",
        ));
    }
    for (name, value) in values {
        element.set_property_from_value(&name, &value);
    }
    Ok(())
}

/// The property's value that the text stands for.
fn value(property: &glib::ParamSpec, text: &str, uri: &str) -> Result<glib::Value, glib::Error> {
    if property.value_type() == String::static_type() {
        return Ok(text.to_value());
    }
    let parsed = glib::Value::deserialize_with_pspec(text, property).ok();
    parsed.filter(|v| fits(property, v)).ok_or_else(|| {
        bad(format!(
            "{} can't be '{text}' in '{uri}': it takes {}",
            property.name(),
            takes(property)
        ))
    })
}

/// Whether the value is within the property's range.
fn fits(property: &glib::ParamSpec, value: &glib::Value) -> bool {
    let mut value = value.clone();
    // SAFETY: both are borrowed for the call, and the value was made for this property, so it has its
    // type. What is out of range is changed in this copy only, which is what the answer says.
    let changed = unsafe {
        glib::gobject_ffi::g_param_value_validate(
            property.to_glib_none().0,
            value.to_glib_none_mut().0,
        )
    };
    changed == glib::ffi::GFALSE
}

/// What a property takes, for those who got it wrong.
fn takes(property: &glib::ParamSpec) -> String {
    if let Some(values) = property.downcast_ref::<glib::ParamSpecEnum>() {
        let class = values.enum_class();
        let nicks: Vec<_> = class.values().iter().map(glib::EnumValue::nick).collect();
        return nicks.join(", ");
    }
    if let Some(p) = property.downcast_ref::<glib::ParamSpecUInt>() {
        return format!("{} to {}", p.minimum(), p.maximum());
    }
    if let Some(p) = property.downcast_ref::<glib::ParamSpecInt>() {
        return format!("{} to {}", p.minimum(), p.maximum());
    }
    property.blurb().unwrap_or("something else").to_owned()
}

/// The URI that gives another element the same key and properties; `None` without a key.
pub fn get(element: &gst::Element, scheme: &str) -> Option<String> {
    let key = element.property::<Option<String>>("key").filter(|key| !key.is_empty())?;
    let mut uri = format!("{scheme}://{key}");
    let mut gap = '?';
    for property in properties(element) {
        let value = element.property_value(property.name());
        let text = |value: &glib::Value| match value.get::<Option<String>>() {
            Ok(text) => text,
            Err(_) => value.serialize().ok().map(Into::into),
        };
        let set = text(&value);
        if set == text(property.default_value()) {
            continue;
        }
        let text = glib::uri_escape_string(set.unwrap_or_default(), glib::GStr::NONE, false);
        uri += &format!("{gap}{}={text}", property.name());
        gap = '&';
    }
    Some(uri)
}
