//! Looks which keys are live, and follows them coming and going.

use std::sync::{Arc, LazyLock, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::CuframesDevice;
use super::imp::Target;
use crate::log::CAT;
use cuframes::protocol::{discovery::Watch, runtime_dir::candidates};
use cuframes::sync::lock;
use cuframes::{Error, Interrupt, LiveKey};

/// Nothing tells of new caps, nor of a publisher that was killed before its lock is gone.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A publisher has its key before it has caps.
const LOOK_FOR_CAPS: Duration = Duration::from_millis(100);

#[derive(Default)]
pub struct CuframesDeviceProvider {
    follower: Mutex<Option<(Arc<Interrupt>, JoinHandle<()>)>>,
}

/// The devices that the provider has.
#[derive(Default)]
struct Known(Vec<(Target, CuframesDevice)>);

/// What a look found.
struct Found {
    targets: Vec<Target>,
    /// Keys that do not say at the moment what they have.
    silent: Vec<LiveKey>,
    /// Some have no caps yet.
    incomplete: bool,
}

fn look() -> Found {
    let mut found = Found { targets: Vec::new(), silent: Vec::new(), incomplete: false };
    for key in cuframes::keys(None) {
        match cuframes::status(&key.key, Some(&key.dir)) {
            Ok(status) => {
                let targets = Target::all_of(&key, &status);
                found.incomplete |= targets.is_empty();
                found.targets.extend(targets);
            }
            // It ended a moment ago, or is stopped. If it ended, it is no key next time.
            Err(Error::NoPublisher { .. }) => found.silent.push(key),
            Err(e) => gst::debug!(CAT, "No device for '{}': {e}", key.key),
        }
    }
    found
}

impl Known {
    /// Tells the provider what has changed. True if some have no caps yet.
    fn update(&mut self, provider: &super::CuframesDeviceProvider) -> bool {
        let Found { targets, silent, incomplete } = look();
        self.0.retain(|(known, device)| {
            let there = targets.iter().any(|t| t.is_same(known)) || silent.contains(&known.key);
            if !there {
                provider.device_remove(device);
            }
            there
        });
        for target in targets {
            let known = self.0.iter_mut().find(|(known, _)| known.is_same(&target));
            if known.as_ref().is_some_and(|(known, _)| *known == target) {
                continue;
            }
            let Some(device) = target.device() else { continue };
            match known {
                Some(known) => {
                    provider.device_changed(&device, &known.1);
                    *known = (target, device);
                }
                None => {
                    provider.device_add(&device);
                    self.0.push((target, device));
                }
            }
        }
        incomplete
    }
}

/// Follows until it is interrupted, or the provider is gone.
fn follow(
    provider: &glib::WeakRef<super::CuframesDeviceProvider>,
    mut known: Known,
    mut watch: Watch,
    interrupt: &Interrupt,
) {
    let dirs = candidates(None);
    let mut pause = LOOK_FOR_CAPS;
    loop {
        interrupt.poll(watch.fd().as_slice(), pause);
        if interrupt.is_set() {
            return;
        }
        watch.drain();
        if !watch.complete {
            // One of the directories may have been made.
            watch = Watch::coming_and_going(&dirs);
        }
        let Some(provider) = provider.upgrade() else { return };
        pause = if known.update(&provider) { LOOK_FOR_CAPS } else { LOOK_AGAIN };
    }
}

#[glib::object_subclass]
impl ObjectSubclass for CuframesDeviceProvider {
    const NAME: &'static str = "GstCuframesDeviceProvider";
    type Type = super::CuframesDeviceProvider;
    type ParentType = gst::DeviceProvider;
}

impl ObjectImpl for CuframesDeviceProvider {}

impl GstObjectImpl for CuframesDeviceProvider {}

impl DeviceProviderImpl for CuframesDeviceProvider {
    fn metadata() -> Option<&'static gst::subclass::DeviceProviderMetadata> {
        static METADATA: LazyLock<gst::subclass::DeviceProviderMetadata> = LazyLock::new(|| {
            gst::subclass::DeviceProviderMetadata::new(
                "cuframes device provider",
                "Source/Video",
                "Lists what cuframessink publishes on this host",
                "The cuframes authors",
            )
        });
        Some(&METADATA)
    }

    fn probe(&self) -> Vec<gst::Device> {
        look().targets.iter().filter_map(Target::device).map(Cast::upcast).collect()
    }

    fn start(&self) -> Result<(), gst::LoggableError> {
        let failed = |what, e| {
            gst::loggable_error!(
                CAT,
                "Can't {what} ({e}): raise this process's limits (ulimit -n, ulimit -u)"
            )
        };
        let interrupt = Interrupt::new().map_err(|e| failed("make an eventfd", e))?;
        let interrupt = Arc::new(interrupt);
        // Watching begins before the first look, so nothing that comes in between is missed. That look
        // is here, so that there are devices as soon as the provider has started.
        let watch = Watch::coming_and_going(&candidates(None));
        let provider = self.obj();
        let mut known = Known::default();
        known.update(&provider);
        let (weak, its) = (provider.downgrade(), interrupt.clone());
        let thread = std::thread::Builder::new()
            .name("cuframes-devices".into())
            .spawn(move || follow(&weak, known, watch, &its))
            .map_err(|e| failed("start a thread", e))?;
        *lock(&self.follower) = Some((interrupt, thread));
        Ok(())
    }

    fn stop(&self) {
        let Some((interrupt, thread)) = lock(&self.follower).take() else { return };
        interrupt.set();
        // Nothing may be added from here on. A handler of its own messages may stop the provider.
        if thread.thread().id() != std::thread::current().id() {
            let _ = thread.join();
        }
    }
}
