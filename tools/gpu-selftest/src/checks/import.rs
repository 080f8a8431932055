// SPDX-License-Identifier: LGPL-2.1-or-later
//! Chunks that a hostile publisher might send.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use cuframes::cuda::{Context, Uuid};
use cuframes::memory::{Backend, ChunkInfo, Geometry, Importer, Kind};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::report::{Outcome, Report};
use crate::workload::FRAME;

pub(crate) fn check(context: &Context, backend: &dyn Backend, report: &mut Report) {
    let kind = backend.kind();
    report.line(&format!("{kind}: invalid chunks are refused"), invalid_chunks(context, backend));
}

/// Returns the error of an import that must fail.
fn refusal(case: &str, importer: &Importer, info: ChunkInfo, fd: OwnedFd) -> Outcome {
    let refused = importer.import(info, fd).err();
    Ok(refused.ok_or(format!("{case} was accepted"))?.to_string())
}

fn invalid_chunks(context: &Context, backend: &dyn Backend) -> Outcome {
    let importer = Importer::cuda(context.clone());
    let chunk = backend.allocate(2, FRAME)?;
    let geometry = chunk.geometry();
    let info = ChunkInfo { kind: backend.kind(), device: backend.device(), geometry };
    let with = |geometry| ChunkInfo { geometry, ..info };
    let fd = || chunk.fd().try_clone_to_owned();
    let memfd = || memfd_create("invalid", MFdFlags::MFD_CLOEXEC);

    let (no_slot, overflow) =
        (Geometry { slots: 0, ..geometry }, Geometry { stride: u64::MAX, ..geometry });
    let mut errors = vec![
        refusal("/dev/null", &importer, info, File::open("/dev/null")?.into())?,
        refusal("an empty memfd", &importer, info, memfd()?)?,
        refusal("no slot", &importer, with(no_slot), fd()?)?,
        refusal("a stride that overflows", &importer, with(overflow), fd()?)?,
        refusal("device memory without a GPU", &Importer::host(), info, fd()?)?,
    ];
    if info.kind == Kind::CudaVmm {
        let too_long = with(Geometry { slots: 200, ..geometry });
        errors.push(refusal("too many slots", &importer, too_long, fd()?)?);
        // A process may import its own export.
        importer.import(info, fd()?)?;
        let other_device = ChunkInfo { device: Uuid([7; 16]), ..info };
        errors.push(refusal("an unknown GPU", &importer, other_device, fd()?)?);
    } else {
        let file = memfd()?;
        File::from(file.try_clone()?).write_all(&[0x55; 64])?;
        errors.push(refusal("64 arbitrary bytes", &importer, info, file)?);
    }
    Ok(errors.join(" | "))
}
