#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Writes the frames or packets of KEY to standard output, for a program that
# reads a pipe, such as ffmpeg or the exec source of go2rtc.
#
#   stdout.sh --packets KEY             the packets as MPEG-TS, without decoding
#   stdout.sh KEY [WIDTHxHEIGHT [FPS]]  the frames as YUV4MPEG2 (ffmpeg -f yuv4mpegpipe)
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 1 "$@"
# The stream is written to a copy of standard output, and messages of GStreamer go to standard error.
if [[ $1 == --packets ]]; then
    arguments 2 "$@"
    codec=$(codec cuframespacketsrc key="$2" connect-timeout=10000000000) || fail "$2 has no packets"
    exec 3>&1 gst-launch-1.0 -q -e cuframespacketsrc key="$2" ! "${codec}parse" config-interval=-1 \
        ! mpegtsmux ! fdsink fd=3 >&2
fi
size=${2-} fps=${3-}
[[ $size =~ ^([0-9]+x[0-9]+)?$ && $fps =~ ^[0-9]*$ ]] || { usage >&2; exit 2; }
caps="video/x-raw,format=I420${size:+,width=${size%x*},height=${size#*x}}${fps:+,framerate=$fps/1}"

# The leaky queue replaces frames that the reader does not read in time by newer ones.
exec 3>&1 gst-launch-1.0 -q -e cuframessrc key="$1" ! video/x-raw ! queue leaky=downstream max-size-buffers=2 \
    ! videorate skip-to-first=true max-duplication-time=1000000000 ! "$(scaler host)" ! videoconvert ! "$caps" ! y4menc ! fdsink fd=3 >&2
