#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Receives packets from `send.sh` on another host, decodes them once, and
# publishes frames and packets on this host under KEY, which may be the same key
# on both. Reconnects when the connection is lost; Ctrl-C ends it.
#
#   [CUFRAMES_PASSPHRASE=…] receive.sh [--codec h264|h265] HOST:PORT KEY
set -uo pipefail
. "$(dirname "$0")/common.sh"

arguments 2 "$@"
codec=h264 passphrase=${CUFRAMES_PASSPHRASE-} gst='' nap=''
if [[ $1 == --codec ]]; then arguments 4 "$@" && codec=$2 && shift 2; fi
[[ $codec =~ ^h26[45]$ && $1 == *:* ]] || { usage >&2; exit 2; }
address=$1 key=$2
element=$(decoder "$codec") || exit; read -ra decoder <<<"$element"
trap 'kill -INT $gst 2>/dev/null; kill $nap 2>/dev/null; wait; exit 130' INT TERM

# As in publish-rtsp.sh, the leaky queue drops frames in front of a decoder that is too slow and packets stay
# complete. The watchdog ends a connection that delivered nothing for 10 s.
while :; do
    gst-launch-1.0 -q srtsrc uri="srt://$address?mode=caller" auto-reconnect=false \
        ${passphrase:+passphrase="$passphrase" pbkeylen=16} ! tsdemux latency=100 ! "${codec}parse" config-interval=-1 \
        ! "video/x-$codec,stream-format=byte-stream,alignment=au" ! watchdog timeout=10000 ! tee name=camera \
        camera. ! queue leaky=downstream ! "${decoder[@]}" ! cuframessink name=publisher key="$key" forward-eos=false \
        camera. ! queue ! publisher.packets_0 & gst=$! && wait "$gst"
    echo "${0##*/}: $key: no connection to $address; trying again in 2 s" >&2
    gst='' && { sleep 2 & nap=$! && wait "$nap"; }
done
