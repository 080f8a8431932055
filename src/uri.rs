// SPDX-License-Identifier: LGPL-2.1-or-later
//! URIs of the sources: `cuframes://cam1?mode=strict`.
//!
//! The host is the key. The query sets properties of the element, by name.

use gst::glib;
use gst::glib::translate::*;
use gst::prelude::*;

fn bad_uri(text: String) -> glib::Error {
    glib::Error::new(gst::URIError::BadUri, &text)
}

/// Returns the properties that a URI can set: those of the element's own class, except the key.
///
/// Deprecated names are included.
fn settable_properties(element: &gst::Element) -> Vec<glib::ParamSpec> {
    let class = element.type_();
    let settable = |p: &&glib::ParamSpec| {
        p.owner_type() == class
            && p.flags().contains(glib::ParamFlags::READWRITE)
            && p.name() != "key"
    };
    element.list_properties().iter().filter(settable).cloned().collect()
}

/// Returns the properties that a URI should set: all settable ones, except deprecated names.
fn current_properties(element: &gst::Element) -> Vec<glib::ParamSpec> {
    let mut properties = settable_properties(element);
    properties.retain(|p| !p.flags().contains(glib::ParamFlags::DEPRECATED));
    properties
}

fn unescape(text: &str) -> Result<String, glib::Error> {
    let unescaped = glib::uri_unescape_string(text, glib::GStr::NONE);
    unescaped.map(Into::into).ok_or_else(|| {
        bad_uri(format!("'{text}' is not escaped as in a URI: write special characters as %XX"))
    })
}

/// Sets the key and the properties that the URI names, all or none of them.
///
/// # Errors
///
/// - [`gst::URIError::BadUri`] if the scheme, the key, a property or its value is invalid.
/// - [`gst::URIError::BadState`] if the element is in PAUSED or PLAYING.
pub(crate) fn set(element: &gst::Element, scheme: &str, uri: &str) -> Result<(), glib::Error> {
    let example = || format!("use {scheme}://KEY or {scheme}://KEY?PROPERTY=VALUE&…");
    let (key, query) = uri
        .split_once("://")
        .filter(|(s, _)| s.eq_ignore_ascii_case(scheme))
        .map(|(_, rest)| rest.split_once('?').unwrap_or((rest, "")))
        .ok_or_else(|| bad_uri(format!("'{uri}' is not a {scheme} URI: {}", example())))?;
    // Some applications normalize a host without a path to a host with the path "/".
    let key = unescape(key.strip_suffix('/').unwrap_or(key))?;
    cuframes::check_key(&key).map_err(|e| bad_uri(e.to_string()))?;
    let mut values = vec![("key".to_owned(), key.to_value())];
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, text) = part
            .split_once('=')
            .ok_or_else(|| bad_uri(format!("'{part}' in '{uri}' has no value: {}", example())))?;
        let (name, text) = (unescape(name)?, unescape(text)?);
        let property = settable_properties(element).into_iter().find(|p| p.name() == name);
        let property = property.ok_or_else(|| {
            let properties = current_properties(element);
            let names: Vec<_> = properties.iter().map(|p| p.name()).collect();
            bad_uri(format!(
                "'{name}' in '{uri}' can't be set by a URI: there are {}",
                names.join(", ")
            ))
        })?;
        values.push((name, parse_value(&property, &text, uri)?));
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

/// Parses the value of a property.
fn parse_value(
    property: &glib::ParamSpec,
    text: &str,
    uri: &str,
) -> Result<glib::Value, glib::Error> {
    if property.value_type() == String::static_type() {
        return Ok(text.to_value());
    }
    let parsed = glib::Value::deserialize_with_pspec(text, property).ok();
    parsed.filter(|value| is_valid(property, value)).ok_or_else(|| {
        bad_uri(format!(
            "{} can't be '{text}' in '{uri}': it takes {}",
            property.name(),
            accepted_values(property)
        ))
    })
}

/// Returns whether the value is within the property's range.
fn is_valid(property: &glib::ParamSpec, value: &glib::Value) -> bool {
    let mut value = value.clone();
    // SAFETY: both pointers are valid for the call, and the value has the property's type, because it
    // was parsed for this property. The function changes this copy only, and returns whether it did.
    let changed = unsafe {
        glib::gobject_ffi::g_param_value_validate(
            property.to_glib_none().0,
            value.to_glib_none_mut().0,
        )
    };
    changed == glib::ffi::GFALSE
}

/// Describes the accepted values of a property, for error texts.
fn accepted_values(property: &glib::ParamSpec) -> String {
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
    property.blurb().unwrap_or("another value").to_owned()
}

/// Returns the URI that gives another element the same key and properties.
///
/// Properties with their default value are left out. Returns `None` if the key is unset.
pub(crate) fn get(element: &gst::Element, scheme: &str) -> Option<String> {
    let key = element.property::<Option<String>>("key").filter(|key| !key.is_empty())?;
    let mut uri = format!("{scheme}://{key}");
    let mut separator = '?';
    for property in current_properties(element) {
        let value = element.property_value(property.name());
        let to_text = |value: &glib::Value| match value.get::<Option<String>>() {
            Ok(text) => text,
            Err(_) => value.serialize().ok().map(Into::into),
        };
        let text = to_text(&value);
        if text == to_text(property.default_value()) {
            continue;
        }
        let text = glib::uri_escape_string(text.unwrap_or_default(), glib::GStr::NONE, false);
        uri += &format!("{separator}{}={text}", property.name());
        separator = '&';
    }
    Some(uri)
}
