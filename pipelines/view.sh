#!/usr/bin/env bash
# Shows what is published under KEY in a window. Needs a display, and on Debian
# and Ubuntu one of the packages gstreamer1.0-x and gstreamer1.0-gl.
#
#   view.sh [--packets] KEY
#
# With --packets it decodes the packets instead of taking the decoded frames.
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 1 "$@"
[[ ${DISPLAY-}${WAYLAND_DISPLAY-} ]] || fail "there is no display to show a window on"
if [[ $1 == --packets ]]; then
    arguments 2 "$@"
    exec gst-launch-1.0 -q cuframespacketsrc key="$2" ! decodebin \
        ! videoconvert ! autovideosink sync=false
fi
exec gst-launch-1.0 -q cuframessrc key="$1" ! video/x-raw ! videoconvert ! autovideosink sync=false
