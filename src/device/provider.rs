// SPDX-License-Identifier: LGPL-2.1-or-later
//! The provider: scans for live keys, and adds and removes devices as publishers start and stop.

use std::sync::{LazyLock, Mutex};
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

/// Interval of scans. Changed caps, and a publisher that was killed, trigger no file system event.
const SCAN_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of scans while a publisher has a key but no caps yet.
const CAPS_INTERVAL: Duration = Duration::from_millis(100);

/// The thread that updates the devices.
struct Watcher {
    interrupt: Interrupt,
    thread: JoinHandle<()>,
}

/// Implementation of the device provider.
#[derive(Default)]
pub(crate) struct CuframesDeviceProvider {
    watcher: Mutex<Option<Watcher>>,
}

/// The devices that the provider has added.
#[derive(Default)]
struct Devices(Vec<(Target, CuframesDevice)>);

/// Result of a scan.
struct Scan {
    targets: Vec<Target>,
    /// Keys whose publisher did not respond.
    unresponsive: Vec<LiveKey>,
    /// A publisher has no caps yet.
    incomplete: bool,
}

/// Asks the publisher of every live key for its frames and tracks.
fn scan() -> Scan {
    let mut scan = Scan { targets: Vec::new(), unresponsive: Vec::new(), incomplete: false };
    for key in cuframes::keys(None) {
        match cuframes::status(&key.key, Some(&key.dir)) {
            Ok(status) => {
                let targets = Target::all_of(&key, &status);
                scan.incomplete |= targets.is_empty();
                scan.targets.extend(targets);
            }
            // The publisher has just ended, or its process is stopped (SIGSTOP). If it has ended, the next
            // scan finds no key.
            Err(Error::NoPublisher { .. }) => scan.unresponsive.push(key),
            Err(e) => gst::debug!(CAT, "No device for '{}': {e}", key.key),
        }
    }
    scan
}

impl Devices {
    /// Scans, and updates the provider. Returns whether a publisher has no caps yet.
    fn update(&mut self, provider: &super::CuframesDeviceProvider) -> bool {
        let Scan { targets, unresponsive, incomplete } = scan();
        self.0.retain(|(known, device)| {
            let live =
                targets.iter().any(|t| t.has_same_name(known)) || unresponsive.contains(&known.key);
            if !live {
                provider.device_remove(device);
            }
            live
        });
        for target in targets {
            let known = self.0.iter_mut().find(|(known, _)| known.has_same_name(&target));
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

/// Updates the devices until interrupted, or until the provider is freed.
fn run(
    provider: &glib::WeakRef<super::CuframesDeviceProvider>,
    mut devices: Devices,
    mut watch: Watch,
    interrupt: &Interrupt,
) {
    let dirs = candidates(None);
    let mut interval = CAPS_INTERVAL;
    loop {
        interrupt.poll(watch.fd().as_slice(), interval);
        if interrupt.is_set() {
            return;
        }
        watch.drain();
        if !watch.complete {
            // A runtime directory may have been created since.
            watch = Watch::coming_and_going(&dirs);
        }
        let Some(provider) = provider.upgrade() else { return };
        interval = if devices.update(&provider) { CAPS_INTERVAL } else { SCAN_INTERVAL };
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
                "Lists the streams that cuframessink publishes on this host",
                env!("CARGO_PKG_AUTHORS"),
            )
        });
        Some(&METADATA)
    }

    fn probe(&self) -> Vec<gst::Device> {
        scan().targets.iter().filter_map(Target::device).map(Cast::upcast).collect()
    }

    fn start(&self) -> Result<(), gst::LoggableError> {
        let failed = |action, e| {
            gst::loggable_error!(
                CAT,
                "Can't {action} ({e}): raise this process's limits (ulimit -n, ulimit -u)"
            )
        };
        let interrupt = Interrupt::new().map_err(|e| failed("create an eventfd", e))?;
        // The watch is set up before the first scan, so that no change in between is missed. The first
        // scan is done here, so that devices are listed as soon as the provider has started.
        let watch = Watch::coming_and_going(&candidates(None));
        let provider = self.obj();
        let mut devices = Devices::default();
        devices.update(&provider);
        let (weak, stop) = (provider.downgrade(), interrupt.clone());
        let thread = std::thread::Builder::new()
            .name("cuframes-devices".into())
            .spawn(move || run(&weak, devices, watch, &stop))
            .map_err(|e| failed("start a thread", e))?;
        *lock(&self.watcher) = Some(Watcher { interrupt, thread });
        Ok(())
    }

    fn stop(&self) {
        let Some(Watcher { interrupt, thread }) = lock(&self.watcher).take() else { return };
        interrupt.set();
        // The thread is joined, so that no device is added after `stop` returns. A thread can't join
        // itself, which happens if a handler of the provider's messages stops the provider.
        if thread.thread().id() != std::thread::current().id() {
            let _ = thread.join();
        }
    }
}
