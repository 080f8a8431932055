//! Encoded packets through the elements: what comes out is what went in, for every kind of track.

use std::sync::{Arc, Mutex};

use gst::prelude::*;
use pipeline::{Pipeline, Setup, until};

#[path = "support/pipeline.rs"]
mod pipeline;
#[path = "../examples/support/stamp.rs"]
mod stamp;

const SIZE: (usize, usize) = (320, 240);

/// Said in a failure by their number only.
#[derive(Clone, PartialEq)]
struct Bytes(Vec<u8>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// A buffer with all that is promised to cross.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    bytes: Bytes,
    pts: Option<i64>,
    dts: Option<i64>,
    duration: Option<gst::ClockTime>,
    delta: bool,
    caps: gst::Caps,
    references: Vec<(gst::Caps, gst::ClockTime, Option<gst::ClockTime>)>,
}

impl Seen {
    fn of(buffer: &gst::Buffer, pad: &gst::Pad) -> Self {
        let ns = |t: Option<gst::ClockTime>| t.map(|t| t.nseconds() as i64);
        Self {
            bytes: Bytes(buffer.map_readable().unwrap().to_vec()),
            pts: ns(buffer.pts()),
            dts: ns(buffer.dts()),
            duration: buffer.duration(),
            delta: buffer.flags().contains(gst::BufferFlags::DELTA_UNIT),
            caps: pad.current_caps().unwrap(),
            references: buffer
                .iter_meta::<gst::ReferenceTimestampMeta>()
                .map(|m| (m.reference().to_owned(), m.timestamp(), m.duration()))
                .collect(),
        }
    }

    /// With its times counted from a zero of one's own.
    fn since(&self, zero: i64) -> Self {
        let since = |t: Option<i64>| t.map(|t| t - zero);
        Self { pts: since(self.pts), dts: since(self.dts), ..self.clone() }
    }
}

fn zero(all: &[Seen]) -> i64 {
    let first = all.first().expect("there is a packet");
    first.dts.or(first.pts).unwrap_or(0)
}

/// The two streams are the same but for when their time begins, and for how exact it is, in ns.
#[track_caller]
fn same(sent: &[Seen], got: &[Seen], exact: i64) {
    let near = |a: Option<i64>, b: Option<i64>| match a.zip(b) {
        Some((a, b)) => (a - b).abs() < exact,
        None => a == b,
    };
    for (n, (sent_one, got_one)) in sent.iter().zip(got).enumerate() {
        let (sent_one, mut got_one) = (sent_one.since(zero(sent)), got_one.since(zero(got)));
        if near(sent_one.pts, got_one.pts) && near(sent_one.dts, got_one.dts) {
            (got_one.pts, got_one.dts) = (sent_one.pts, sent_one.dts);
        }
        assert!(sent_one == got_one, "packet {n}: {sent_one:?} became {got_one:?}");
    }
    assert_eq!(sent.len(), got.len());
}

fn take<T>(all: &Mutex<Vec<T>>) -> Vec<T> {
    std::mem::take(&mut all.lock().unwrap())
}

/// Plays a publisher when so many subscribers have joined it.
fn play_for(publisher: &Pipeline, subscribers: usize) {
    // Nothing is published before PLAYING.
    publisher.0.set_state(gst::State::Paused).unwrap();
    for _ in 0..subscribers {
        publisher.wait_for("cuframes-subscriber-added");
    }
    publisher.play();
}

fn picture(frames: u32) -> String {
    format!(
        "videotestsrc name=camera num-buffers={frames} pattern=ball \
         ! video/x-raw,format=I420,width={},height={},framerate=30/1",
        SIZE.0, SIZE.1
    )
}

/// As rtspsrc notes them with add-reference-timestamp-meta, and one more.
fn add_references(pipeline: &Pipeline, element: &str) {
    let pad = pipeline.get(element).static_pad("src").unwrap();
    let count = std::sync::atomic::AtomicU64::new(0);
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let time = |ns| gst::ClockTime::from_nseconds(ns);
        let buffer = info.buffer_mut().unwrap().make_mut();
        let clock = |name| gst::Caps::new_empty_simple(name);
        if [1, 2].contains(&(n % 3)) {
            let ntp = time(3_941_000_000_000_000_001 + n * 33_366_667);
            gst::ReferenceTimestampMeta::add(buffer, &clock("timestamp/x-ntp"), ntp, None);
        }
        if n % 3 == 2 {
            let caps = "timestamp/x-ptp,version=(string)IEEE1588-2008,domain=(int)1";
            let length = Some(time(n));
            gst::ReferenceTimestampMeta::add(buffer, &caps.parse().unwrap(), time(n), length);
        }
        gst::PadProbeReturn::Ok
    });
}

