//! The life of a source: waits for its publisher, joins it, loses it, waits for the next.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;

use crate::log::CAT;
use crate::properties::{OnEos, OnLost, post_error, runtime_dir};
use cuframes::error::is_exhausted;
use cuframes::memory::Importer;
use cuframes::sync::clock::now;
use cuframes::sync::lock;
use cuframes::{Error, Interrupt, Mode, Next, RefusalReason, Subscriber, SubscriberConfig, Wait};

pub const DEFAULT_CONNECT_TIMEOUT: gst::ClockTime = gst::ClockTime::ZERO;
/// A publisher that had no place, or sent us away, is asked again after this long.
const RETRY: Duration = Duration::from_millis(250);

/// What both sources are told by their properties.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub key: Option<String>,
    pub runtime_dir: Option<String>,
    pub connect_timeout: gst::ClockTime,
    pub on_lost: OnLost,
    pub on_eos: OnEos,
}

impl Settings {
    pub fn properties() -> Vec<glib::ParamSpec> {
        vec![
            glib::ParamSpecString::builder("key")
                .nick("Key")
                .blurb("The key of the publisher (required)")
                .mutable_ready()
                .build(),
            glib::ParamSpecString::builder("runtime-dir")
                .nick("Runtime directory")
                .blurb("Where the publisher's socket is (unset: $CUFRAMES_RUNTIME_DIR, /run/cuframes, $XDG_RUNTIME_DIR/cuframes or /tmp/cuframes-UID)")
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt64::builder("connect-timeout")
                .nick("Connect timeout")
                .blurb("How long to wait for a publisher before that is an error (ns, 0 = for ever)")
                .maximum(crate::properties::MAX_TIME)
                    .default_value(DEFAULT_CONNECT_TIMEOUT.nseconds())
                .mutable_ready()
                .build(),
            glib::ParamSpecEnum::builder_with_default("on-lost", OnLost::default())
                .nick("On lost")
                .blurb("What to do when the publisher goes away")
                .mutable_playing()
                .build(),
            glib::ParamSpecEnum::builder_with_default("on-eos", OnEos::default())
                .nick("On end of stream")
                .blurb("What to do when the publisher's stream ends")
                .mutable_playing()
                .build(),
        ]
    }

    /// False if the property is none of these.
    pub fn set(&mut self, name: &str, value: &glib::Value) -> bool {
        // GObject has checked type and range.
        match name {
            "key" => self.key = value.get().unwrap(),
            "runtime-dir" => self.runtime_dir = value.get().unwrap(),
            "connect-timeout" => {
                self.connect_timeout = gst::ClockTime::from_nseconds(value.get().unwrap());
            }
            "on-lost" => self.on_lost = value.get().unwrap(),
            "on-eos" => self.on_eos = value.get().unwrap(),
            _ => return false,
        }
        true
    }

    pub fn get(&self, name: &str) -> Option<glib::Value> {
        Some(match name {
            "key" => self.key.to_value(),
            "runtime-dir" => self.runtime_dir.to_value(),
            "connect-timeout" => self.connect_timeout.nseconds().to_value(),
            "on-lost" => self.on_lost.to_value(),
            "on-eos" => self.on_eos.to_value(),
            _ => return None,
        })
    }
}

/// Marks what is to be told when a source goes on with another publisher.
#[derive(Debug, Default)]
pub struct Life {
    /// There was a publisher before in this run.
    joined_before: bool,
    reconnects: u64,
    /// Said once for each time that there is no publisher.
    said_waiting: bool,
}

impl Life {
    pub fn reconnects(&self) -> u64 {
        self.reconnects
    }

