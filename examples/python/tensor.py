#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the frames of a key as GPU tensors, without a copy.

usage: tensor.py KEY [FRAMES] [torch|cupy]

A tensor wraps the address of the publisher's memory, which is mapped read-only into this process. The Python
bindings of GStreamer do not expose addresses in GPU memory, so this program calls the C library through ctypes
and needs no PyGObject. Prints the mean of the luma plane of each frame.
"""

import ctypes as c
import sys

gst = c.CDLL("libgstreamer-1.0.so.0")
app = c.CDLL("libgstapp-1.0.so.0")
video = c.CDLL("libgstvideo-1.0.so.0")


class MapInfo(c.Structure):
    _fields_ = [
        ("memory", c.c_void_p),
        ("flags", c.c_int),
        ("data", c.c_void_p),
        ("size", c.c_size_t),
        ("maxsize", c.c_size_t),
        ("user_data", c.c_void_p * 4),
        ("reserved", c.c_void_p * 4),
    ]


class VideoMeta(c.Structure):
    """The first fields of a GstVideoMeta."""

    _fields_ = [
        ("meta", c.c_void_p * 2),
        ("buffer", c.c_void_p),
        ("flags", c.c_int),
        ("format", c.c_int),
        ("id", c.c_int),
        ("width", c.c_uint),
        ("height", c.c_uint),
        ("n_planes", c.c_uint),
        ("offset", c.c_size_t * 4),
        ("stride", c.c_int * 4),
    ]


for lib, name, result, *arguments in (
    (gst, "gst_parse_launch", c.c_void_p, c.c_char_p, c.POINTER(c.c_void_p)),
    (gst, "gst_bin_get_by_name", c.c_void_p, c.c_void_p, c.c_char_p),
    (gst, "gst_element_set_state", c.c_int, c.c_void_p, c.c_int),
    (app, "gst_app_sink_pull_sample", c.c_void_p, c.c_void_p),
    (gst, "gst_sample_get_buffer", c.c_void_p, c.c_void_p),
    (video, "gst_buffer_get_video_meta", c.POINTER(VideoMeta), c.c_void_p),
    (gst, "gst_buffer_peek_memory", c.c_void_p, c.c_void_p, c.c_uint),
    (gst, "gst_memory_map", c.c_int, c.c_void_p, c.c_void_p, c.c_int),
    (gst, "gst_memory_unmap", None, c.c_void_p, c.c_void_p),
    (gst, "gst_mini_object_unref", None, c.c_void_p),
):
    function = getattr(lib, name)
    function.restype, function.argtypes = result, arguments

PLAYING, NULL = 4, 1
# GST_MAP_READ | GST_MAP_CUDA: maps to the address on the GPU, without a download.
MAP_CUDA = 1 | 1 << 17


class Plane:
    """The luma plane, for any library that supports the CUDA array interface. Read-only, and valid as long as the
    frame."""

    def __init__(self, address, width, height, stride):
        self.__cuda_array_interface__ = {
            # False: writable. The driver rejects writes, but PyTorch refuses arrays that are marked read-only.
            "data": (address, False),
            "shape": (height, width),
            "strides": (stride, 1),
            "typestr": "|u1",
            "version": 3,
            # The frame is complete on arrival, so there is no stream to synchronize with.
            "stream": None,
        }


def frames(key):
    """Yields a Plane for each frame. Finish all work on it before requesting the next one."""
    gst.gst_init(None, None)
    text = f"cuframessrc key={key} ! video/x-raw(memory:CUDAMemory),format=NV12 ! appsink name=out sync=false max-buffers=1 drop=true"
    pipeline = gst.gst_parse_launch(text.encode(), None)
    if not pipeline:
        sys.exit("the pipeline can't be created: install cuframes and GStreamer 1.24 or later")
    out = gst.gst_bin_get_by_name(pipeline, b"out")
    gst.gst_element_set_state(pipeline, PLAYING)
    try:
        while sample := app.gst_app_sink_pull_sample(out):
            buffer = gst.gst_sample_get_buffer(sample)
            meta = video.gst_buffer_get_video_meta(buffer).contents
            memory = gst.gst_buffer_peek_memory(buffer, 0)
            info = MapInfo()
            if not gst.gst_memory_map(memory, c.byref(info), MAP_CUDA):
                sys.exit("the frame can't be mapped")
            yield Plane(info.data + meta.offset[0], meta.width, meta.height, meta.stride[0])
            gst.gst_memory_unmap(memory, c.byref(info))
            gst.gst_mini_object_unref(sample)
    finally:
        gst.gst_element_set_state(pipeline, NULL)


def main():
    key = sys.argv[1]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 30
    library = sys.argv[3] if len(sys.argv) > 3 else "torch"
    for number, plane in zip(range(count), frames(key)):
        if library == "torch":
            import torch

            tensor = torch.as_tensor(plane, device="cuda")
            same = tensor.data_ptr() == plane.__cuda_array_interface__["data"][0]
            mean = tensor.float().mean().item()
        else:
            import cupy

            array = cupy.asarray(plane)
            same = array.data.ptr == plane.__cuda_array_interface__["data"][0]
            mean = float(array.mean())
        # The result is on the host, so the GPU has finished reading the frame.
        print(f"{number} {plane.__cuda_array_interface__['shape']} mean {mean:.3f} {'no copy' if same else 'COPIED'}")


if __name__ == "__main__":
    main()