/// So many readers get what a tee beside the sink gets.
fn crosses(name: &str, source: &str, readers: usize) {
    let setup = Setup::new(&format!("cross-{name}-{readers}"));
    let publisher = setup.pipeline(&format!(
        "{source} ! identity name=made ! tee name=t \
         t. ! queue max-size-buffers=0 max-size-bytes=0 max-size-time=0 ! fakesink name=beside sync=false async=false \
         t. ! queue ! cuframessink name=pub key=a policy=wait packet-buffer-bytes=300000"
    ));
    add_references(&publisher, "made");
    let sent = publisher.collect("beside", "sink", Seen::of);
    let subscribers: Vec<_> = (0..readers)
        .map(|_| {
            let subscriber = setup.pipeline(
                "cuframespacketsrc name=src key=a mode=lossless start=oldest-keyframe \
                 ! fakesink name=out sync=false",
            );
            let got = subscriber.collect("out", "sink", Seen::of);
            subscriber.play();
            (subscriber, got)
        })
        .collect();
    play_for(&publisher, readers);
    publisher.wait_eos();
    let sent = take(&sent);
    assert!(sent.len() > 5 && !sent[0].delta && sent[0].references.is_empty());
    for (subscriber, got) in subscribers {
        subscriber.wait_eos();
        same(&sent, &take(&got), 1);
        assert_eq!(subscriber.stat("src", "lost"), 0);
    }
}

fn crosses_to_all(name: &str, source: &str) {
    for readers in [1, 4, 16] {
        crosses(name, source, readers);
    }
}

/// For codecs whose encoder is slow, or not everywhere.
fn crosses_if_there(name: &str, encoder: &str, source: &str) {
    gst::init().unwrap();
    match gst::ElementFactory::find(encoder) {
        Some(_) => crosses(name, source, 4),
        None => eprintln!("{name} is left out: there is no {encoder}"),
    }
}

#[test]
fn h264_crosses() {
    let encoded = format!("{} ! x264enc key-int-max=15 bframes=2 ! h264parse", picture(60));
    for format in ["byte-stream", "avc"] {
        let caps = format!("video/x-h264,stream-format={format},alignment=au");
        crosses_to_all(&format!("h264-{format}"), &format!("{encoded} ! {caps}"));
    }
}

#[test]
fn h265_crosses() {
    let encoded = format!("{} ! x265enc key-int-max=15 ! h265parse", picture(45));
    for format in ["byte-stream", "hvc1"] {
        let caps = format!("video/x-h265,stream-format={format},alignment=au");
        crosses(&format!("h265-{format}"), &format!("{encoded} ! {caps}"), 4);
    }
}

#[test]
fn av1_crosses() {
    let small = "videotestsrc num-buffers=12 ! video/x-raw,width=160,height=96,framerate=30/1";
    let source = format!(
        "{small} ! av1enc cpu-used=8 keyframe-max-dist=5 ! av1parse ! video/x-av1,alignment=tu"
    );
    crosses_if_there("av1", "av1enc", &source);
}

#[test]
fn vp8_and_vp9_cross() {
    for (name, encoder) in [("vp8", "vp8enc"), ("vp9", "vp9enc")] {
        let source =
            format!("{} ! {encoder} deadline=1 cpu-used=8 keyframe-max-dist=10", picture(30));
        crosses_if_there(name, encoder, &source);
    }
}

#[test]
fn jpeg_crosses() {
    crosses_to_all("jpeg", &format!("{} ! jpegenc", picture(30)));
}

