// SPDX-License-Identifier: LGPL-2.1-or-later
//! Connection of a source to its publisher: joins it, loses it, and waits for the next one.

use std::time::Duration;

use gst::prelude::*;
use gst::subclass::prelude::*;

use super::settings::Settings;
use crate::log::CAT;
use crate::messages::{post_error, post_message};
use crate::properties::{OnEos, OnLost, runtime_dir};
use cuframes::memory::Importer;
use cuframes::sync::clock::now;
use cuframes::{Error, Interrupt, Mode, Next, RefusalReason, Subscriber, SubscriberConfig, Wait};

/// Delay before a publisher that refused or evicted this subscriber is asked again.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// What a source asks of its publisher when it joins.
#[derive(Debug, Clone)]
pub(crate) struct JoinRequest {
    pub(crate) mode: Mode,
    /// Frames that the source may hold at a time; 0 for packets only.
    pub(crate) max_frames: u32,
    /// Maps the publisher's memory.
    pub(crate) importer: Importer,
}

/// Why a connection ended.
#[derive(Debug, Clone)]
pub(crate) struct Loss {
    reason: RefusalReason,
    text: String,
}

/// The connection of a source over the publishers that it joins in one run, for messages and statistics.
#[derive(Debug, Default)]
pub(crate) struct PublisherLink {
    /// A publisher was joined before in this run.
    joined_before: bool,
    reconnects: u64,
    /// A warning about the current wait for a publisher was posted.
    warned: bool,
}

impl PublisherLink {
    /// Returns how many times another publisher was joined after the first.
    pub(crate) fn reconnects(&self) -> u64 {
        self.reconnects
    }

    /// Joins the publisher of the key, and waits for it up to `connect-timeout`.
    ///
    /// # Errors
    ///
    /// - [`gst::FlowError::Flushing`] if the wait was interrupted.
    /// - [`gst::FlowError::Error`] if the publisher can't be joined. The error is posted.
    pub(crate) fn join<T>(
        &mut self,
        element: &T,
        settings: &Settings,
        request: &JoinRequest,
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
                mode: request.mode,
                max_frames: request.max_frames,
                importer: request.importer.clone(),
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
            if !(error.is_transient() && in_time) {
                post_error(element, &error);
                return Err(gst::FlowError::Error);
            }
            if !std::mem::replace(&mut self.warned, true) {
                gst::element_imp_warning!(element, gst::ResourceError::Busy, ("{error}"));
            }
            backoff(interrupt);
        }
    }

    fn joined<T>(&mut self, element: &T, key: &str)
    where
        T: ElementImpl,
        T::Type: IsA<gst::Element>,
    {
        self.warned = false;
        if std::mem::replace(&mut self.joined_before, true) {
            self.reconnects += 1;
            post_message(element, publisher_structure("cuframes-reconnected", key, ""));
        }
        gst::info!(CAT, imp = element, "Joined the publisher of '{key}'");
    }

    /// Applies `on-lost` after the publisher was lost. Returns `Ok` to wait for the next publisher.
    ///
    /// # Errors
    ///
    /// - [`gst::FlowError::Eos`] with `on-lost=eos`.
    /// - [`gst::FlowError::Error`] with `on-lost=error`, or if the publisher's data is invalid. The error is
    ///   posted.
    pub(crate) fn lost<T>(
        &mut self,
        element: &T,
        settings: &Settings,
        loss: &Loss,
        interrupt: &Interrupt,
    ) -> Result<(), gst::FlowError>
    where
        T: ElementImpl,
        T::Type: IsA<gst::Element>,
    {
        let key = settings.key.as_deref().unwrap_or_default();
        let Loss { reason, text } = loss;
        gst::info!(CAT, imp = element, "Lost the publisher of '{key}': {text}");
        if *reason == RefusalReason::Malformed {
            // This side ended the connection, and would end the next one for the same reason.
            gst::element_imp_error!(
                element,
                gst::ResourceError::Failed,
                ("The data of the publisher of '{key}' can't be used ({text}): run the same version of cuframes on both sides, or publish in memory that this process can map, such as memory=host")
            );
            return Err(gst::FlowError::Error);
        }
        match settings.on_lost {
            OnLost::Reconnect => {
                post_message(element, publisher_structure("cuframes-lost", key, text));
                if *reason != RefusalReason::Closing {
                    backoff(interrupt);
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

/// Returns the structure of an element message about the publisher.
fn publisher_structure(name: &str, key: &str, reason: &str) -> gst::Structure {
    gst::Structure::builder(name).field("key", key).field("reason", reason).build()
}

/// Sleeps before the next attempt, until interrupted.
fn backoff(interrupt: &Interrupt) {
    interrupt.sleep(RETRY_INTERVAL);
}

/// Returns the parameters of a wait for the next frame or packet.
///
/// `busy_poll` is how long to poll for a frame around the time at which it is expected.
pub(crate) fn wait(settings: &Settings, busy_poll: Duration) -> Wait {
    Wait { busy_poll, past_eos: settings.on_eos == OnEos::Wait, ..Wait::default() }
}

/// Converts the result of a wait: the item, or why the connection ended.
///
/// # Errors
///
/// The flow return that ends the streaming thread: the stream ended, or the wait was interrupted.
pub(crate) fn into_flow<I>(
    next: cuframes::Result<Next<I>>,
) -> Result<Result<I, Loss>, gst::FlowError> {
    match next {
        Ok(Next::Item(item)) => Ok(Ok(item)),
        Ok(Next::Eos) => Err(gst::FlowError::Eos),
        Ok(Next::Interrupted | Next::TimedOut) | Err(Error::Interrupted) => {
            Err(gst::FlowError::Flushing)
        }
        Ok(Next::Lost { reason, text }) => Ok(Err(Loss { reason, text })),
        Err(e) => Ok(Err(Loss { reason: RefusalReason::Malformed, text: e.to_string() })),
    }
}
