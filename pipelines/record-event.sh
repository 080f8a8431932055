#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Records an event including the time before it: the packets of KEY from BEFORE
# seconds ago until AFTER seconds from now. The publisher keeps the packets of
# its packet-buffer-time, 10 s by default.
#
#   record-event.sh KEY FILE.mp4|FILE.mkv BEFORE AFTER
#
# The file starts at a keyframe, so up to one GOP and a second earlier. Example:
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
[[ $before =~ ^[0-9]+$ && $after =~ ^[1-9][0-9]*$ ]] || fail "$before and $after must be numbers of seconds"
SECONDS=0
codec=$(codec cuframespacketsrc key="$key" connect-timeout=10000000000) || fail "$key has no packets"

# Finding the codec took SECONDS, and starting the pipeline takes up to one more: go back further by both.
record "$after" cuframespacketsrc key="$key" preroll-time="$((before + SECONDS + 1))000000000" \
    ! "${codec}parse" ! "$muxer" ! filesink location="$file"
