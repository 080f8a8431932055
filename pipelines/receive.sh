#!/usr/bin/env bash
# Takes what `send.sh` offers on another host, decodes it once, and publishes
# its frames and packets here under KEY, the same one if you like. Calls again
# when the other end is gone; Ctrl-C ends it.
#
#   [CUFRAMES_PASSPHRASE=…] receive.sh [--codec h264|h265] HOST:PORT KEY
set -uo pipefail
. "$(dirname "$0")/common.sh"

arguments 2 "$@"
codec=h264 passphrase=${CUFRAMES_PASSPHRASE-} gst='' nap=''
if [[ $1 == --codec ]]; then arguments 4 "$@" && codec=$2 && shift 2; fi
[[ $codec =~ ^h26[45]$ && $1 == *:* ]] || { usage >&2; exit 2; }
address=$1 key=$2
said=$(decoder "$codec") || exit; read -ra decoder <<<"$said"
trap 'kill -INT $gst 2>/dev/null; kill $nap 2>/dev/null; wait; exit 130' INT TERM

# As with a camera: a decoder that is too slow loses pictures, not packets, and silence is a lost connection.
while :; do
    gst-launch-1.0 -q srtsrc uri="srt://$address?mode=caller" auto-reconnect=false \
        ${passphrase:+passphrase="$passphrase" pbkeylen=16} ! tsdemux latency=100 ! "${codec}parse" config-interval=-1 \
        ! "video/x-$codec,stream-format=byte-stream,alignment=au" ! watchdog timeout=10000 ! tee name=camera \
        camera. ! queue leaky=downstream ! "${decoder[@]}" ! cuframessink name=publisher key="$key" forward-eos=false \
        camera. ! queue ! publisher.packets_0 & gst=$! && wait "$gst"
    echo "${0##*/}: $key: $address does not send; calling again in 2 s" >&2
    gst='' && { sleep 2 & nap=$! && wait "$nap"; }
done
