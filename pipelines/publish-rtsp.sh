#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Connects to a camera once, decodes its stream once, and publishes its frames
# and packets under KEY. Reconnects when the connection is lost; Ctrl-C ends it.
#
#   publish-rtsp.sh [--codec h264|h265] [--scaled WxH] [--sound] URL KEY
#
# Without --codec it tries both codecs. --scaled also publishes smaller frames of
# the same decoder as KEY.sub, for detectors. --sound also publishes audio (AAC,
# Opus or G.711) as track 1; a short first connection finds the audio codec.
set -uo pipefail
. "$(dirname "$0")/common.sh"
arguments 2 "$@"
codec=h264 other=h265 retries=1 scaled='' probe='' audio=() pause=1 gst='' nap=''
while (($# > 2)); do
    case $1 in
        --codec) codec=$2 retries=0 && shift 2 ;;
        --scaled) [[ $2 =~ ^[0-9]+x[0-9]+$ ]] || fail "--scaled needs a size such as 640x360"; scaled=$2 && shift 2 ;;
        --sound) probe=yes && shift ;;
        *) usage >&2; exit 2 ;;
    esac
done
(($# == 2)) || { usage >&2; exit 2; }
url=$1 key=$2 log=$(mktemp)
trap 'kill -INT $gst 2>/dev/null; kill $nap 2>/dev/null; wait; exit 130' INT TERM
trap 'rm -f "$log"' EXIT
# probe: finds the codecs of the camera. With audio linked, rtspsrc reports no error for video that is not linked,
# so the video codec has to be known before.
probe() {
    timeout 15 gst-launch-1.0 -v rtspsrc location="$url" protocols=tcp latency=0 \
        ! fakesink num-buffers=1 >"$log" 2>&1 & gst=$! && wait "$gst"
    gst=''
    local offer
    offer=$(offered "$(<"$log")") || { grep -m1 '^ERROR' "$log" >&2; return 1; }
    read -r codec offer <<<"$offer" && read -ra audio <<<"$offer" && retries=1
    [[ ${audio[0]+x} ]] || echo "${0##*/}: $key: the camera offers no supported audio codec" >&2
}
# reconnect_later: waits before the next attempt, longer each time.
reconnect_later() {
    echo "${0##*/}: $key: no connection to the camera; trying again in $pause s" >&2
    sleep "$pause" & gst='' nap=$! && wait "$nap"
    nap='' pause=$((pause < 16 ? pause * 2 : 30))
}
while :; do
    [[ ! $probe ]] || probe || { reconnect_later; continue; }
    element=$(decoder "$codec") || exit; read -ra decoder <<<"$element"
    SECONDS=0 packed=avc frames=() memory=''
    [[ $codec == h264 ]] || packed=hvc1
    if [[ $scaled ]]; then
        [[ ${decoder[0]} == nv* ]] && memory='(memory:CUDAMemory)'
        frames=("!" tee name=frames frames. "!" queue leaky=downstream "!" "$(scaler "${decoder[0]}")"
            "!" "video/x-raw$memory,width=${scaled%x*},height=${scaled#*x},pixel-aspect-ratio=1/1"
            "!" cuframessink key="$key.sub" forward-eos=false frames. "!" queue leaky=downstream)
    fi
    # In avc and hvc1 a packet is a whole frame as the camera marked it, with all of its slices.
    # The leaky queue drops frames in front of a decoder that is too slow; packets, and so recordings, stay complete.
    # The watchdog ends a connection that delivered nothing for 10 s. Subscribers see a gap.
    gst-launch-1.0 -q rtspsrc name=rtsp location="$url" protocols=tcp latency=200 \
        ! "application/x-rtp,media=video,encoding-name=${codec^^}" ! "rtp${codec}depay" \
        ! "video/x-$codec,stream-format=$packed,alignment=au" ! "${codec}parse" config-interval=-1 ! watchdog timeout=10000 \
        ! "video/x-$codec,stream-format=byte-stream,alignment=au" ! tee name=camera \
        camera. ! queue leaky=downstream ! "${decoder[@]}" "${frames[@]}" \
        ! cuframessink name=publisher key="$key" forward-eos=false \
        camera. ! queue ! publisher.packets_0 \
        ${audio[0]+rtsp. ! "${audio[@]}" ! queue ! publisher.packets_1} 2>"$log" & gst=$! && wait "$gst"
    if grep -q 'reason not-linked' "$log"; then # the camera sends another codec
        ((retries--)) || fail "the camera sends neither H.264 nor H.265, or not the codec of --codec"
        read -r codec other <<<"$other $codec" && continue
    fi
    cat "$log" >&2
    ((SECONDS < 30)) || pause=1
    reconnect_later
done
