#!/usr/bin/env bash
# Writes what is published under KEY to standard output, for a program that
# reads a pipe, such as ffmpeg or go2rtc's exec source.
#
#   stdout.sh --packets KEY             the packets as MPEG-TS, not decoded
#   stdout.sh KEY [WIDTHxHEIGHT [FPS]]  the frames as YUV4MPEG2 (ffmpeg -f yuv4mpegpipe)
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 1 "$@"
# GStreamer's own words must not get into the stream.
if [[ $1 == --packets ]]; then
    arguments 2 "$@"
    codec=$(codec cuframespacketsrc key="$2" connect-timeout=10000000000) || fail "$2 has no packets"
    exec 3>&1 gst-launch-1.0 -q -e cuframespacketsrc key="$2" ! "${codec}parse" config-interval=-1 \
        ! mpegtsmux ! fdsink fd=3 >&2
fi
size=${2-} fps=${3-}
[[ $size =~ ^([0-9]+x[0-9]+)?$ && $fps =~ ^[0-9]*$ ]] || { usage >&2; exit 2; }
caps="video/x-raw,format=I420${size:+,width=${size%x*},height=${size#*x}}${fps:+,framerate=$fps/1}"

# What the reader does not take in time is replaced by what is newer.
exec 3>&1 gst-launch-1.0 -q -e cuframessrc key="$1" ! video/x-raw ! queue leaky=downstream max-size-buffers=2 \
    ! videorate skip-to-first=true max-duplication-time=1000000000 ! "$(scaler host)" ! videoconvert ! "$caps" ! y4menc ! fdsink fd=3 >&2
