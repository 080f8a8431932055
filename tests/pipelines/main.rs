// SPDX-License-Identifier: LGPL-2.1-or-later
//! Real processes: gst-launch, the scripts that the manual shows, examples, and a camera over RTSP.

mod cameras;
mod examples;
mod faults;
mod frigate;
mod network;
mod processes;
mod recording;
mod serving;
mod sound;
mod support;
