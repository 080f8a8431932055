#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Prints the frame rate that arrives from KEY, once a second.
#
#   fps.sh KEY
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 1 "$@"
exec gst-launch-1.0 -v cuframessrc key="$1" ! fpsdisplaysink video-sink=fakesink \
    text-overlay=false sync=false fps-update-interval=1000 \
    > >(exec sed -un 's/.*fpsdisplaysink0: last-message = //p')
