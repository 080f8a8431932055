// SPDX-License-Identifier: LGPL-2.1-or-later
//! The debug category `cuframes`, and a bridge that forwards the library's `tracing` events to it.

use std::fmt::Write;
use std::sync::LazyLock;

use gst::prelude::*;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The debug category of all elements and of the library.
pub(crate) static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    let description = Some("Sharing of frames and packets between processes");
    gst::DebugCategory::new("cuframes", gst::DebugColorFlags::empty(), description)
});

/// Installs the bridge as the process's `tracing` subscriber.
///
/// An application that has installed its own subscriber keeps it, and receives the events instead.
pub(crate) fn init() {
    let _ = tracing::subscriber::set_global_default(Bridge);
}

/// Forwards `tracing` events to [`CAT`].
struct Bridge;

fn debug_level(level: &Level) -> gst::DebugLevel {
    match *level {
        Level::ERROR => gst::DebugLevel::Error,
        Level::WARN => gst::DebugLevel::Warning,
        Level::INFO => gst::DebugLevel::Info,
        Level::DEBUG => gst::DebugLevel::Debug,
        Level::TRACE => gst::DebugLevel::Trace,
    }
}

impl Subscriber for Bridge {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && CAT.above_threshold(debug_level(metadata.level()))
    }

    fn register_callsite(&self, _: &'static Metadata<'static>) -> tracing::subscriber::Interest {
        // The threshold of the category can change at any time, so it is checked for every event.
        tracing::subscriber::Interest::sometimes()
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = EventText(String::new());
        event.record(&mut text);
        let metadata = event.metadata();
        let file = gst::glib::GString::from(metadata.file().unwrap_or_default());
        CAT.log(
            None::<&gst::Object>,
            debug_level(metadata.level()),
            file.as_gstr(),
            metadata.target(),
            metadata.line().unwrap_or(0),
            format_args!("{}", text.0),
        );
    }

    // The library emits events only, so spans are ignored.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// The message of an event, followed by its fields as `name=value`.
struct EventText(String);

impl Visit for EventText {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let gap = if self.0.is_empty() { "" } else { " " };
        // Writing to a String always succeeds.
        let _ = match field.name() {
            "message" => write!(self.0, "{gap}{value:?}"),
            name => write!(self.0, "{gap}{name}={value:?}"),
        };
    }
}