#[test]
fn sound_crosses() {
    let tone = "audiotestsrc num-buffers=60 samplesperbuffer=320 ! audio/x-raw,rate=16000,channels=1 ! audioconvert";
    for (name, encoder, parser) in [
        ("aac", "avenc_aac", "! aacparse ! audio/mpeg,stream-format=raw"),
        ("adts", "avenc_aac", "! aacparse ! audio/mpeg,stream-format=adts"),
        ("opus", "opusenc", "! opusparse"),
        ("alaw", "alawenc", ""),
        ("mulaw", "mulawenc", ""),
    ] {
        let source = format!("{tone} ! {encoder} {parser}");
        crosses_if_there(name, encoder, &source);
    }
}

#[test]
fn metadata_crosses() {
    let bytes = "fakesrc num-buffers=200 sizetype=random sizemax=9000 filltype=pattern-span format=time datarate=90000";
    for (name, caps) in
        [("klv", "meta/x-klv,parsed=true"), ("onvif", "application/x-onvif-metadata")]
    {
        crosses_to_all(name, &format!("{bytes} ! capsfilter caps={caps}"));
    }
}

/// What an encoder makes of a short picture.
fn encoded(setup: &Setup, size: (u32, u32), encoder: &str, caps: &str) -> Vec<gst::Sample> {
    let pipeline = setup.pipeline(&format!(
        "videotestsrc num-buffers=20 ! video/x-raw,format=I420,width={},height={},framerate=30/1 \
         ! {encoder} ! {caps} ! appsink name=made sync=false",
        size.0, size.1
    ));
    pipeline.play();
    let made = pipeline.get("made").downcast::<gst_app::AppSink>().unwrap();
    std::iter::from_fn(|| made.pull_sample().ok()).collect()
}

/// A camera that is set to another size or codec: new caps and codec data arrive with their packet.
#[test]
fn format_and_codec_change_at_their_packet() {
    let setup = Setup::new("switch");
    let h264 = "x264enc key-int-max=8 bframes=1 ! h264parse";
    let h265 = "x265enc key-int-max=8 ! h265parse";
    let parts = [
        encoded(&setup, (320, 240), h264, "video/x-h264,stream-format=avc,alignment=au"),
        encoded(&setup, (160, 120), h264, "video/x-h264,stream-format=avc,alignment=au"),
        encoded(&setup, (160, 120), h265, "video/x-h265,stream-format=byte-stream,alignment=au"),
        encoded(&setup, (320, 240), h265, "video/x-h265,stream-format=byte-stream,alignment=au"),
        encoded(&setup, (320, 240), h265, "video/x-h265,stream-format=hvc1,alignment=au"),
        encoded(&setup, (320, 240), h264, "video/x-h264,stream-format=byte-stream,alignment=au"),
    ];
    let publisher =
        setup.pipeline("appsrc name=in format=time ! pub.packets_0 cuframessink name=pub key=a");
    let [early, late] = [0, 1].map(|_| {
        setup.pipeline(
            "cuframespacketsrc key=a start=oldest-keyframe ! fakesink name=out sync=false",
        )
    });
    let [early_got, late_got] = [&early, &late].map(|p| p.collect("out", "sink", Seen::of));
    early.play();
    play_for(&publisher, 1);
    let input = publisher.get("in").downcast::<gst_app::AppSrc>().unwrap();
    let mut sent = Vec::new();
    for (part, samples) in (0..).zip(&parts) {
        for sample in samples {
            let mut buffer = sample.buffer_owned().unwrap();
            let later = gst::ClockTime::from_seconds(2 * part);
            let moved = buffer.make_mut();
            moved.set_pts(moved.pts().map(|t| t + later));
            moved.set_dts(moved.dts().map(|t| t + later));
            sent.push((buffer.map_readable().unwrap().to_vec(), sample.caps_owned().unwrap()));
            input
                .push_sample(
                    &gst::Sample::builder().buffer(&buffer).caps(&sent.last().unwrap().1).build(),
                )
                .unwrap();
        }
    }
    input.end_of_stream().unwrap();
    publisher.wait_eos();
    late.play();
    for (subscriber, got) in [(early, early_got), (late, late_got)] {
        subscriber.wait_eos();
        let got: Vec<_> = take(&got).into_iter().map(|s| (s.bytes.0, s.caps)).collect();
        assert_eq!(got.len(), sent.len());
        for (n, (got, sent)) in got.iter().zip(&sent).enumerate() {
            assert!(got == sent, "packet {n}: {} became {}", sent.1, got.1);
        }
    }
}

