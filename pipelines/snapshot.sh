#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Writes the next frame of KEY as a JPEG. Fails if there is no publisher for 10 s.
#
#   snapshot.sh KEY FILE.jpg
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 2 "$@"
exec gst-launch-1.0 -q cuframessrc key="$1" num-buffers=1 connect-timeout=10000000000 \
    ! video/x-raw ! videoconvert ! jpegenc ! filesink location="$2"
