//! Writes docs/elements.md from what the elements say of themselves: `make docs`.
//! A test compares the two, so that a changed property shows in review.

use gst::glib;
use gst::prelude::*;

const ELEMENTS: [&str; 3] = ["cuframessink", "cuframessrc", "cuframespacketsrc"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    gst::init()?;
    gstcuframes::plugin_register_static()?;
    println!("<!-- Written by `make docs`. Do not edit. -->");
    println!("# Elements");
    for name in ELEMENTS {
        let element = gst::ElementFactory::make(name).build()?;
        document(&element);
    }
    Ok(())
}

fn document(element: &gst::Element) {
    let factory = element.factory().expect("it came from one");
    println!("\n## {}\n", factory.name());
    for key in ["description", "klass"] {
        println!(
            "{}{}  ",
            if key == "klass" { "Klass: " } else { "" },
            factory.metadata(key).unwrap_or_default()
        );
    }
    if let Some(handler) = element.dynamic_cast_ref::<gst::URIHandler>() {
        for protocol in handler.protocols() {
            println!("URI: `{protocol}://KEY?PROPERTY=VALUE&…`  ");
        }
    }
    println!("\n### Pads\n");
    for template in element.pad_template_list() {
        let (name, direction) = (template.name_template(), template.direction());
        println!("- `{name}` ({direction:?}, {:?})", template.presence());
        let mut raw = false;
        for structure in template.caps().iter() {
            // GStreamer adds formats with its versions, and device memory with its CUDA library.
            match structure.name().as_str() {
                "video/x-raw" if raw => {}
                "video/x-raw" => {
                    raw = true;
                    println!(
                        "  - `video/x-raw`, every format that planes and strides describe; NV12 preferred"
                    );
                    println!(
                        "  - `video/x-raw(memory:CUDAMemory)`, with GStreamer 1.24 or later on a GPU"
                    );
                }
                _ => println!("  - `{structure}`"),
            }
        }
    }
    println!("\n### Properties\n\n| name | type | default | can be set | |\n|---|---|---|---|---|");
    let mut own: Vec<_> = element
        .list_properties()
        .iter()
        .filter(|p| p.owner_type() == element.type_())
        .cloned()
        .collect();
    own.sort_by(|a, b| a.name().cmp(b.name()));
    for property in &own {
        let blurb = property.blurb().unwrap_or_default().replace('|', "\\|");
        let (name, kind) = (property.name(), kind(property));
        println!(
            "| `{name}` | {kind} | {} | {} | {blurb} |",
            default(property),
            settable(property)
        );
    }
    for property in own.iter().filter_map(|p| p.downcast_ref::<glib::ParamSpecEnum>()) {
        println!("\nValues of `{}`:\n", property.name());
        for value in property.enum_class().values() {
            println!("- `{}`: {}", value.nick(), value.name());
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
