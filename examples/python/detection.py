#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds the packet that a frame with a detection was decoded from.

usage: detection.py KEY [DETECTIONS]

Each frame carries the track and the sequence number of its packet, and the
packets of a key are available beside its frames. A program can therefore cut a
detection out of the stream without encoding it again. The detector of this
example reports every 30th frame. Needs PyGObject (Debian, Ubuntu: python3-gi
gir1.2-gst-plugins-base-1.0).
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
from gi.repository import Gst, GstApp  # noqa: E402, F401

# Number of packets to keep: 20 s at 30 packets per second.
MAX_PACKETS = 600


def packet_id(buffer):
    """Returns track and sequence number of a packet, or of the packet that a frame was decoded from."""
    meta = buffer.get_custom_meta("GstCuframesPacketMeta")
    if meta is None:
        return None
    structure = meta.get_structure()
    return structure.get_uint("track").value, structure.get_uint64("seq").value


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    key, left = sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else -1
    Gst.init(None)
    pipeline = Gst.parse_launch(
        f"cuframessrc key={key} mode=strict ! appsink name=frames sync=false"
        f" cuframespacketsrc key={key} ! appsink name=packets sync=false"
    )
    frames, packets = pipeline.get_by_name("frames"), pipeline.get_by_name("packets")
    pipeline.set_state(Gst.State.PLAYING)
    recent = {}
    number = 0
    while left and (sample := frames.emit("pull-sample")):
        number += 1
        # Usually a packet arrives before the frame that was decoded from it.
        while packet := packets.emit("try-pull-sample", 0):
            recent[packet_id(packet.get_buffer())] = packet
            if len(recent) > MAX_PACKETS:
                recent.pop(next(iter(recent)))
        # None for a packet from before the start of this program.
        packet = recent.get(packet_id(sample.get_buffer()))
        if number % 30 == 0 and packet:
            buffer = packet.get_buffer()
            kind = "packet" if buffer.has_flags(Gst.BufferFlags.DELTA_UNIT) else "keyframe"
            track, seq = packet_id(buffer)
            print(f"frame {number} comes from {kind} {seq} of track {track}: {buffer.get_size()} bytes", flush=True)
            left -= 1
    pipeline.set_state(Gst.State.NULL)


if __name__ == "__main__":
    main()
