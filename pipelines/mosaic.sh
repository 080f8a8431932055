#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Composes four cameras into one frame and publishes it under KEY, for any
# number of processes to show. Composes on the GPU if cudacompositor exists and
# the frames of the first camera are in GPU memory, otherwise on the CPU.
#
#   mosaic.sh CAMERA CAMERA CAMERA CAMERA KEY [WIDTHxHEIGHT]
#
# A camera without a publisher is black. One that stops keeps its last frame.
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 5 "$@"
key=$5 size=${6:-1280x720} compositor=(compositor background=black) memory=''
[[ $size =~ ^[0-9]+x[0-9]+$ ]] || { usage >&2; exit 2; }
width=$((${size%x*} / 2 & ~1)) height=$((${size#*x} / 2 & ~1)) # NV12 needs even sizes
if has cudacompositor && first=$(timeout 15 gst-launch-1.0 -v cuframessrc key="$1" num-buffers=1 ! fakesink) \
    && [[ $first == *'(memory:CUDAMemory)'* ]]; then
    compositor=(cudacompositor) memory='(memory:CUDAMemory)'
fi

# The compositor scales each tile. The leaky queues keep a camera from waiting for another one.
cameras=() tiles=()
for n in 0 1 2 3; do
    cameras+=(cuframessrc key="${*:n+1:1}" ! queue leaky=downstream max-size-buffers=2 ! mosaic.)
    tiles+=("sink_$n::xpos=$(((n & 1) * width))" "sink_$n::ypos=$(((n >> 1) * height))"
        "sink_$n::width=$width" "sink_$n::height=$height")
done
exec gst-launch-1.0 -q "${compositor[@]}" name=mosaic "${tiles[@]}" \
    ! "video/x-raw$memory,format=NV12,width=$((2 * width)),height=$((2 * height)),framerate=25/1" \
    ! cuframessink key="$key" "${cameras[@]}"
