#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Shows KEY in a window. Needs a display, and on Debian and Ubuntu the package
# gstreamer1.0-x or gstreamer1.0-gl.
#
#   view.sh [--packets] KEY
#
# With --packets it decodes the packets instead of using the decoded frames.
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 1 "$@"
[[ ${DISPLAY-}${WAYLAND_DISPLAY-} ]] || fail "no display is available"
if [[ $1 == --packets ]]; then
    arguments 2 "$@"
    exec gst-launch-1.0 -q cuframespacketsrc key="$2" ! decodebin \
        ! videoconvert ! autovideosink sync=false
fi
exec gst-launch-1.0 -q cuframessrc key="$1" ! video/x-raw ! videoconvert ! autovideosink sync=false
