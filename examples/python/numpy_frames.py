#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the frames of a key as NumPy arrays in host memory.

usage: numpy_frames.py KEY [FRAMES]

Needs PyGObject and NumPy (Debian, Ubuntu: python3-gi python3-numpy
gir1.2-gst-plugins-base-1.0). The arrays are RGB. To avoid the conversion,
request the format of the publisher and reshape each of its planes. Frames in
GPU memory are downloaded.
"""

import sys

import gi
import numpy as np

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import Gst, GstApp, GstVideo  # noqa: E402, F401


def frames(key):
    """Yields the newest frame each time, as an array of height × width × 3 bytes."""
    Gst.init(None)
    # A queue of one buffer that drops the older one: a slow consumer still gets the newest frame.
    pipeline = Gst.parse_launch(
        f"cuframessrc key={key} ! video/x-raw ! videoconvert"
        " ! video/x-raw,format=RGB ! appsink name=out max-buffers=1 drop=true"
    )
    out = pipeline.get_by_name("out")
    pipeline.set_state(Gst.State.PLAYING)
    try:
        # pull-sample returns None at the end of the stream and after an error.
        while sample := out.emit("pull-sample"):
            yield to_array(sample)
        error = pipeline.get_bus().pop_filtered(Gst.MessageType.ERROR)
        if error:
            raise RuntimeError(error.parse_error()[0].message)
    finally:
        pipeline.set_state(Gst.State.NULL)


def to_array(sample):
    """Returns the pixels of an RGB frame. Its rows may be padded to the stride."""
    video = GstVideo.VideoInfo.new_from_caps(sample.get_caps())
    buffer = sample.get_buffer()
    meta = GstVideo.buffer_get_video_meta(buffer)
    stride = meta.stride[0] if meta else video.stride[0]
    # extract_dup copies the bytes, so the array stays valid after the buffer is released.
    pixels = np.frombuffer(buffer.extract_dup(0, buffer.get_size()), np.uint8)
    rows = np.lib.stride_tricks.as_strided(
        pixels, (video.height, video.width * 3), (stride, 1), writeable=False
    )
    return rows.reshape(video.height, video.width, 3)


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    count = int(sys.argv[2]) if len(sys.argv) == 3 else None
    for number, frame in enumerate(frames(sys.argv[1]), 1):
        red, green, blue = frame.mean(axis=(0, 1))
        print(f"frame {number}: {frame.shape}, mean {red:.0f} {green:.0f} {blue:.0f}", flush=True)
        if number == count:
            break


if __name__ == "__main__":
    main()
