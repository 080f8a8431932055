#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Serves the frames of KEY over TCP as small raw video, for programs that read it
# from a socket, such as ffmpeg and therefore Frigate:
#
#   serve-frames.sh [--listen ADDRESS] KEY PORT WIDTHxHEIGHT FPS
#
#   ffmpeg -f rawvideo -pixel_format yuv420p -video_size WIDTHxHEIGHT -framerate FPS -i tcp://HOST:PORT …
#
# Any number of clients may connect and disconnect. A client that does not read
# a frame in time misses it. Listens on 127.0.0.1, or on ADDRESS (0.0.0.0: all).
# There is no authentication: every client that can connect can watch.
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 4 "$@"
address=127.0.0.1
if [[ $1 == --listen ]]; then arguments 6 "$@" && address=$2 && shift 2; fi
key=$1 port=$2 size=$3 fps=$4
[[ $port =~ ^[0-9]+$ && $size =~ ^[0-9]+x[0-9]+$ && $fps =~ ^[1-9][0-9]*$ ]] || { usage >&2; exit 2; }
width=${size%x*} height=${size#*x}
# GStreamer pads the rows of other widths, and raw video can't describe the padding.
((10#$width % 8 == 0 && 10#$height % 2 == 0)) || fail "$size: the width must be a multiple of 8 and the height even"

# Clients derive the time from the number of frames, so videorate repeats frames of a slower camera, for gaps of up
# to a second. Each buffer is one frame: tcpserversink starts and resumes a client at the start of a frame.
exec gst-launch-1.0 -q cuframessrc key="$key" ! video/x-raw ! queue leaky=downstream max-size-buffers=2 \
    ! videorate skip-to-first=true max-duplication-time=1000000000 ! "$(scaler host)" ! videoconvert \
    ! "video/x-raw,format=I420,width=$width,height=$height,framerate=$fps/1,pixel-aspect-ratio=1/1" \
    ! tcpserversink host="$address" port="$port" sync=false sync-method=latest \
    recover-policy=latest units-soft-max=2
