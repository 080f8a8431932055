#!/usr/bin/env bash
# Records an event from its past on: the packets that are published under KEY,
# from BEFORE seconds ago until AFTER seconds from now. How much of the past
# there is depends on packet-buffer-time of the publisher, 10 s by default.
#
#   record-event.sh KEY FILE.mp4|FILE.mkv BEFORE AFTER
#
# Starts at a keyframe, so up to one group of pictures and a second earlier. For example:
#   until is-door-open; do sleep 0.1; done; record-event.sh cam1 door.mp4 5 10
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 4 "$@"
key=$1 file=$2 before=$3 after=$4
case $file in
    *.mp4) muxer=mp4mux ;;
    *.mkv) muxer=matroskamux ;;
    *) fail "$file: the name must end in .mp4 or .mkv" ;;
esac
[[ $before =~ ^[0-9]+$ && $after =~ ^[1-9][0-9]*$ ]] || fail "$before and $after have to be numbers of seconds"
SECONDS=0
codec=$(codec cuframespacketsrc key="$key" connect-timeout=10000000000) || fail "$key has no packets"

# What finding out the codec took is past by now, and what the start takes will be.
record "$after" cuframespacketsrc key="$key" preroll-time="$((before + SECONDS + 1))000000000" \
    ! "${codec}parse" ! "$muxer" ! filesink location="$file"
