// SPDX-License-Identifier: LGPL-2.1-or-later
//! Packets of each codec arrive as they were published.

use gst::prelude::*;
use testing::TestDir;
use testing_gst::TestPipelineExt;

use super::{Seen, add_references, picture, play_for, same, take};
use crate::{HEIGHT, WIDTH};

/// Checks that so many readers get the same packets as a tee beside the sink.
fn crosses(name: &str, source: &str, readers: usize) {
    let test = TestDir::new(&format!("cross-{name}-{readers}"));
    let publisher = test.pipeline(&format!(
        "{source} ! identity name=made ! tee name=t \
         t. ! queue max-size-buffers=0 max-size-bytes=0 max-size-time=0 ! fakesink name=beside sync=false async=false \
         t. ! queue ! cuframessink name=pub key=a policy=wait packet-buffer-bytes=300000"
    ));
    add_references(&publisher, "made");
    let sent = publisher.collect("beside", "sink", Seen::of);
    let subscribers: Vec<_> = (0..readers)
        .map(|_| {
            let subscriber = test.pipeline(
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

/// As [`crosses`], for codecs whose encoder is slow or not always installed.
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

/// Encodes a short test picture.
fn encoded(test: &TestDir, size: (u32, u32), encoder: &str, caps: &str) -> Vec<gst::Sample> {
    let pipeline = test.pipeline(&format!(
        "videotestsrc num-buffers=20 ! video/x-raw,format=I420,width={},height={},framerate=30/1 \
         ! {encoder} ! {caps} ! appsink name=made sync=false",
        size.0, size.1
    ));
    pipeline.play();
    let made = pipeline.get("made").downcast::<gst_app::AppSink>().unwrap();
    std::iter::from_fn(|| made.pull_sample().ok()).collect()
}

/// A camera changes size or codec. New caps and codec data arrive with their packet.
#[test]
fn format_and_codec_change_at_their_packet() {
    let test = TestDir::new("switch");
    let h264 = "x264enc key-int-max=8 bframes=1 ! h264parse";
    let h265 = "x265enc key-int-max=8 ! h265parse";
    let parts = [
        encoded(&test, (320, 240), h264, "video/x-h264,stream-format=avc,alignment=au"),
        encoded(&test, (160, 120), h264, "video/x-h264,stream-format=avc,alignment=au"),
        encoded(&test, (160, 120), h265, "video/x-h265,stream-format=byte-stream,alignment=au"),
        encoded(&test, (320, 240), h265, "video/x-h265,stream-format=byte-stream,alignment=au"),
        encoded(&test, (320, 240), h265, "video/x-h265,stream-format=hvc1,alignment=au"),
        encoded(&test, (320, 240), h264, "video/x-h264,stream-format=byte-stream,alignment=au"),
    ];
    let publisher =
        test.pipeline("appsrc name=in format=time ! pub.packets_0 cuframessink name=pub key=a");
    let [early, late] = [0, 1].map(|_| {
        test.pipeline(
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

/// Packets arrive byte for byte as the parser produced them, with caps, times and flags.
#[test]
fn packets_cross_byte_for_byte() {
    for (codec, encoder, parser, format) in [
        ("video/x-h264", "x264enc key-int-max=10 bframes=2", "h264parse", "byte-stream"),
        ("video/x-h264", "x264enc key-int-max=10 bframes=2", "h264parse", "avc"),
        ("video/x-h265", "x265enc key-int-max=10", "h265parse", "byte-stream"),
        ("video/x-h265", "x265enc key-int-max=10", "h265parse", "hvc1"),
    ] {
        let test = TestDir::new("packets");
        let publisher = test.pipeline(&format!(
            "videotestsrc name=camera num-buffers=60 pattern=ball \
             ! video/x-raw,format=I420,width={WIDTH},height={HEIGHT},framerate=30/1 \
             ! {encoder} ! {parser} name=parser ! {codec},stream-format={format},alignment=au \
             ! cuframessink name=pub key=a"
        ));
        let subscriber = test.pipeline(
            "cuframespacketsrc name=src key=a start=oldest-keyframe ! fakesink name=out sync=false",
        );
        let of = |b: &gst::Buffer, pad: &gst::Pad| {
            let delta = b.flags().contains(gst::BufferFlags::DELTA_UNIT);
            let bytes = b.map_readable().unwrap().to_vec();
            (bytes, b.pts(), b.dts(), b.duration(), delta, pad.current_caps().unwrap())
        };
        let sent = publisher.collect("parser", "src", of);
        let got = subscriber.collect("out", "sink", of);
        publisher.play();
        publisher.wait_eos();
        // The publisher still keeps all packets.
        subscriber.play();
        subscriber.wait_eos();
        let (sent, got) = (sent.lock().unwrap(), got.lock().unwrap());
        assert_eq!(sent.len(), 60);
        assert_eq!(got.len(), sent.len());
        assert!(!got[0].4, "the first is a keyframe");
        let ns = |t: Option<gst::ClockTime>| t.map(|t| t.nseconds() as i64);
        let distance = |a: Option<_>, b: Option<_>| Some(ns(a)? - ns(b)?);
        for (s, g) in sent.iter().zip(got.iter()) {
            assert_eq!(s.0, g.0);
            assert_eq!((s.3, s.4), (g.3, g.4));
            assert!(g.5.can_intersect(&s.5) && g.5 == s.5);
            assert_eq!(distance(g.1, s.1), distance(got[0].1, sent[0].1));
            assert_eq!(distance(g.2, s.2), distance(got[0].2, sent[0].2));
        }
    }
}

#[test]
fn late_reader_begins_at_last_keyframe() {
    let test = TestDir::new("late");
    let publisher = test.pipeline(&format!(
        "videotestsrc name=camera num-buffers=25 \
         ! video/x-raw,format=I420,width={WIDTH},height={HEIGHT},framerate=30/1 \
         ! x264enc key-int-max=10 tune=zerolatency ! h264parse ! cuframessink name=pub key=a"
    ));
    publisher.play();
    publisher.wait_eos();
    let subscriber = test.pipeline("cuframespacketsrc key=a ! fakesink name=out sync=false");
    let got = subscriber.collect("out", "sink", |b, _| {
        (b.offset(), b.flags().contains(gst::BufferFlags::DELTA_UNIT))
    });
    subscriber.play();
    subscriber.wait_eos();
    let got = got.lock().unwrap();
    assert_eq!(got.first(), Some(&(20, false)));
    assert_eq!(got.last(), Some(&(24, true)));
}