    /// Joins the publisher, however long that takes; posts the error if it is one.
    pub fn join<T>(
        &mut self,
        element: &T,
        settings: &Settings,
        (mode, credit, importer): (Mode, u32, Importer),
        interrupt: &Interrupt,
    ) -> Result<Subscriber, gst::FlowError>
    where
        T: ElementImpl,
        T::Type: IsA<gst::Element>,
    {
        let key = settings.key.clone().unwrap_or_default();
        let timeout = Some(Duration::from(settings.connect_timeout)).filter(|t| !t.is_zero());
        let deadline = timeout.map(|t| now() + t);
        loop {
            let left = deadline.map(|d| d.saturating_sub(now()));
            let config = SubscriberConfig {
                runtime_dir: runtime_dir(settings.runtime_dir.as_deref()),
                name: element.obj().name().to_string(),
                mode,
                max_frames: credit,
                importer: importer.clone(),
                ..SubscriberConfig::new(key.clone())
            };
            let error = match Subscriber::connect(config, left, interrupt) {
                Ok(subscriber) => {
                    self.joined(element, &key);
                    return Ok(subscriber);
                }
                Err(Error::Interrupted) => return Err(gst::FlowError::Flushing),
                Err(error) => error,
            };
            let in_time = deadline.is_none_or(|d| now() < d);
            let passing = matches!(
                &error,
                Error::Refused {
                    code: RefusalReason::Full
                        | RefusalReason::Closing
                        | RefusalReason::NoMemory
                        | RefusalReason::Slow
                        | RefusalReason::Stalled,
                    ..
                }
            );
            let exhausted = matches!(&error, Error::System { source, .. } if is_exhausted(source));
            if !((passing || exhausted) && in_time) {
                post_error(element, &error);
                return Err(gst::FlowError::Error);
            }
            if !std::mem::replace(&mut self.said_waiting, true) {
                gst::element_imp_warning!(element, gst::ResourceError::Busy, ("{error}"));
            }
            pause(interrupt);
        }
    }

    fn joined<T>(&mut self, element: &T, key: &str)
    where
        T: ElementImpl,
        T::Type: IsA<gst::Element>,
    {
        self.said_waiting = false;
        if std::mem::replace(&mut self.joined_before, true) {
            self.reconnects += 1;
            tell(element, "cuframes-reconnected", key, "");
        }
        gst::info!(CAT, imp = element, "Joined the publisher of '{key}'");
    }

    /// What follows from a publisher that is gone: `Ok` to wait for the next.
    pub fn lost<T>(
        &mut self,
        element: &T,
        settings: &Settings,
        code: RefusalReason,
        text: &str,
        interrupt: &Interrupt,
    ) -> Result<(), gst::FlowError>
    where
        T: ElementImpl,
        T::Type: IsA<gst::Element>,
    {
        let key = settings.key.as_deref().unwrap_or_default();
        gst::info!(CAT, imp = element, "Lost the publisher of '{key}': {text}");
        if code == RefusalReason::Malformed {
            // It was this side that ended it, and would again.
            gst::element_imp_error!(
                element,
                gst::ResourceError::Failed,
                ("What the publisher of '{key}' sends can't be used ({text}): run the same version of cuframes on both sides, or publish what this process can map, such as memory=host")
            );
            return Err(gst::FlowError::Error);
        }
        match settings.on_lost {
            OnLost::Reconnect => {
                tell(element, "cuframes-lost", key, text);
                if code != RefusalReason::Closing {
                    pause(interrupt);
                }
                Ok(())
            }
            OnLost::Eos => Err(gst::FlowError::Eos),
            OnLost::Error => {
                gst::element_imp_error!(
                    element,
                    gst::ResourceError::Read,
                    ("The publisher of '{key}' is lost ({text}): start it again, or set on-lost=reconnect to wait for it")
                );
                Err(gst::FlowError::Error)
            }
        }
    }
}

/// An element message about the publisher.
fn tell<T>(element: &T, name: &str, key: &str, reason: &str)
where
    T: ElementImpl,
    T::Type: IsA<gst::Element>,
{
    let structure = gst::Structure::builder(name).field("key", key).field("reason", reason).build();
    let obj = element.obj();
    let _ = obj.post_message(gst::message::Element::builder(structure).src(&*obj).build());
}

/// Not to ask again at once. Ends early when interrupted.
fn pause(interrupt: &Interrupt) {
    interrupt.sleep(RETRY);
}

/// How to wait for the next frame or packet.
pub fn wait<'a>(interrupt: &'a Interrupt, settings: &Settings, spin: Duration) -> Wait<'a> {
    Wait { spin, past_eos: settings.on_eos == OnEos::Wait, ..Wait::forever(interrupt) }
}

/// Samples of a latency, the newest few.
#[derive(Debug, Default)]
pub struct Latency(VecDeque<u64>);

impl Latency {
    const SAMPLES: usize = 512;

    pub fn add(&mut self, ns: i64) {
        if self.0.len() == Self::SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(ns.max(0) as u64);
    }

    /// The quantiles, in ns; 0 before the first sample.
    pub fn quantiles<const N: usize>(&self, of: [f64; N]) -> [u64; N] {
        let mut sorted: Vec<_> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        of.map(|q| sorted.get((last as f64 * q).round() as usize).copied().unwrap_or(0))
    }
}

