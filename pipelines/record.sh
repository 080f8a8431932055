#!/usr/bin/env bash
# Records the packets that are published under KEY as they are: no decoding, no
# encoding. Starts at the latest keyframe; ends after SECONDS, on Ctrl-C, or
# when the stream ends, and the file is playable each time.
#
#   record.sh [--sound] KEY FILE.mp4|FILE.mkv [SECONDS]
#
# With --sound it records track 1, too: AAC or Opus, in FILE.mkv also G.711.
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 2 "$@"
sound=()
if [[ $1 == --sound ]]; then arguments 3 "$@" && sound=(1) && shift; fi
key=$1 file=$2 seconds=${3:-0}
case $file in
    *.mp4) muxer=mp4mux ;;
    *.mkv) muxer=matroskamux ;;
    *) fail "$file: the name must end in .mp4 or .mkv" ;;
esac
[[ $seconds =~ ^[0-9]+$ ]] || fail "$seconds is not a number of seconds"
codec=$(codec cuframespacketsrc key="$key" connect-timeout=10000000000) || fail "$key has no packets"
if ((${#sound[@]})); then
    source=(cuframespacketsrc key="$key" track=1)
    case $(caps "${source[@]}") in
        audio/mpeg*) sound=("${source[@]}" ! aacparse) ;;
        audio/x-opus*) sound=("${source[@]}" ! opusparse) ;;
        audio/x-*law*) [[ $muxer == matroskamux ]] || fail "G.711 goes into FILE.mkv"; sound=("${source[@]}") ;;
        *) fail "$key has no sound" ;;
    esac
    sound+=("!" queue "!" muxer.audio_0)
fi

record "$seconds" cuframespacketsrc key="$key" \
    ! "${codec}parse" ! queue ! "$muxer" name=muxer ! filesink location="$file" "${sound[@]}"