/// What is in a file: the video's packets with their times, and the numbers in its frames.
fn recorded(setup: &Setup, file: &std::path::Path) -> (Vec<Seen>, Vec<Option<u32>>) {
    let pipeline = setup.pipeline(&format!(
        "filesrc location={} ! parsebin ! tee name=t t. ! queue ! fakesink name=packets sync=false async=false \
         t. ! queue ! decodebin ! videoconvert ! video/x-raw,format=I420 ! fakesink name=frames sync=false async=false",
        file.display()
    ));
    let packets = pipeline.collect("packets", "sink", Seen::of);
    let numbers = pipeline.collect("frames", "sink", |b, pad| {
        let info = gst_video::VideoInfo::from_caps(&pad.current_caps().unwrap()).unwrap();
        let map = b.map_readable().unwrap();
        let (width, height) = (info.width() as usize, info.height() as usize);
        stamp::read(&map, info.stride()[0] as usize, width, height)
    });
    pipeline.play();
    pipeline.wait_eos();
    (take(&packets), take(&numbers))
}

/// With B-frames, in both containers: the same file, packet by packet.
#[test]
fn a_recording_is_the_same_as_one_made_beside_a_tee() {
    for (muxer, exact) in [("mp4mux", 1), ("matroskamux", 1_000_001)] {
        let setup = Setup::new(&format!("tee-{muxer}"));
        let [beside, through] = ["beside", "through"].map(|name| setup.dir.join(name));
        let publisher = setup.pipeline(&format!(
            "{} ! x264enc bframes=2 key-int-max=20 ! h264parse ! video/x-h264,stream-format=avc,alignment=au \
             ! tee name=t t. ! queue ! {muxer} ! filesink async=false location={} \
             t. ! queue ! cuframessink key=a policy=wait",
            picture(90),
            beside.display()
        ));
        publisher.stamp("camera", SIZE);
        let recorder = setup.pipeline(&format!(
            "cuframespacketsrc name=src key=a mode=lossless ! h264parse ! {muxer} ! filesink location={}",
            through.display()
        ));
        recorder.play();
        play_for(&publisher, 1);
        publisher.wait_eos();
        recorder.wait_eos();
        drop((publisher, recorder));
        let (sent, sent_numbers) = recorded(&setup, &beside);
        let (got, got_numbers) = recorded(&setup, &through);
        // Matroska counts whole milliseconds of a running time that begins elsewhere.
        same(&sent, &got, exact);
        assert_eq!(sent_numbers, (1..=90).map(Some).collect::<Vec<_>>());
        assert_eq!(got_numbers, sent_numbers);
    }
}

/// A group of pictures of 10 s, and readers that come in its midst.
#[test]
fn late_readers_get_a_long_gop_from_its_keyframe_on() {
    let setup = Setup::new("long-gop");
    let publisher = setup.pipeline(&format!(
        "{} ! x264enc key-int-max=300 tune=zerolatency speed-preset=ultrafast ! h264parse \
         ! cuframessink name=pub key=a forward-eos=false",
        picture(590)
    ));
    publisher.play();
    publisher.wait_eos();
    let subscriber =
        setup.pipeline("cuframespacketsrc name=src key=a ! fakesink name=out sync=false");
    let got = subscriber.collect("out", "sink", |b, _| {
        (b.offset(), b.flags().contains(gst::BufferFlags::DELTA_UNIT))
    });
    subscriber.play();
    until(|| got.lock().unwrap().len() == 290);
    let expected: Vec<_> = (300..590).map(|n| (n, n != 300)).collect();
    assert_eq!(take(&got), expected);
}

