// SPDX-License-Identifier: LGPL-2.1-or-later
//! docs/elements.md describes the elements as they describe themselves, so that a changed property shows in
//! review. `make docs` writes it.

use gst::glib;
use gst::prelude::*;
use testing::root;

const ELEMENTS: [&str; 3] = ["cuframessink", "cuframessrc", "cuframespacketsrc"];

#[test]
fn element_page_is_up_to_date() {
    testing_gst::init();
    let mut page = String::from("<!-- Written by `make docs`. Do not edit. -->\n# Elements\n");
    for name in ELEMENTS {
        document(&mut page, &gst::ElementFactory::make(name).build().unwrap());
    }
    let path = root().join("docs/elements.md");
    if std::env::var_os("CUFRAMES_WRITE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == written, "docs/elements.md is out of date: run make docs");
}

/// Appends the section of an element.
fn document(page: &mut String, element: &gst::Element) {
    let factory = element.factory().expect("it came from one");
    let metadata = |key| factory.metadata(key).unwrap_or_default();
    *page += &format!("\n## {}\n\n", factory.name());
    *page += &format!("{}  \nKlass: {}  \n", metadata("description"), metadata("klass"));
    if let Some(handler) = element.dynamic_cast_ref::<gst::URIHandler>() {
        for protocol in handler.protocols() {
            *page += &format!("URI: `{protocol}://KEY?PROPERTY=VALUE&…`  \n");
        }
    }
    *page += "\n### Pads\n\n";
    for template in element.pad_template_list() {
        document_pad(page, &template);
    }
    document_properties(page, element);
}

fn document_pad(page: &mut String, template: &gst::PadTemplate) {
    let (name, direction) = (template.name_template(), template.direction());
    *page += &format!("- `{name}` ({direction:?}, {:?})\n", template.presence());
    let mut raw = false;
    for structure in template.caps().iter() {
        // GStreamer adds formats with its versions, and device memory with its CUDA library.
        match structure.name().as_str() {
            "video/x-raw" if raw => {}
            "video/x-raw" => {
                raw = true;
                *page += "  - `video/x-raw`, every format that planes and strides describe; NV12 preferred\n";
                *page +=
                    "  - `video/x-raw(memory:CUDAMemory)`, with GStreamer 1.24 or later on a GPU\n";
            }
            _ => *page += &format!("  - `{structure}`\n"),
        }
    }
}

fn document_properties(page: &mut String, element: &gst::Element) {
    *page +=
        "\n### Properties\n\n| name | type | default | can be set | |\n|---|---|---|---|---|\n";
    let properties = element.list_properties();
    let mut own: Vec<_> =
        properties.iter().filter(|p| p.owner_type() == element.type_()).cloned().collect();
    own.sort_by(|a, b| a.name().cmp(b.name()));
    for property in &own {
        let blurb = property.blurb().unwrap_or_default().replace('|', "\\|");
        let (name, kind) = (property.name(), kind(property));
        let (default, settable) = (default(property), settable(property));
        *page += &format!("| `{name}` | {kind} | {default} | {settable} | {blurb} |\n");
    }
    for property in own.iter().filter_map(|p| p.downcast_ref::<glib::ParamSpecEnum>()) {
        *page += &format!("\nValues of `{}`:\n\n", property.name());
        for value in property.enum_class().values() {
            *page += &format!("- `{}`: {}\n", value.nick(), value.name());
        }
    }
}

fn kind(property: &glib::ParamSpec) -> String {
    property
        .value_type()
        .name()
        .trim_start_matches('g')
        .trim_start_matches("GstCuframes")
        .to_owned()
}

fn default(property: &glib::ParamSpec) -> String {
    if !property.flags().contains(glib::ParamFlags::WRITABLE) {
        return String::new();
    }
    let value = property.default_value();
    if let Some((_, value)) = glib::EnumValue::from_value(value) {
        return format!("`{}`", value.nick());
    }
    match value.get::<Option<String>>() {
        Ok(text) => text.unwrap_or_default(),
        Err(_) => value.transform::<String>().ok().and_then(|v| v.get().ok()).unwrap_or_default(),
    }
}

fn settable(property: &glib::ParamSpec) -> &'static str {
    let flags = property.flags().bits();
    match () {
        () if flags & glib::ParamFlags::WRITABLE.bits() == 0 => "read only",
        () if flags & gst::ffi::GST_PARAM_MUTABLE_PLAYING as u32 != 0 => "any time",
        () => "up to READY",
    }
}
