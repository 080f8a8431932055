// SPDX-License-Identifier: LGPL-2.1-or-later
//! The source pad of a source: its caps, its latency, and the interrupt of its waits.

use std::sync::Mutex;
use std::time::Duration;

use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;

use cuframes::Interrupt;
use cuframes::sync::lock;

/// State of a source that other threads read or change while its streaming thread waits.
#[derive(Debug, Default)]
pub(crate) struct SourcePad {
    /// Caps of the stream; `None` before the first frame or packet.
    caps: Mutex<Option<gst::Caps>>,
    /// Latency of the publisher.
    latency: Mutex<Duration>,
    /// Ends every wait of the streaming thread. It has no lock, so any thread can set it at any time.
    ///
    /// It is created with the element, where a failure to create its fd can't be reported.
    pub(crate) interrupt: Interrupt,
}

impl SourcePad {
    pub(crate) fn latency(&self) -> Duration {
        *lock(&self.latency)
    }

    /// Returns the latency in ns, `i64::MAX` at most.
    pub(crate) fn latency_ns(&self) -> i64 {
        i64::try_from(self.latency().as_nanos()).unwrap_or(i64::MAX)
    }

    /// Stores the publisher's latency, and has the pipeline query latencies again if it has changed.
    pub(crate) fn set_latency(&self, source: &impl IsA<gst::Element>, latency: Duration) {
        if std::mem::replace(&mut *lock(&self.latency), latency) != latency {
            let source = source.upcast_ref::<gst::Element>();
            let _ = source.post_message(gst::message::Latency::builder().src(source).build());
        }
    }

    /// Answers a LATENCY query: a live source with the latency of its publisher.
    ///
    /// Returns false for other queries.
    pub(crate) fn query_latency(&self, query: &mut gst::QueryRef) -> bool {
        let gst::QueryViewMut::Latency(query) = query.view_mut() else { return false };
        let min = gst::ClockTime::try_from(self.latency()).unwrap_or(gst::ClockTime::ZERO);
        query.set(true, min, gst::ClockTime::NONE);
        true
    }

    /// Answers a CAPS query: the caps of the stream, or those of the template before there is one.
    pub(crate) fn query_caps(
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

    /// Sends caps downstream if they have changed.
    ///
    /// # Errors
    ///
    /// - [`gst::FlowError::NotNegotiated`] if downstream rejects the caps. The error is posted.
    /// - [`gst::FlowError::Flushing`] if the pad is flushing.
    pub(crate) fn set_caps<T>(&self, element: &T, caps: &gst::Caps) -> Result<(), gst::FlowError>
    where
        T: ElementImpl,
        T::Type: IsA<gst_base::BaseSrc> + IsA<gst::Element>,
    {
        if lock(&self.caps).replace(caps.clone()).as_ref() == Some(caps) {
            return Ok(());
        }
        let obj = element.obj();
        // Queried first, because the result of the CAPS event does not distinguish a rejection from a flush.
        if !obj.src_pad().peer_query_accept_caps(caps) {
            gst::element_imp_error!(
                element,
                gst::StreamError::Format,
                ("Downstream does not take what is published ({caps}): put a converter after the source, such as videoconvert, or cudaconvertscale for frames on a GPU")
            );
            return Err(gst::FlowError::NotNegotiated);
        }
        obj.set_caps(caps).map_err(|_| gst::FlowError::Flushing)
    }

    /// Clears the caps of the stream.
    pub(crate) fn reset(&self) {
        *lock(&self.caps) = None;
    }
}