/// The past, at its own distances, from the time 0 of a pipeline that is younger than it.
#[test]
fn a_recording_may_begin_in_the_past() {
    let setup = Setup::new("preroll");
    let publisher = setup.pipeline(&format!(
        "{} ! x264enc key-int-max=15 tune=zerolatency ! h264parse ! cuframessink key=a forward-eos=false",
        // Keyframes at 0, 15, 30 and 45.
        picture(50)
    ));
    publisher.play();
    publisher.wait_eos();
    for (properties, first) in [
        ("", 45),
        ("preroll-gops=1", 30),
        ("preroll-time=1000000000", 15),
        ("preroll-time=1000000000 preroll-gops=3", 0),
        ("preroll-time=3600000000000", 0),
    ] {
        let subscriber = setup.pipeline(&format!(
            "cuframespacketsrc key=a {properties} ! fakesink name=out sync=false"
        ));
        let got = subscriber.collect("out", "sink", |b, _| {
            (b.offset(), b.pts().unwrap(), b.flags().contains(gst::BufferFlags::DISCONT))
        });
        subscriber.play();
        until(|| got.lock().unwrap().len() as u64 == 50 - first);
        let got = take(&got);
        assert_eq!((got[0].0, got[0].2), (first, true), "{properties}");
        for pair in got.windows(2) {
            assert_eq!((pair[1].0, pair[1].2), (pair[0].0 + 1, false));
            let distance = pair[1].1 - pair[0].1;
            assert!((33_333_333..=33_333_334).contains(&distance.nseconds()), "{distance}");
        }
    }
}

/// Video and sound of one recorder: both delayed by the same, and begun with a picture.
#[test]
fn video_and_sound_stay_in_sync() {
    let setup = Setup::new("in-sync");
    let publisher = setup.pipeline(&format!(
        "cuframessink name=pub key=a \
         videotestsrc is-live=true ! video/x-raw,width={},height={},framerate=50/1 \
         ! x264enc key-int-max=25 tune=zerolatency ! h264parse ! identity name=video ! queue ! pub.packets_0 \
         audiotestsrc is-live=true samplesperbuffer=160 ! audio/x-raw,rate=8000,channels=1 \
         ! mulawenc ! identity name=sound ! queue ! pub.packets_1",
        SIZE.0, SIZE.1
    ));
    let times = |pipeline: &Pipeline, element: &str, pad: &str| {
        pipeline.collect(element, pad, |b, pad| {
            let base = pad.parent_element().unwrap().base_time().unwrap();
            let segment = pad.sticky_event::<gst::event::Segment>(0).unwrap();
            let segment = segment.segment().downcast_ref::<gst::ClockTime>().unwrap();
            let absolute = base + segment.to_running_time(b.pts()).unwrap();
            let absolute = absolute.nseconds() as i64;
            (b.offset(), absolute, b.flags().contains(gst::BufferFlags::DELTA_UNIT))
        })
    };
    let sent = [times(&publisher, "video", "src"), times(&publisher, "sound", "src")];
    publisher.play();
    // The recorder comes in the midst of a group of pictures.
    until(|| sent[0].lock().unwrap().len() > 60);
    for properties in ["", "preroll-time=500000000"] {
        let recorder = setup.pipeline(&format!(
            "cuframespacketsrc key=a track=1 ! fakesink name=s sync=false \
             cuframespacketsrc key=a track=0 {properties} ! fakesink name=v sync=false"
        ));
        let got = [times(&recorder, "v", "sink"), times(&recorder, "s", "sink")];
        recorder.play();
        until(|| got.iter().all(|g| g.lock().unwrap().len() > 80));
        drop(recorder);
        let got = got.map(|g| take(&g));
        let [video, sound] = [got[0][0], got[1][0]];
        assert!(!video.2, "the first picture is a keyframe");
        assert!((0..=20_000_000).contains(&(sound.1 - video.1)), "sound begins with it");
        // The offset is the number of the packet. All are later by the same than they were.
        let delay = |track: usize, (n, time, _): (u64, i64, bool)| {
            time - sent[track].lock().unwrap()[n as usize].1
        };
        let moved = delay(0, video);
        assert!(moved > 0, "{moved} {:?} {:?}", got[0][0], got[1][0]);
        for (track, packets) in got.iter().enumerate() {
            assert!(packets.iter().all(|packet| delay(track, *packet) == moved), "track {track}");
        }
    }
}

