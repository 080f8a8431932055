#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Publishes the frames and packets of FILE under KEY, in real time. FILE is
# H.264 or H.265 video in any container.
#
#   publish-file.sh [--loop] FILE KEY
#
# With --loop the file is played again at its end. Each time a new publisher
# starts, to which subscribers reconnect.
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 2 "$@"
loop='' forward=true
if [[ $1 == --loop ]]; then loop=yes forward=false && shift; fi
(($# == 2)) || { usage >&2; exit 2; }
file=$1 key=$2
[[ -r $file ]] || fail "$file is not readable"
codec=$(codec filesrc location="$file" ! parsebin) || fail "$file has no H.264 or H.265 video"
read -ra decoder < <(decoder "$codec")

pipeline=(
    filesrc location="$file" ! parsebin ! "video/x-$codec" ! "${codec}parse" config-interval=-1
    ! "video/x-$codec,stream-format=byte-stream,alignment=au" ! tee name=file
    file. ! queue ! "${decoder[@]}" ! cuframessink name=publisher key="$key" sync=true forward-eos="$forward"
    file. ! queue ! publisher.packets_0
)
[[ $loop ]] || exec gst-launch-1.0 -q "${pipeline[@]}"
trap 'kill -INT $! 2>/dev/null; wait; exit 130' INT TERM
while gst-launch-1.0 -q "${pipeline[@]}" & wait $!; do :; done
