#!/usr/bin/env bash
# Serves the frames that are published under KEY by TCP, small and decoded, to
# programs that read raw video from a socket, such as ffmpeg and so Frigate:
#
#   serve-frames.sh [--listen ADDRESS] KEY PORT WIDTHxHEIGHT FPS
#
#   ffmpeg -f rawvideo -pixel_format yuv420p -video_size WIDTHxHEIGHT -framerate FPS -i tcp://HOST:PORT …
#
# Any number may connect and go; who does not take a frame in time loses it. It
# listens on 127.0.0.1, or on ADDRESS (0.0.0.0: all); who connects may watch.
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 4 "$@"
address=127.0.0.1
if [[ $1 == --listen ]]; then arguments 6 "$@" && address=$2 && shift 2; fi
key=$1 port=$2 size=$3 fps=$4
[[ $port =~ ^[0-9]+$ && $size =~ ^[0-9]+x[0-9]+$ && $fps =~ ^[1-9][0-9]*$ ]] || { usage >&2; exit 2; }
width=${size%x*} height=${size#*x}
# GStreamer would pad the rows of others, and raw video has no word for that.
((10#$width % 8 == 0 && 10#$height % 2 == 0)) || fail "$size: the width has to be a multiple of 8, the height even"

# The reader counts frames as time: a camera that is slower gives some of them twice, but no gap is filled.
# A buffer is a frame, and tcpserversink begins and goes on with whole ones.
exec gst-launch-1.0 -q cuframessrc key="$key" ! video/x-raw ! queue leaky=downstream max-size-buffers=2 \
    ! videorate skip-to-first=true max-duplication-time=1000000000 ! "$(scaler host)" ! videoconvert \
    ! "video/x-raw,format=I420,width=$width,height=$height,framerate=$fps/1,pixel-aspect-ratio=1/1" \
    ! tcpserversink host="$address" port="$port" sync=false sync-method=latest \
    recover-policy=latest units-soft-max=2
