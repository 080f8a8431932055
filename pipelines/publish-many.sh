#!/usr/bin/env bash
# Publishes every camera of a list, each by a process of its own, so that none
# takes another one with it. Starts again what ends; Ctrl-C ends all.
#
#   publish-many.sh LIST
#
# A line of LIST is a KEY, a URL and options of publish-rtsp.sh, such as
#   cam1 rtsp://user:password@10.0.0.5/stream --scaled 640x360
# Empty lines and those that begin with # count for nothing.
set -uo pipefail
. "$(dirname "$0")/common.sh"

arguments 1 "$@"
[[ -r $1 ]] || fail "$1 cannot be read"

# supervise KEY URL [OPTION]...: one publisher, again and again.
supervise() {
    local key=$1 url=$2 publisher='' nap=''
    trap 'kill $publisher $nap 2>/dev/null; wait; exit' TERM
    while :; do
        "$(dirname "$0")/publish-rtsp.sh" "${@:3}" "$url" "$key" & publisher=$! && wait "$publisher"
        echo "${0##*/}: $key: its publisher has ended ($?); starting it again in 10 s" >&2
        publisher='' && { sleep 10 & nap=$! && wait "$nap"; }
    done
}

supervisors=()
trap 'trap "" INT TERM; kill "${supervisors[@]}" 2>/dev/null; wait' EXIT
trap 'exit 130' INT TERM
while read -r key url options; do
    [[ ! $key || $key == '#'* ]] && continue
    [[ $url ]] || fail "$1: '$key' has no URL"
    # shellcheck disable=SC2086 # the options are words
    supervise "$key" "$url" $options </dev/null & supervisors+=($!)
done <"$1"
((${#supervisors[@]})) || fail "$1 has no camera"
wait
