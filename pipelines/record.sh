#!/usr/bin/env bash
# Records the packets that are published under KEY as they are: no decoding, no
# encoding. Starts at the latest keyframe; ends after SECONDS, on Ctrl-C, or
# when the stream ends, and the file is playable each time.
#
#   record.sh KEY FILE.mp4|FILE.mkv [SECONDS]
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 2 "$@"
key=$1 file=$2 seconds=${3:-0}
case $file in
    *.mp4) muxer=mp4mux ;;
    *.mkv) muxer=matroskamux ;;
    *) fail "$file: the name must end in .mp4 or .mkv" ;;
esac
[[ $seconds =~ ^[0-9]+$ ]] || fail "$seconds is not a number of seconds"
codec=$(codec cuframespacketsrc key="$key" connect-timeout=10000000000) || fail "$key has no packets"

# With -e an interrupt ends the stream, so that the muxer completes the file.
exec timeout --foreground --preserve-status --signal=INT "$seconds" \
    gst-launch-1.0 -q -e cuframespacketsrc key="$key" \
    ! "${codec}parse" ! "$muxer" ! filesink location="$file"