/// The source that the others begin with fails before it has begun: they go on without it.
#[test]
fn a_leader_that_fails_keeps_nobody_waiting() {
    let setup = Setup::new("leader");
    let publisher = || {
        let publisher = setup.pipeline(
            "cuframessink name=pub key=a audiotestsrc is-live=true samplesperbuffer=160 \
             ! audio/x-raw,rate=8000,channels=1 ! mulawenc ! pub.packets_1",
        );
        publisher.play();
        publisher
    };
    let first = publisher();
    let recorder = setup.pipeline(
        "cuframespacketsrc name=sound key=a track=1 ! fakesink name=s sync=false async=false \
         cuframespacketsrc name=video key=a track=0 on-lost=error ! fakesink async=false",
    );
    let sound = recorder.collect("s", "sink", |b, _| b.offset());
    recorder.play();
    // Both have joined, and wait: there is no video to begin with.
    let readers = || first.stats("pub").get::<gst::Array>("subscribers").unwrap().len();
    until(|| readers() == 2);
    drop(first);
    let failed = |m: &gst::MessageView<'_>| matches!(m, gst::MessageView::Error(_)).then_some(());
    recorder.message(failed);
    let second = publisher();
    until(|| !sound.lock().unwrap().is_empty());
    // The same where the application ends it.
    let recorder = setup.pipeline(
        "cuframespacketsrc name=sound key=a track=1 ! fakesink name=s sync=false async=false \
         cuframespacketsrc name=video key=a track=0 ! fakesink async=false",
    );
    let sound = recorder.collect("s", "sink", |b, _| b.offset());
    recorder.play();
    let readers = || second.stats("pub").get::<gst::Array>("subscribers").unwrap().len();
    until(|| readers() >= 3);
    recorder.get("video").send_event(gst::event::Eos::new());
    until(|| !sound.lock().unwrap().is_empty());
}

/// A recorder that comes when all is over gets the last group of pictures and the sound that belongs to it.
#[test]
fn tracks_that_have_ended_are_read_together() {
    let setup = Setup::new("ended");
    let publisher = setup.pipeline(&format!(
        "cuframessink name=pub key=a \
         {} ! x264enc key-int-max=10 tune=zerolatency ! h264parse ! pub.packets_0 \
         audiotestsrc num-buffers=50 samplesperbuffer=160 ! audio/x-raw,rate=8000,channels=1 \
         ! mulawenc ! pub.packets_1",
        picture(25)
    ));
    publisher.play();
    publisher.wait_eos();
    for _ in 0..20 {
        let recorder = setup.pipeline(
            "cuframespacketsrc key=a track=1 ! fakesink name=s sync=false \
             cuframespacketsrc key=a track=0 ! fakesink name=v sync=false",
        );
        let [video, sound] = ["v", "s"].map(|out| recorder.collect(out, "sink", |b, _| b.offset()));
        recorder.play();
        recorder.wait_eos();
        assert_eq!(take(&video), [20, 21, 22, 23, 24]);
        // 20 pictures of a thirtieth of a second are as long as 33.3 packets of a fiftieth.
        assert_eq!(take(&sound), (34..50).collect::<Vec<_>>());
    }
}

/// A reader that is held up while the ring wraps: it says exactly what it lost, and begins at a keyframe.
#[test]
fn a_loss_is_counted_and_told() {
    let setup = Setup::new("loss");
    let publisher = setup.pipeline(&format!(
        "videotestsrc is-live=true ! video/x-raw,width={},height={},framerate=200/1 \
         ! x264enc key-int-max=10 tune=zerolatency speed-preset=ultrafast ! h264parse \
         ! cuframessink name=pub key=a packet-buffer-bytes=65536",
        SIZE.0, SIZE.1
    ));
    let subscriber =
        setup.pipeline("cuframespacketsrc name=src key=a track=0 ! fakesink name=out sync=false");
    let got = subscriber.collect("out", "sink", |b, _| (b.offset(), b.flags()));
    let gate = subscriber.hold("out");
    publisher.play();
    subscriber.play();
    until(|| got.lock().unwrap().len() == 1);
    let track = |field: &str| {
        let tracks: gst::Array = publisher.stats("pub").get("tracks").unwrap();
        tracks[0].get::<gst::Structure>().unwrap().get::<u64>(field).unwrap()
    };
    // Until all that the reader could go on with is overwritten.
    let most = 65536 / 128;
    let held_at = track("published");
    until(|| track("published") > held_at + 2 * most);
    drop(gate);
    let told = subscriber.wait_for("cuframes-packets-lost");
    until(|| got.lock().unwrap().len() > 30);
    let got = take(&got);
    let gap = got.windows(2).find(|pair| pair[1].0 != pair[0].0 + 1).expect("there is a gap");
    let lost = gap[1].0 - gap[0].0 - 1;
    assert!(gap[1].1.contains(gst::BufferFlags::DISCONT));
    assert!(!gap[1].1.contains(gst::BufferFlags::DELTA_UNIT), "it goes on at a keyframe");
    assert_eq!(told.get::<u64>("lost").unwrap(), lost);
    assert_eq!((told.get::<&str>("key").unwrap(), told.get::<u32>("track").unwrap()), ("a", 0));
    assert!(subscriber.stat("src", "lost") >= lost);
}

