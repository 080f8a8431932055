#!/usr/bin/env bash
# Pulls a camera once, decodes it once, and publishes its frames and packets
# under KEY. Comes back by itself when the camera drops; Ctrl-C ends it.
#
#   publish-rtsp.sh [--codec h264|h265] [--scaled WxH] [--sound] URL KEY
#
# Without --codec it tries both. --scaled also publishes smaller frames of the
# same decode as KEY.sub, for detectors. --sound asks the camera first, by a
# short connection, and publishes AAC, Opus or G.711 as track 1.
set -uo pipefail
. "$(dirname "$0")/common.sh"
arguments 2 "$@"
codec=h264 other=h265 left=1 scaled='' ask='' sound=() pause=1 gst='' nap=''
while (($# > 2)); do
    case $1 in
        --codec) codec=$2 left=0 && shift 2 ;;
        --scaled) [[ $2 =~ ^[0-9]+x[0-9]+$ ]] || fail "--scaled takes a size such as 640x360"; scaled=$2 && shift 2 ;;
        --sound) ask=yes && shift ;;
        *) usage >&2; exit 2 ;;
    esac
done
(($# == 2)) || { usage >&2; exit 2; }
url=$1 key=$2 log=$(mktemp)
trap 'kill -INT $gst 2>/dev/null; kill $nap 2>/dev/null; wait; exit 130' INT TERM
trap 'rm -f "$log"' EXIT
# With sound linked, rtspsrc would not say that nothing takes the picture: the codec has to be known.
ask() {
    timeout 15 gst-launch-1.0 -v rtspsrc location="$url" protocols=tcp latency=0 \
        ! fakesink num-buffers=1 >"$log" 2>&1 & gst=$! && wait "$gst"
    gst=''
    said=$(offered "$(<"$log")") || { grep -m1 '^ERROR' "$log" >&2; return 1; }
    read -r codec said <<<"$said" && read -ra sound <<<"$said" && left=1
    [[ ${sound[0]+x} ]] || echo "${0##*/}: $key: the camera offers no sound that subscribers know" >&2
}
# again: the camera is gone, or not yet there.
again() {
    echo "${0##*/}: $key: the camera is gone; trying again in $pause s" >&2
    sleep "$pause" & gst='' nap=$! && wait "$nap"
    nap='' pause=$((pause < 16 ? pause * 2 : 30))
}
while :; do
    [[ ! $ask ]] || ask || { again; continue; }
    said=$(decoder "$codec") || exit; read -ra decoder <<<"$said"
    SECONDS=0 packed=avc frames=() memory=''
    [[ $codec == h264 ]] || packed=hvc1
    if [[ $scaled ]]; then
        [[ ${decoder[0]} == nv* ]] && memory='(memory:CUDAMemory)'
        frames=("!" tee name=frames frames. "!" queue leaky=downstream "!" "$(scaler "${decoder[0]}")"
            "!" "video/x-raw$memory,width=${scaled%x*},height=${scaled#*x},pixel-aspect-ratio=1/1"
            "!" cuframessink key="$key.sub" forward-eos=false frames. "!" queue leaky=downstream)
    fi
    # In avc and hvc1 a packet is what the camera marked as one picture, however many slices it has.
    # A decoder that is too slow loses pictures (leaky), not packets: recordings stay whole.
    # The watchdog ends a connection over which nothing has come for 10 s. To subscribers it is a pause.
    gst-launch-1.0 -q rtspsrc name=rtsp location="$url" protocols=tcp latency=200 \
        ! "application/x-rtp,media=video,encoding-name=${codec^^}" ! "rtp${codec}depay" \
        ! "video/x-$codec,stream-format=$packed,alignment=au" ! "${codec}parse" config-interval=-1 ! watchdog timeout=10000 \
        ! "video/x-$codec,stream-format=byte-stream,alignment=au" ! tee name=camera \
        camera. ! queue leaky=downstream ! "${decoder[@]}" "${frames[@]}" \
        ! cuframessink name=publisher key="$key" forward-eos=false \
        camera. ! queue ! publisher.packets_0 \
        ${sound[0]+rtsp. ! "${sound[@]}" ! queue ! publisher.packets_1} 2>"$log" & gst=$! && wait "$gst"
    if grep -q 'reason not-linked' "$log"; then # it speaks another codec
        ((left--)) || fail "the camera sends neither H.264 nor H.265, or not the one asked for"
        read -r codec other <<<"$other $codec" && continue
    fi
    cat "$log" >&2
    ((SECONDS < 30)) || pause=1
    again
done
