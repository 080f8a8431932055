// SPDX-License-Identifier: LGPL-2.1-or-later
//! Frames and packets for other programs: mosaics, HLS, pipes, RTSP.

use std::path::Path;

use testing::{ChildGroup, TestDir, built, until};

use crate::support::{camera, decode, published, watch};

#[test]
fn list_of_cameras_makes_mosaic() {
    let test = TestDir::slow("mosaic");
    let (_camera, url) = camera("--size 320x240 --fps 30 --gop 15");
    let list = test.path("list");
    std::fs::write(
        &list,
        format!("# two\ncam1 {url} --codec h264\n\ncam2 {url} --scaled 160x120\n"),
    )
    .unwrap();
    let publishers = ChildGroup::start(test.script("publish-many.sh").arg(&list));
    let keys = ["cam1", "cam2", "cam2.sub"];
    for watched in keys.map(|key| watch(&test, key, "newest")) {
        // The second client may join between two slices, so that its first frames may be incomplete.
        until(|| watched.numbers.lock().unwrap().iter().flatten().count() >= 5);
    }
    // A tile without a publisher is black.
    let mosaic = ["cam1", "cam2", "nobody", "cam1", "mosaic", "640x480"];
    let _mosaic = ChildGroup::start(test.script("mosaic.sh").args(mosaic));
    let picture = test.path("mosaic.raw");
    // Some frames later, all publishers have delivered.
    let take = format!(
        "cuframessrc key=mosaic num-buffers=50 ! video/x-raw,format=NV12,width=640,height=480 \
         ! multifilesink location={} max-files=1",
        picture.display()
    );
    ChildGroup::start(&mut test.launch(&take)).success();
    let luma = std::fs::read(&picture).unwrap();
    let bright = |x: usize, y: usize| {
        let lines = (y..y + 240).flat_map(|line| &luma[line * 640 + x..][..320]);
        lines.filter(|&&pixel| pixel > 60).count() > 320 * 240 / 4
    };
    let tiles = [(0, 0), (320, 0), (0, 240), (320, 240)].map(|(x, y)| bright(x, y));
    assert_eq!(tiles, [true, true, false, true]);

    drop(publishers);
    let live = || cuframes::keys(Some(&test.dir)).into_iter().any(|k| k.key != "mosaic");
    until(|| !live());
}

#[test]
fn browsers_and_pipes_get_packets() {
    let test = TestDir::slow("live");
    let _published = published(&test, "--size 320x240");
    let dir = test.path("hls");
    let _hls = ChildGroup::start(test.script("hls.sh").args(["cam1", dir.to_str().unwrap(), "1"]));
    let packets = test.path("packets.ts");
    let frames = test.path("frames.y4m");
    let into = |file: &Path| std::fs::File::create(file).unwrap();
    let stream = ChildGroup::start(
        test.script("stdout.sh").args(["--packets", "cam1"]).stdout(into(&packets)),
    );
    let raw = ChildGroup::start(
        test.script("stdout.sh").args(["cam1", "160x120", "10"]).stdout(into(&frames)),
    );

    let length = |file: &Path| file.metadata().map_or(0, |m| m.len());
    until(|| length(&packets) > 100_000 && length(&frames) > 200_000);
    until(|| dir.join("live.m3u8").exists());
    drop((stream, raw));
    for file in [packets, dir.join("00000.ts")] {
        let numbers = decode(&file);
        let numbers: Vec<u32> = numbers.into_iter().map(|n| n.expect("a whole frame")).collect();
        assert!(numbers.len() >= 15, "{}: {numbers:?}", file.display());
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    }
    let list = std::fs::read_to_string(dir.join("live.m3u8")).unwrap();
    assert!(list.starts_with("#EXTM3U") && list.contains("00000.ts"), "{list}");
    let raw = std::fs::read(frames).unwrap();
    assert!(raw.starts_with(b"YUV4MPEG2 ") && raw[..60].windows(9).any(|w| w == b"W160 H120"));
}

#[test]
fn packets_are_served_by_rtsp() {
    let test = TestDir::slow("restream");
    let _published = published(&test, "--size 320x240");
    let watched = watch(&test, "cam1", "newest");
    watched.more(1);
    let mut server = test.command(built("restream"));
    server.args(["--listen", "127.0.0.1:0", "cam1"]);
    let (_server, url) = ChildGroup::start_server(&mut server);
    let again = watch(&test, "cam2", "strict");
    let _publisher =
        ChildGroup::start(test.script("publish-rtsp.sh").args(["--codec", "h264", &url, "cam2"]));
    again.more(30);
    again.check();
}
