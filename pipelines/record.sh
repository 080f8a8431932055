#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Records the packets of KEY unchanged, without decoding or encoding. Starts at
# the latest keyframe. Ends after SECONDS, on Ctrl-C, or at the end of the
# stream; the file is complete in each case.
#
#   record.sh [--sound] KEY FILE.mp4|FILE.mkv [SECONDS]
#
# With --sound it also records the audio of track 1: AAC or Opus, and G.711 in
# FILE.mkv.
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 2 "$@"
audio=()
if [[ $1 == --sound ]]; then arguments 3 "$@" && audio=(1) && shift; fi
key=$1 file=$2 seconds=${3:-0}
case $file in
    *.mp4) muxer=mp4mux ;;
    *.mkv) muxer=matroskamux ;;
    *) fail "$file: the name must end in .mp4 or .mkv" ;;
esac
[[ $seconds =~ ^[0-9]+$ ]] || fail "$seconds is not a number of seconds"
codec=$(codec cuframespacketsrc key="$key" connect-timeout=10000000000) || fail "$key has no packets"
if ((${#audio[@]})); then
    source=(cuframespacketsrc key="$key" track=1)
    case $(caps "${source[@]}") in
        audio/mpeg*) audio=("${source[@]}" ! aacparse) ;;
        audio/x-opus*) audio=("${source[@]}" ! opusparse) ;;
        audio/x-*law*) [[ $muxer == matroskamux ]] || fail "G.711 audio needs a FILE.mkv"; audio=("${source[@]}") ;;
        *) fail "$key has no audio" ;;
    esac
    audio+=("!" queue "!" muxer.audio_0)
fi

record "$seconds" cuframespacketsrc key="$key" \
    ! "${codec}parse" ! queue ! "$muxer" name=muxer ! filesink location="$file" "${audio[@]}"
