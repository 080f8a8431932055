#!/usr/bin/env bash
# Writes the next frame that is published under KEY as a JPEG. Gives up when
# there is no publisher for 10 s.
#
#   snapshot.sh KEY FILE.jpg
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 2 "$@"
exec gst-launch-1.0 -q cuframessrc key="$1" num-buffers=1 connect-timeout=10000000000 \
    ! video/x-raw ! videoconvert ! jpegenc ! filesink location="$2"
