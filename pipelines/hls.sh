#!/usr/bin/env bash
# Writes the packets that are published under KEY into DIR as HTTP Live
# Streaming, without decoding: DIR/live.m3u8 and the last segments. Any web
# server serves it; so does `python3 -m http.server -d DIR`.
#
#   hls.sh KEY DIR [SECONDS]
#
# A segment has SECONDS (2), but whole groups of pictures: viewers are some
# three segments late, so the camera should send a keyframe that often.
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 2 "$@"
key=$1 dir=$2 seconds=${3:-2}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || fail "$seconds is not a number of seconds"
mkdir -p "$dir"
codec=$(codec cuframespacketsrc key="$key" connect-timeout=10000000000) || fail "$key has no packets"

exec gst-launch-1.0 -q -e cuframespacketsrc key="$key" ! "${codec}parse" ! queue \
    ! hlssink2 target-duration="$seconds" playlist-length=5 max-files=8 \
    location="$dir/%05d.ts" playlist-location="$dir/live.m3u8"
