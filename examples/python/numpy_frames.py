#!/usr/bin/env python3
"""The frames of a key as NumPy arrays, on the host.

usage: numpy_frames.py KEY [FRAMES]

Needs PyGObject and NumPy (Debian, Ubuntu: python3-gi python3-numpy
gir1.2-gst-plugins-base-1.0). The arrays are RGB: without the conversion, ask
for the publisher's own format and reshape by its planes. Frames on a GPU are
downloaded.
"""

import sys

import gi
import numpy as np

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import Gst, GstApp, GstVideo  # noqa: E402, F401


def frames(key):
    """Yields the newest frame each time, as an array of height × width × 3."""
    Gst.init(None)
    # One buffer waits at most: who is slow gets the newest one all the same.
    pipeline = Gst.parse_launch(
        f"cuframessrc key={key} ! video/x-raw ! videoconvert"
        " ! video/x-raw,format=RGB ! appsink name=out max-buffers=1 drop=true"
    )
    out = pipeline.get_by_name("out")
    pipeline.set_state(Gst.State.PLAYING)
    try:
        # None at the end of the stream, or after an error.
        while sample := out.emit("pull-sample"):
            yield array(sample)
        failed = pipeline.get_bus().pop_filtered(Gst.MessageType.ERROR)
        if failed:
            raise RuntimeError(failed.parse_error()[0].message)
    finally:
        pipeline.set_state(Gst.State.NULL)


def array(sample):
    """The pixels of a sample of RGB frames; rows may be longer than the picture is wide."""
    video = GstVideo.VideoInfo.new_from_caps(sample.get_caps())
    buffer = sample.get_buffer()
    meta = GstVideo.buffer_get_video_meta(buffer)
    stride = meta.stride[0] if meta else video.stride[0]
    # PyGObject copies the bytes, so they stay when the buffer goes.
    pixels = np.frombuffer(buffer.extract_dup(0, buffer.get_size()), np.uint8)
    rows = np.lib.stride_tricks.as_strided(
        pixels, (video.height, video.width * 3), (stride, 1), writeable=False
    )
    return rows.reshape(video.height, video.width, 3)


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    wanted = int(sys.argv[2]) if len(sys.argv) == 3 else None
    for number, frame in enumerate(frames(sys.argv[1]), 1):
        red, green, blue = frame.mean(axis=(0, 1))
        print(f"frame {number}: {frame.shape}, mean {red:.0f} {green:.0f} {blue:.0f}", flush=True)
        if number == wanted:
            break


if __name__ == "__main__":
    main()
