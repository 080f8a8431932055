#!/usr/bin/env python3
"""From a detection back to the packet that its frame was decoded from.

usage: detection.py KEY [DETECTIONS]

Each frame says which packet it comes from, and the packets of the key are at
hand beside its frames: what was detected in a picture can be cut out of the
stream as it was sent. The detector here finds every thirtieth frame
remarkable. Needs PyGObject (Debian, Ubuntu: python3-gi
gir1.2-gst-plugins-base-1.0).
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
from gi.repository import Gst, GstApp  # noqa: E402, F401

# Packets that are kept: at 30 a second, those of 20 s.
KEPT = 600


def packet_of(buffer):
    """Track and sequence number of the packet that a frame was decoded from, or that a packet is."""
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
        while packet := packets.emit("try-pull-sample", 0):
            recent[packet_of(packet.get_buffer())] = packet
            if len(recent) > KEPT:
                recent.pop(next(iter(recent)))
        # One that was published before this program came is not there.
        packet = recent.get(packet_of(sample.get_buffer()))
        if number % 30 == 0 and packet:
            buffer = packet.get_buffer()
            kind = "packet" if buffer.has_flags(Gst.BufferFlags.DELTA_UNIT) else "keyframe"
            track, seq = packet_of(buffer)
            print(f"frame {number} comes from {kind} {seq} of track {track}: {buffer.get_size()} bytes", flush=True)
            left -= 1
    pipeline.set_state(Gst.State.NULL)


if __name__ == "__main__":
    main()
