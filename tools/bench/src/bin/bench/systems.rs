// SPDX-License-Identifier: LGPL-2.1-or-later
//! The systems that are compared.

/// The pipelines of a system. In them, `SITE` stands for the camera's folder, `CAPS` for the caps of frames,
/// `URL` for the simulated camera, `CODEC` for its codec, and `PACKED` for its stream format.
pub struct System {
    pub name: &'static str,
    pub source: Source,
    /// Elements of the publisher behind the source of frames; empty without a publisher.
    pub sink: &'static str,
    /// Elements of a subscriber; empty without subscribers.
    pub subscriber: &'static str,
    /// One process publishes all cameras, and each subscriber takes all of them.
    pub together: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Source {
    /// The publisher creates frames.
    Made,
    /// The publisher creates frames and uploads them to the GPU.
    Uploaded,
    /// The publisher, if the system has one, decodes the stream of a camera.
    Camera,
}

/// Elements that upload frames to the GPU.
pub const UPLOAD: &str = "cudaupload ! video/x-raw(memory:CUDAMemory) ! ";

const fn made(name: &'static str, sink: &'static str, subscriber: &'static str) -> System {
    System { name, source: Source::Made, sink, subscriber, together: false }
}

const fn uploaded(name: &'static str, sink: &'static str, subscriber: &'static str) -> System {
    System { name, source: Source::Uploaded, sink, subscriber, together: false }
}

const fn camera(name: &'static str, sink: &'static str, subscriber: &'static str) -> System {
    System { name, source: Source::Camera, sink, subscriber, together: false }
}

const SINK: &str = "cuframessink name=sink key=bench runtime-dir=SITE";
const SRC: &str = "cuframessrc name=src key=bench runtime-dir=SITE";
const SPIN: &str = "cuframessrc name=src key=bench busy-poll=500 runtime-dir=SITE";
// Every frame reaches every subscriber, at the pace of the slowest.
const WAITING_SINK: &str = "cuframessink name=sink key=bench policy=wait runtime-dir=SITE";
const STRICT_SRC: &str = "cuframessrc name=src key=bench mode=strict runtime-dir=SITE";

const UNIXFD_SINK: &str = "unixfdsink name=sink sync=false socket-path=SITE/unixfd";
const UNIXFD_SRC: &str = "unixfdsrc name=src socket-path=SITE/unixfd";
const SHM_SINK: &str = "shmsink name=sink sync=false wait-for-connection=false shm-size=200000000 socket-path=SITE/shm";
const SHM_SRC: &str = "shmsrc name=src is-live=true socket-path=SITE/shm ! CAPS";

macro_rules! rtsp {
    () => {
        "rtspsrc location=URL latency=0 protocols=tcp ! rtpCODECdepay ! video/x-CODEC,stream-format=PACKED,alignment=au ! CODECparse ! "
    };
}

const DECODES: &str = concat!(rtsp!(), "avdec_CODEC");
const DECODES_ON_GPU: &str = concat!(rtsp!(), "nvCODECdec ! video/x-raw(memory:CUDAMemory)");
const DECODED: &str =
    concat!(rtsp!(), "avdec_CODEC ! cuframessink name=sink key=bench runtime-dir=SITE");
const DECODED_ON_GPU: &str = concat!(
    rtsp!(),
    "nvCODECdec ! video/x-raw(memory:CUDAMemory) ! ",
    "cuframessink name=sink key=bench runtime-dir=SITE"
);

pub const SYSTEMS: [System; 27] = [
    // The publisher's CPU time without a system. The systems add to it.
    made("alone", "fakesink name=sink sync=false", ""),
    made("cuframes", SINK, SRC),
    System { together: true, ..made("cuframes-together", SINK, SRC) },
    made("cuframes-spin", SINK, SPIN),
    made("cuframes-wait", WAITING_SINK, STRICT_SRC),
    made("unixfd", UNIXFD_SINK, UNIXFD_SRC),
    System { together: true, ..made("unixfd-together", UNIXFD_SINK, UNIXFD_SRC) },
    made("shm", SHM_SINK, SHM_SRC),
    System { together: true, ..made("shm-together", SHM_SINK, SHM_SRC) },
    uploaded("alone-cuda", "fakesink name=sink sync=false", ""),
    uploaded("cuframes-cuda", SINK, SRC),
    uploaded("cuframes-cuda-spin", SINK, SPIN),
    uploaded("cuframes-cuda-wait", WAITING_SINK, STRICT_SRC),
    uploaded(
        "cuframes-cuda-copy",
        SINK,
        "cuframessrc name=src key=bench io-mode=copy runtime-dir=SITE",
    ),
    uploaded(
        "cuframes-cuda-event",
        "cuframessink name=sink key=bench sync-mode=event runtime-dir=SITE",
        SRC,
    ),
    uploaded(
        "cuframes-cuda-host",
        "cuframessink name=sink key=bench sync-mode=host runtime-dir=SITE",
        SRC,
    ),
    uploaded(
        "cudaipc",
        "cudaipcsink name=sink sync=false ipc-mode=legacy address=SITE/cudaipc",
        "cudaipcsrc name=src io-mode=import address=SITE/cudaipc",
    ),
    uploaded(
        "cudaipc-copy",
        "cudaipcsink name=sink sync=false ipc-mode=legacy address=SITE/cudaipc",
        "cudaipcsrc name=src io-mode=copy address=SITE/cudaipc",
    ),
    uploaded(
        "cudaipc-mmap",
        "cudaipcsink name=sink sync=false ipc-mode=mmap address=SITE/cudaipc",
        "cudaipcsrc name=src io-mode=import address=SITE/cudaipc",
    ),
    // Without sharing, every subscriber has a connection and a decoder. The same camera shared, for
    // comparison.
    camera("decode", "", DECODES),
    System { together: true, ..camera("decode-all", "", DECODES) },
    camera("decode-shared", DECODED, SRC),
    System { together: true, ..camera("decode-together", DECODED, SRC) },
    camera("decode-nv", "", DECODES_ON_GPU),
    System { together: true, ..camera("decode-nv-all", "", DECODES_ON_GPU) },
    camera("decode-nv-shared", DECODED_ON_GPU, SRC),
    System { together: true, ..camera("decode-nv-together", DECODED_ON_GPU, SRC) },
];

impl System {
    pub fn find(name: &str) -> Option<&'static Self> {
        SYSTEMS.iter().find(|s| s.name == name)
    }

    /// Returns whether the system has a publisher.
    pub fn publishes(&self) -> bool {
        !self.sink.is_empty()
    }

    pub fn has_camera(&self) -> bool {
        self.source == Source::Camera
    }

    /// Returns whether a subscriber uses our elements.
    pub fn is_ours(&self) -> bool {
        self.subscriber.starts_with("cuframessrc")
    }

    /// Returns what the machine lacks for the system.
    pub fn missing(&self, codec: &str) -> Option<String> {
        let upload = if self.source == Source::Uploaded { UPLOAD } else { "" };
        let words = [upload, self.sink, self.subscriber];
        let elements =
            words.iter().flat_map(|p| p.split('!')).filter_map(|p| p.split_whitespace().next());
        // Words with a slash are caps.
        let mut missing = elements
            .filter(|w| !w.contains('/') && *w != "CAPS")
            .map(|w| w.replace("CODEC", codec))
            .filter(|w| gst::ElementFactory::find(w).is_none());
        if let Some(element) = missing.next() {
            return Some(format!("no {element}"));
        }
        let no_camera = self.has_camera() && testing::find("camera").is_none();
        no_camera.then(|| "the example 'camera' was not built".into())
    }
}
