//! What the core traces goes to GStreamer's log, as category `cuframes`.

use std::fmt::Write;
use std::sync::LazyLock;

use gst::prelude::*;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

pub static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    let what = Some("Sharing of frames and packets between processes");
    gst::DebugCategory::new("cuframes", gst::DebugColorFlags::empty(), what)
});

/// Takes effect unless the application has a subscriber of its own, which then gets the events.
pub fn init() {
    let _ = tracing::subscriber::set_global_default(Bridge);
}

struct Bridge;

fn level(level: &Level) -> gst::DebugLevel {
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
        metadata.is_event() && CAT.above_threshold(level(metadata.level()))
    }

    fn register_callsite(&self, _: &'static Metadata<'static>) -> tracing::subscriber::Interest {
        // The threshold can change at any time.
        tracing::subscriber::Interest::sometimes()
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        let m = event.metadata();
        let file = gst::glib::GString::from(m.file().unwrap_or_default());
        CAT.log(
            None::<&gst::Object>,
            level(m.level()),
            file.as_gstr(),
            m.target(),
            m.line().unwrap_or(0),
            format_args!("{}", line.0),
        );
    }

    // The core has no spans.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let gap = if self.0.is_empty() { "" } else { " " };
        // Writing to a string can't fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{gap}{value:?}"),
            name => write!(self.0, "{gap}{name}={value:?}"),
        };
    }
}
