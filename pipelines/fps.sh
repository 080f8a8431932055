#!/usr/bin/env bash
# Prints once a second how many frames per second arrive from KEY.
#
#   fps.sh KEY
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 1 "$@"
exec gst-launch-1.0 -v cuframessrc key="$1" ! fpsdisplaysink video-sink=fakesink \
    text-overlay=false sync=false fps-update-interval=1000 \
    > >(exec sed -un 's/.*fpsdisplaysink0: last-message = //p')
