//! An RTSP server for what is published: `rtsp://HOST:8554/KEY` gives the packets of KEY, picture and
//! sound, as they are. Nothing is decoded, and all clients of a key share one subscriber.
//!
//! ```sh
//! cargo run --release --example restream -- cam1 cam2      # --listen 127.0.0.1:8554 for this host alone
//! ```
//!
//! A key need not be live yet: a client is refused until it is. Who may connect may watch; put a
//! proxy or a firewall in front of it where that is too many.

use std::process::ExitCode;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_rtsp_server::RTSPServer;
use gst_rtsp_server::prelude::*;
use gst_rtsp_server::subclass::prelude::*;

/// The elements that put a track on the net, for the codecs that RTSP clients know.
fn payloader(caps: &str) -> Option<&'static str> {
    Some(match caps.split([',', '(']).next()? {
        // The payloaders would put the parameter sets before each slice of a keyframe, which ffmpeg takes for two.
        "video/x-h264" => "h264parse config-interval=-1 ! rtph264pay",
        "video/x-h265" => "h265parse config-interval=-1 ! rtph265pay",
        "audio/mpeg" => "aacparse ! rtpmp4gpay",
        "audio/x-mulaw" => "rtppcmupay",
        "audio/x-alaw" => "rtppcmapay",
        "audio/x-opus" => "opusparse ! rtpopuspay",
        _ => return None,
    })
}

/// All tracks of a key, as gst-rtsp-server wants them: payloaders with the names pay0, pay1 …
fn launch(key: &str) -> Result<String, String> {
    let status = cuframes::status(key, None).map_err(|error| error.to_string())?;
    let tracks = status.tracks.iter().filter_map(|t| Some((t.track, payloader(&t.caps)?)));
    let streams = tracks.enumerate().map(|(n, (track, payloader))| {
        let number = 96 + n;
        format!("cuframespacketsrc key={key} track={track} ! {payloader} name=pay{n} pt={number} ")
    });
    let launch: String = streams.collect();
    match launch.is_empty() {
        true => Err(format!("'{key}' has no packets that RTSP clients know")),
        false => Ok(launch),
    }
}

mod imp {
    use super::*;

    #[derive(Default)]
    pub struct Factory;

    #[glib::object_subclass]
    impl ObjectSubclass for Factory {
        const NAME: &'static str = "CuframesRestream";
        type Type = super::Factory;
        type ParentType = gst_rtsp_server::RTSPMediaFactory;
    }

    impl ObjectImpl for Factory {}

    impl RTSPMediaFactoryImpl for Factory {
        /// The first client of a key has come, or the first after all were gone.
        fn create_element(&self, url: &gst_rtsp_server::gst_rtsp::RTSPUrl) -> Option<gst::Element> {
            // The first component is what is before the first slash: nothing.
            let key = url.decode_path_components().into_iter().nth(1)?;
            let made = launch(&key).and_then(|launch| {
                gst::parse::bin_from_description(&launch, false).map_err(|error| error.to_string())
            });
            match made {
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
    let (address, port) = listen.rsplit_once(':').ok_or("--listen takes ADDRESS:PORT")?;
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
            .expect("a new server has them")
            .add_factory(&format!("/{key}"), factory);
    }
    let attached = server.attach(None);
    let _source = attached.map_err(|_| format!("{listen} can't be listened on: is it in use?"))?;
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
        listen = keys.drain(..2).nth(1).expect("there are two");
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
