// SPDX-License-Identifier: LGPL-2.1-or-later
//! Devices, copies and events within one process.

use cuframes::cuda::{Address, Context, Copy2d, Device, DeviceMemory, Event, Stream, Uuid};

use crate::page::PAGE;
use crate::report::{Outcome, Report, expect};
use crate::workload::Ballast;

pub(crate) fn check(context: &Context, report: &mut Report) {
    report.line("devices are found by their UUID", lookup(context.device()));
    report.line("2D copies leave the padding untouched", copies_2d(context));
    report.line("events order streams", events(context));
}

fn lookup(device: &Device) -> Outcome {
    expect(Device::by_uuid(device.uuid()?)? == *device, "another device")?;
    let by_uuid = Device::by_uuid(Uuid([7; 16])).err().ok_or("a made-up UUID was found")?;
    let by_ordinal = Device::by_ordinal(4711).err().ok_or("GPU 4711 was found")?;
    Ok(format!("[{by_uuid}] [{by_ordinal}]"))
}

fn copies_2d(context: &Context) -> Outcome {
    let stream = Stream::new(context)?;
    let (width, height, pitch) = (1000, 64, 1536);
    let (a, b) =
        (DeviceMemory::new(context, pitch * height)?, DeviceMemory::new(context, pitch * height)?);
    let bytes: Vec<u8> = (0..width * height).map(|i| (i % 251) as u8).collect();
    let mut back = vec![0; width * height];
    let up = Copy2d {
        from: Address::Host(bytes.as_ptr().cast_mut()),
        from_pitch: width,
        to: Address::Device(a.address()),
        to_pitch: pitch,
        width,
        height,
    };
    let across = Copy2d { from: up.to, from_pitch: pitch, to: Address::Device(b.address()), ..up };
    let down =
        Copy2d { from: across.to, to: Address::Host(back.as_mut_ptr()), to_pitch: width, ..across };
    // SAFETY: all ranges are as long as the copies, and exist until the stream is synchronized.
    unsafe {
        stream.fill(b.address(), 0xee, b.len())?;
        stream.copy_2d(&up)?;
        stream.copy_2d(&across)?;
        stream.copy_2d(&down)?;
    }
    stream.synchronize()?;
    expect(back == bytes, "other bytes came back")?;
    let mut row = vec![0; pitch];
    // SAFETY: the first row of `b`.
    unsafe { stream.read(b.address(), &mut row) }?;
    expect(row[width..].iter().all(|x| *x == 0xee), "the padding was written")?;
    Ok(String::new())
}

fn events(context: &Context) -> Outcome {
    let (a, b) = (Stream::new(context)?, Stream::new(context)?);
    let (ballast, target) = (Ballast::new(context)?, DeviceMemory::new(context, PAGE)?);
    let event = Event::new(context)?;
    let mut byte = [0];
    // SAFETY: both memories exist until the streams are synchronized.
    unsafe {
        b.fill(target.address(), 1, PAGE)?;
        b.synchronize()?;
        ballast.keep_busy(&a)?;
        a.fill(target.address(), 2, PAGE)?;
        event.record(&a)?;
        let early = event.is_done()?;
        b.wait_for(&event)?;
        b.read(target.address(), &mut byte)?;
        expect(event.is_done()? && a.is_done()?, "the stream did not wait for the event")?;
        expect(byte == [2], "the other stream read too early")?;
        Ok(format!("done when recorded: {early}"))
    }
}
