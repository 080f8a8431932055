#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Writes the packets of KEY into DIR as HTTP Live Streaming, without decoding:
# DIR/live.m3u8 and the latest segments. Any web server can serve DIR, for
# example `python3 -m http.server -d DIR`.
#
#   hls.sh KEY DIR [SECONDS]
#
# A segment has SECONDS (default 2), rounded up to whole GOPs. Players start
# about three segments behind, so set the camera to send keyframes that often.
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
