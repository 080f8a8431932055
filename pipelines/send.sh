#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Serves the packets of KEY to other hosts over SRT, which retransmits what the
# network loses. Any number of `receive.sh` may connect and disconnect.
#
#   [CUFRAMES_PASSPHRASE=…] send.sh KEY PORT
#
# With a passphrase of 10 to 79 characters, the same on both hosts, it encrypts.
set -euo pipefail
. "$(dirname "$0")/common.sh"

arguments 2 "$@"
key=$1 port=$2 passphrase=${CUFRAMES_PASSPHRASE-}
[[ $port =~ ^[0-9]+$ ]] || fail "$port is not a port"
codec=$(codec cuframespacketsrc key="$key" connect-timeout=10000000000) || fail "$key has no packets"

# config-interval=-1 repeats the parameter sets at each keyframe, for a receiver that connects within a GOP.
exec gst-launch-1.0 -q cuframespacketsrc key="$key" ! "${codec}parse" config-interval=-1 \
    ! mpegtsmux alignment=7 ! srtsink uri="srt://:$port?mode=listener" wait-for-connection=false \
    ${passphrase:+passphrase="$passphrase" pbkeylen=16}
