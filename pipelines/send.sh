#!/usr/bin/env bash
# Offers the packets that are published under KEY to other hosts, by SRT: what
# the network loses is sent again. Any number of `receive.sh` may call and go.
#
#   [CUFRAMES_PASSPHRASE=…] send.sh KEY PORT
#
# With a passphrase of 10 to 79 characters, the same at both ends, it is encrypted.
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 2 "$@"
key=$1 port=$2 passphrase=${CUFRAMES_PASSPHRASE-}
[[ $port =~ ^[0-9]+$ ]] || fail "$port is not a port"
codec=$(codec cuframespacketsrc key="$key" connect-timeout=10000000000) || fail "$key has no packets"

# Who calls in the midst of a group of pictures finds the parameters at the next keyframe.
exec gst-launch-1.0 -q cuframespacketsrc key="$key" ! "${codec}parse" config-interval=-1 \
    ! mpegtsmux alignment=7 ! srtsink uri="srt://:$port?mode=listener" wait-for-connection=false \
    ${passphrase:+passphrase="$passphrase" pbkeylen=16}
