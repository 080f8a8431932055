// SPDX-License-Identifier: LGPL-2.1-or-later
//! Host memory that the GPU reads and writes.

use std::sync::Arc;

use cuframes::cuda::{Context, DeviceMemory, HostAccess, Stream};

use crate::page::{PAGE, SharedPage};
use crate::report::{Outcome, Report, expect};

pub(crate) fn check(context: &Context, report: &mut Report) {
    report.line("a page mapped read-only can be registered", read_only_page(context));
    report.line("a write outside a registered page is refused", out_of_range(context));
}

fn read_only_page(context: &Context) -> Outcome {
    const NUMBER: u64 = 0x0102_0304_0506_0708;
    if !context.device().can_register_read_only() {
        return Ok("not supported by this device".into());
    }
    let page = SharedPage::new()?;
    page.store(NUMBER);
    let view = Arc::new(SharedPage::open(&page.path())?);
    // SAFETY: the access is read-only.
    let registered = unsafe { view.register(context, HostAccess::ReadOnly) }?;
    let stream = Stream::new(context)?;
    expect(stream.write_value(&registered, 0, 1).is_err(), "a write was not refused")?;
    let (to, mut back) = (DeviceMemory::new(context, 8)?, [0; 8]);
    // SAFETY: 8 bytes of registered memory and of device memory, which exist until the read is done.
    unsafe {
        stream.copy(registered.address(), to.address(), 8)?;
        stream.read(to.address(), &mut back)?;
    }
    expect(u64::from_ne_bytes(back) == NUMBER, "the GPU read something else")?;
    Ok(String::new())
}

fn out_of_range(context: &Context) -> Outcome {
    let page = Arc::new(SharedPage::new()?);
    // SAFETY: a page of this process.
    let registered = unsafe { page.register(context, HostAccess::ReadWrite) }?;
    let stream = Stream::new(context)?;
    for offset in [PAGE, PAGE - 4, 4, usize::MAX] {
        expect(stream.write_value(&registered, offset, 1).is_err(), format!("byte {offset}"))?;
    }
    Ok(String::new())
}
