// SPDX-License-Identifier: LGPL-2.1-or-later
//! An RTSP server for the packets of keys: `rtsp://HOST:8554/KEY` serves video and audio of KEY, without
//! decoding. All clients of a key share one subscriber.
//!
//! ```sh
//! cargo run --release --example restream -- cam1 cam2      # for this host only: --listen 127.0.0.1:8554
//! ```
//!
//! A key may be published later; until then its clients are refused. There is no authentication: every
//! client that can connect can watch, so restrict access with a proxy or a firewall.

use std::process::ExitCode;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_rtsp_server::RTSPServer;
use gst_rtsp_server::prelude::*;
use gst_rtsp_server::subclass::prelude::*;

/// Returns the elements that convert packets with these caps to RTP, for the codecs that RTSP clients
/// support.
fn payloader(caps: &str) -> Option<&'static str> {
    Some(match caps.split([',', '(']).next()? {
        // The parsers insert the parameter sets once for each keyframe. The payloaders would insert them
        // before each slice, and ffmpeg would treat one keyframe as two.
        "video/x-h264" => "h264parse config-interval=-1 ! rtph264pay",
        "video/x-h265" => "h265parse config-interval=-1 ! rtph265pay",
        "audio/mpeg" => "aacparse ! rtpmp4gpay",
        "audio/x-mulaw" => "rtppcmupay",
        "audio/x-alaw" => "rtppcmapay",
        "audio/x-opus" => "opusparse ! rtpopuspay",
        _ => return None,
    })
}

/// Returns a pipeline of all tracks of a key. gst-rtsp-server finds the payloaders by their names pay0, pay1
/// and so on.
fn launch(key: &str) -> Result<String, String> {
    let status = cuframes::status(key, None).map_err(|error| error.to_string())?;
    let tracks = status.tracks.iter().filter_map(|t| Some((t.track, payloader(&t.caps)?)));
    let streams = tracks.enumerate().map(|(n, (track, payloader))| {
        let payload_type = 96 + n;
        format!(
            "cuframespacketsrc key={key} track={track} ! {payloader} name=pay{n} pt={payload_type} "
        )
    });
    let launch: String = streams.collect();
    match launch.is_empty() {
        true => Err(format!("'{key}' has no packets of a codec that RTSP clients support")),
        false => Ok(launch),
    }
}

mod imp {
    use super::*;

    #[derive(Debug, Default)]
    pub struct Factory;

    #[glib::object_subclass]
    impl ObjectSubclass for Factory {
        const NAME: &'static str = "CuframesRestream";
        type Type = super::Factory;
        type ParentType = gst_rtsp_server::RTSPMediaFactory;
    }

    impl ObjectImpl for Factory {}

    impl RTSPMediaFactoryImpl for Factory {
        /// Creates the pipeline of a key for its first client, and again for the first one after all clients
        /// have disconnected.
        fn create_element(&self, url: &gst_rtsp_server::gst_rtsp::RTSPUrl) -> Option<gst::Element> {
            // The path starts with a slash, so its first component is empty.
            let key = url.decode_path_components().into_iter().nth(1)?;
            let bin = launch(&key).and_then(|launch| {
                gst::parse::bin_from_description(&launch, false).map_err(|error| error.to_string())
            });
            match bin {
                Ok(bin) => Some(bin.upcast()),
                Err(error) => {
                    eprintln!("restream: {error}");
                    None
                }
            }
        }
    }
}

glib::wrapper! {
    pub struct Factory(ObjectSubclass<imp::Factory>) @extends gst_rtsp_server::RTSPMediaFactory;
}

fn serve(listen: &str, keys: &[String]) -> Result<(), String> {
    let (address, port) = listen.rsplit_once(':').ok_or("--listen needs ADDRESS:PORT")?;
    gst::init().map_err(|error| error.to_string())?;
    gstcuframes::plugin_register_static().map_err(|error| error.to_string())?;
    let server = RTSPServer::new();
    server.set_address(address);
    server.set_service(port);
    for key in keys {
        let factory: Factory = glib::Object::new();
        factory.set_shared(true);
        server
            .mount_points()
            .expect("a new server has mount points")
            .add_factory(&format!("/{key}"), factory);
    }
    let attached = server.attach(None);
    let _source = attached.map_err(|_| format!("can't listen on {listen}: use a free port"))?;
    for key in keys {
        println!("ready rtsp://{address}:{}/{key}", server.bound_port());
    }
    glib::MainLoop::new(None, false).run();
    Ok(())
}

fn main() -> ExitCode {
    let mut keys: Vec<String> = std::env::args().skip(1).collect();
    let mut listen = "0.0.0.0:8554".to_owned();
    if keys.len() > 2 && keys[0] == "--listen" {
        listen = keys.drain(..2).nth(1).expect("two arguments were drained");
    }
    if keys.is_empty() || keys[0].starts_with('-') {
        eprintln!("usage: restream [--listen ADDRESS:PORT] KEY...");
        return ExitCode::from(2);
    }
    match serve(&listen, &keys) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("restream: {message}");
            ExitCode::FAILURE
        }
    }
}