/// What a wait came to: the item, what ended the connection, or what to return to the base class.
pub fn taken<I>(
    next: cuframes::Result<Next<I>>,
) -> Result<Result<I, (RefusalReason, String)>, gst::FlowError> {
    match next {
        Ok(Next::Item(item)) => Ok(Ok(item)),
        Ok(Next::Eos) => Err(gst::FlowError::Eos),
        Ok(Next::Interrupted | Next::TimedOut) | Err(Error::Interrupted) => {
            Err(gst::FlowError::Flushing)
        }
        Ok(Next::Lost { code, text }) | Err(Error::Refused { code, text, .. }) => {
            Ok(Err((code, text)))
        }
        Err(e) => Ok(Err((RefusalReason::Malformed, e.to_string()))),
    }
}

/// What other threads may ask a source for, or tell it, while it waits.
pub struct Outlet {
    /// The caps that go out.
    caps: Mutex<Option<gst::Caps>>,
    /// The publisher's.
    latency: Mutex<Duration>,
    /// Ends the waits; in no lock.
    pub interrupt: Interrupt,
}

impl Outlet {
    pub fn new() -> Self {
        Self {
            caps: Mutex::default(),
            latency: Mutex::default(),
            // Made with the element, when there is nobody to tell that there is no fd.
            interrupt: Interrupt::default(),
        }
    }

    pub fn latency(&self) -> Duration {
        *lock(&self.latency)
    }

    /// Has the pipeline ask for the latency anew when the publisher's has changed.
    pub fn note_latency(&self, source: &impl IsA<gst::Element>, latency: Duration) {
        if std::mem::replace(&mut *lock(&self.latency), latency) != latency {
            let source = source.upcast_ref::<gst::Element>();
            let _ = source.post_message(gst::message::Latency::builder().src(source).build());
        }
    }

    /// Answers LATENCY: a live source that is as late as its publisher.
    pub fn answer(&self, query: &mut gst::QueryRef) -> bool {
        let gst::QueryViewMut::Latency(query) = query.view_mut() else { return false };
        let min = gst::ClockTime::try_from(self.latency()).unwrap_or(gst::ClockTime::ZERO);
        query.set(true, min, gst::ClockTime::NONE);
        true
    }

    /// What the source can emit, for a CAPS query.
    pub fn offer(
        &self,
        source: &impl IsA<gst_base::BaseSrc>,
        filter: Option<&gst::Caps>,
    ) -> gst::Caps {
        let caps = lock(&self.caps).clone();
        let caps = caps.unwrap_or_else(|| source.src_pad().pad_template_caps());
        match filter {
            Some(filter) => filter.intersect_with_mode(&caps, gst::CapsIntersectMode::First),
            None => caps,
        }
    }

    /// Sends new caps downstream, if they are; posts the error if downstream does not take them.
    pub fn set_caps<T>(&self, element: &T, caps: &gst::Caps) -> Result<(), gst::FlowError>
    where
        T: ElementImpl,
        T::Type: IsA<gst_base::BaseSrc> + IsA<gst::Element>,
    {
        if lock(&self.caps).replace(caps.clone()).as_ref() == Some(caps) {
            return Ok(());
        }
        let obj = element.obj();
        // The event for the caps does not say whether they were taken.
        if !obj.src_pad().peer_query_accept_caps(caps) {
            gst::element_imp_error!(
                element,
                gst::StreamError::Format,
                ("Downstream does not take what is published ({caps}): put what converts it behind the source, such as videoconvert, or cudaconvertscale for frames on a GPU")
            );
            return Err(gst::FlowError::NotNegotiated);
        }
        // What it does say is that this pad flushes.
        obj.set_caps(caps).map_err(|_| gst::FlowError::Flushing)
    }

    /// Forgets the caps.
    pub fn stop(&self) {
        *lock(&self.caps) = None;
    }
}

/// Leaves the ALLOCATION query to the base class. The bindings' way there demands that nobody else has a
/// reference to the query, but in uridecodebin3 somebody has.
pub fn inherit_allocation<T>(class: &mut T::Class)
where
    T: ObjectSubclass<ParentType = gst_base::PushSrc>,
{
    let class = std::ptr::from_mut(class).cast::<gst_base::ffi::GstPushSrcClass>();
    // SAFETY: a class begins with that of its parent, which by the bound is a GstPushSrcClass. The
    // parent's own is there before its subclasses' are, and is never freed.
    unsafe {
        let parent = T::type_data().as_ref().parent_class();
        let parent = parent as *const gst_base::ffi::GstPushSrcClass;
        (*class).parent_class.decide_allocation = (*parent).parent_class.decide_allocation;
    }
}

/// The key as it has to be to leave NULL; posts the error if it is not.
pub fn check_key<T>(
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