/// A publisher that waits for a reader of packets pauses, plays and stops as one that does not.
#[test]
fn a_sink_that_waits_for_a_reader_can_be_paused_and_stopped() {
    let setup = Setup::new("waits");
    let publisher = setup.pipeline(&format!(
        "{} ! x264enc key-int-max=10 tune=zerolatency speed-preset=ultrafast ! h264parse \
         ! cuframessink name=pub key=a policy=wait wait-timeout=3600000000000 packet-buffer-bytes=65536",
        picture(1_000_000)
    ));
    let subscriber = setup
        .pipeline("cuframespacketsrc name=src key=a mode=lossless ! fakesink name=out sync=false");
    let got = subscriber.collect("out", "sink", |b, _| b.offset());
    let gate = subscriber.hold("out");
    subscriber.play();
    play_for(&publisher, 1);
    let published = || {
        let tracks: gst::Array = publisher.stats("pub").get("tracks").unwrap();
        let track = tracks.first().map(|t| t.get::<gst::Structure>().unwrap());
        track.map_or(0, |t| t.get::<u64>("published").unwrap())
    };
    let stands = || {
        let before = published();
        std::thread::sleep(std::time::Duration::from_millis(100));
        before > 0 && published() == before
    };
    until(stands);
    publisher.0.set_state(gst::State::Paused).unwrap();
    publisher.0.state(gst::ClockTime::NONE).0.unwrap();
    publisher.play();
    let before = published();
    drop(gate);
    until(|| published() > before + 500);
    let gate = subscriber.hold("out");
    until(stands);
    // Longer than the watchdog lives, if it had to wait for the reader.
    publisher.0.set_state(gst::State::Null).unwrap();
    drop(gate);
    subscriber.wait_for("cuframes-lost");
    let got = take(&got);
    let all: Vec<_> = (0..got.len() as u64).collect();
    assert_eq!(got, all, "nothing is lost");
    assert_eq!(subscriber.stat("src", "lost"), 0);
}

/// The next publisher's packets from its first keyframe on: nothing is missing but the gap.
#[test]
fn a_source_takes_all_of_the_next_publisher() {
    let setup = Setup::new("next-publisher");
    let subscriber =
        setup.pipeline("cuframespacketsrc name=src key=a ! fakesink name=out sync=false");
    let got = subscriber.collect("out", "sink", |b, _| (b.offset(), b.pts().unwrap(), b.flags()));
    subscriber.play();
    for round in 0..3 {
        let publisher = setup.pipeline(&format!(
            "{} ! x264enc key-int-max=10 tune=zerolatency speed-preset=ultrafast ! h264parse \
             ! cuframessink name=pub key=a forward-eos=false",
            picture(25)
        ));
        publisher.play();
        if round > 0 {
            subscriber.wait_for("cuframes-reconnected");
        }
        publisher.wait_eos();
        until(|| got.lock().unwrap().last().is_some_and(|g| g.0 == 24));
        drop(publisher);
        subscriber.wait_for("cuframes-lost");
        let got = take(&got);
        if round > 0 {
            assert_eq!(got.iter().map(|g| g.0).collect::<Vec<_>>(), (0..25).collect::<Vec<_>>());
        }
        assert!(got[0].2.contains(gst::BufferFlags::DISCONT));
        assert!(got.windows(2).all(|pair| pair[1].1 > pair[0].1));
    }
    assert_eq!(subscriber.stat("src", "lost"), 0);
}

