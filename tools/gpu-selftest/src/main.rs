// SPDX-License-Identifier: LGPL-2.1-or-later
//! Checks the features of an NVIDIA GPU and its driver that sharing frames relies on.
//!
//! ```sh
//! cargo run --release -p gpu-selftest
//! ```
//!
//! Prints a line for each check, and exits with a failure if one failed. Checks between two processes
//! start this program a second time; `$ON_GPU` names a launcher to start it through, if the machine needs
//! one.

mod checks;
mod page;
mod peer;
mod report;
mod subscriber;
mod workload;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use cuframes::cuda::{Context, Device};
use cuframes::memory::Backend;
use cuframes::memory::cuda::CudaBackend;
use cuframes::memory::cuda_ipc::CudaIpcBackend;

use report::{Outcome, Report};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, role, dir, key] = arguments.as_slice()
        && role == peer::ROLE
    {
        return match subscriber::run(Path::new(dir), key) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                println!("FAILED {e}");
                ExitCode::FAILURE
            }
        };
    }
    let mut report = Report::default();
    if let Err(e) = check_all(&arguments[0], &mut report) {
        report.line("the program itself", Err(e));
    }
    report.finish()
}

fn check_all(program: &str, report: &mut Report) -> Outcome<()> {
    let device = Device::by_ordinal(0)?;
    print_properties(&device)?;
    let context = Context::primary(&device)?;
    checks::device::check(&context, report);
    checks::host_memory::check(&context, report);

    let dir = std::env::temp_dir().join(format!("cuframes-selftest-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    for backend in backends(&context, report) {
        let kind = backend.kind();
        checks::import::check(&context, &*backend, report);
        if let Err(e) = checks::sharing::check(program, &dir, &context, backend, report) {
            report.line(&format!("{kind}: two processes"), Err(e));
        }
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn print_properties(device: &Device) -> Outcome<()> {
    let yes = |b| if b { "yes" } else { "no" };
    println!(
        "{device}, {}, CUDA {}; exports fds: {}, writes values: {}, registers read-only: {}",
        device.uuid()?,
        device.driver_version(),
        yes(device.can_export_fds()),
        yes(device.can_write_values()),
        yes(device.can_register_read_only()),
    );
    Ok(())
}

/// Returns the backends of device memory that this system supports.
fn backends(context: &Context, report: &mut Report) -> Vec<Arc<dyn Backend>> {
    let mut backends: Vec<Arc<dyn Backend>> = Vec::new();
    match CudaBackend::new(context.clone()) {
        Ok(backend) => backends.push(Arc::new(backend)),
        Err(e) => report.line("VMM memory", Err(e.into())),
    }
    backends.push(Arc::new(CudaIpcBackend::new(context.clone(), false)));
    backends
}
