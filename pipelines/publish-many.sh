#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Publishes every camera of a list. Each has its own process, so that a failure
# affects one camera only. Restarts a publisher that exits. Ctrl-C ends all.
#
#   publish-many.sh LIST
#
# A line of LIST has a KEY, a URL and options of publish-rtsp.sh, for example
#   cam1 rtsp://user:password@10.0.0.5/stream --scaled 640x360
# Empty lines and lines that start with # are ignored.
set -uo pipefail
. "$(dirname "$0")/common.sh"

arguments 1 "$@"
[[ -r $1 ]] || fail "$1 is not readable"

# supervise KEY URL [OPTION]...: runs one publisher, and restarts it when it exits.
supervise() {
    local key=$1 url=$2 publisher='' nap=''
    trap 'kill $publisher $nap 2>/dev/null; wait; exit' TERM
    while :; do
        "$(dirname "$0")/publish-rtsp.sh" "${@:3}" "$url" "$key" & publisher=$! && wait "$publisher"
        echo "${0##*/}: $key: the publisher exited ($?); restarting it in 10 s" >&2
        publisher='' && { sleep 10 & nap=$! && wait "$nap"; }
    done
}

supervisors=()
trap 'trap "" INT TERM; kill "${supervisors[@]}" 2>/dev/null; wait' EXIT
trap 'exit 130' INT TERM
while read -r key url options; do
    [[ ! $key || $key == '#'* ]] && continue
    [[ $url ]] || fail "$1: '$key' has no URL"
    # shellcheck disable=SC2086 # split the options into words
    supervise "$key" "$url" $options </dev/null & supervisors+=($!)
done <"$1"
((${#supervisors[@]})) || fail "$1 lists no camera"
wait
