#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Publishes a test pattern under KEY, in real time. It is drawn directly in
# shared memory, so publishing copies no frame.
#
#   publish-test.sh [--packets] KEY [WIDTHxHEIGHT] [FPS]
#
# With --packets the pattern is also encoded and published as H.264 packets.
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 1 "$@"
packets=''
if [[ $1 == --packets ]]; then packets=yes && shift; fi
arguments 1 "$@"
key=$1 size=${2:-1280x720} fps=${3:-30}
[[ $size =~ ^[0-9]+x[0-9]+$ && $fps =~ ^[0-9]+$ ]] || { usage >&2; exit 2; }

pattern=(
    videotestsrc is-live=true horizontal-speed=4
    ! "video/x-raw,format=NV12,width=${size%x*},height=${size#*x},framerate=$fps/1"
)
if [[ $packets ]]; then
    exec gst-launch-1.0 -q "${pattern[@]}" ! tee name=pattern \
        pattern. ! queue ! cuframessink name=publisher key="$key" \
        pattern. ! queue ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max="$fps" \
        ! h264parse config-interval=-1 ! video/x-h264,stream-format=byte-stream,alignment=au \
        ! publisher.packets_0
fi
exec gst-launch-1.0 -q "${pattern[@]}" ! cuframessink key="$key"