/// Nobody reads on from what is said once: see the sink's `truncated-gops` and `oversized`.
#[test]
fn what_does_not_fit_is_said_once() {
    let setup = Setup::new("said-once");
    let publisher = setup.pipeline(
        "appsrc name=in format=time ! pub.packets_0 cuframessink name=pub key=a packet-buffer-bytes=65536",
    );
    let input = publisher.get("in").downcast::<gst_app::AppSrc>().unwrap();
    let caps = "video/x-h264,stream-format=byte-stream,alignment=au".parse::<gst::Caps>().unwrap();
    input.set_caps(Some(&caps));
    publisher.play();
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let push = |keyframe: bool, len: usize| {
        let mut buffer = gst::Buffer::from_mut_slice(vec![0; len]);
        if !keyframe {
            buffer.get_mut().unwrap().set_flags(gst::BufferFlags::DELTA_UNIT);
        }
        input.push_buffer(buffer).unwrap();
    };
    for _ in 0..3 {
        push(true, 100);
        push(false, 100_000);
        push(false, 100_000);
        push(false, 100);
        push(true, 30_000);
        for _ in 0..3 {
            push(false, 30_000);
        }
    }
    input.end_of_stream().unwrap();
    publisher.message(|m| {
        if let gst::MessageView::Warning(w) = m {
            warnings.lock().unwrap().push(w.error().message().to_owned());
        }
        matches!(m, gst::MessageView::Eos(_)).then_some(())
    });
    let warnings = take(&warnings);
    let about = |text: &str| warnings.iter().filter(|w| w.contains(text)).count();
    assert_eq!(
        (about("A packet of 100000 bytes"), about("A group of pictures")),
        (3, 1),
        "{warnings:?}"
    );
    let tracks: gst::Array = publisher.stats("pub").get("tracks").unwrap();
    let track = tracks[0].get::<gst::Structure>().unwrap();
    let count = |field: &str| track.get::<u64>(field).unwrap();
    assert_eq!((count("oversized"), count("broken-gops"), count("truncated-gops")), (3, 6, 3));
}

/// The packet that a buffer says it comes from.
fn packet_of(buffer: &gst::BufferRef) -> Option<(u32, u64)> {
    let meta = gst::meta::CustomMeta::from_buffer(buffer, "GstCuframesPacketMeta").ok()?;
    Some((meta.structure().get("track").unwrap(), meta.structure().get("seq").unwrap()))
}

/// Through a decoder that reorders, and a conversion that makes new buffers.
#[test]
fn frames_know_the_packets_that_they_come_from() {
    let setup = Setup::new("identity");
    let publisher = setup.pipeline(&format!(
        "{} ! x264enc bframes=3 key-int-max=15 ! h264parse name=parse ! tee name=t \
         t. ! pub.packets_0  t. ! queue ! avdec_h264 ! pub.sink \
         cuframessink name=pub key=a policy=wait",
        picture(60)
    ));
    add_references(&publisher, "parse");
    let subscriber = setup.pipeline(
        "cuframessrc key=a mode=strict ! videoconvert ! video/x-raw,format=RGB \
         ! fakesink name=x sync=false \
         cuframespacketsrc key=a mode=lossless ! fakesink name=y sync=false",
    );
    let look = |b: &gst::Buffer, pad: &gst::Pad| (packet_of(b), Seen::of(b, pad));
    let frames = subscriber.collect("x", "sink", look);
    let packets = subscriber.collect("y", "sink", look);
    subscriber.play();
    play_for(&publisher, 2);
    subscriber.wait_eos();

    let (frames, packets) = (take(&frames), take(&packets));
    assert_eq!((frames.len(), packets.len()), (60, 60));
    let mut apart = Vec::new();
    let mut order = Vec::new();
    for (packet, frame) in &frames {
        let (track, seq) = packet.expect("a frame has a packet");
        assert_eq!(track, 0);
        let (own, packet) = &packets[seq as usize];
        assert_eq!(*own, Some((track, seq)));
        assert_eq!(frame.references, packet.references);
        // The two sources may begin at different times.
        apart.push(frame.pts.unwrap() - packet.pts.unwrap());
        order.push(seq);
    }
    assert!(apart.iter().all(|ns| *ns == apart[0]), "{apart:?}");
    assert!(!order.is_sorted(), "without B-frames this shows nothing: {order:?}");
    assert_eq!(publisher.stat("pub", "unmatched-frames"), 0);
}
