#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Shows the whole chain for 15 s: a camera, one process that receives and
# decodes its stream, and three processes that use the frames and packets: a
# frame counter, a snapshot and a recording. Writes out/demo.jpg and out/demo.mp4.
#
#   demo.sh [rtsp://CAMERA]
#
# Without CAMERA it starts a simulated one. `make demo` also installs the dependencies.
set -euo pipefail
. "$(dirname "$0")/common.sh"
case ${1-} in -h | --help) usage; exit ;; esac
url=${1-}

cd "$repo"
cargo build --release --locked -p gst-plugin-cuframes -p cuframes-cli --lib --bins --example camera --example watch
export GST_PLUGIN_PATH=$built

work=$(mktemp -d)
export CUFRAMES_RUNTIME_DIR=$work/run
mkdir -m 700 "$work/run"
declare -A pid=()

# start NAME COMMAND...: starts a process group, which ends with the demo.
start() {
    setsid "${@:2}" </dev/null >"$work/$1.log" 2>&1 &
    pid[$1]=$!
}

finish() {
    trap '' INT TERM HUP
    trap - EXIT
    local group retries=30
    for group in "${pid[@]}"; do kill -TERM -- "-$group" 2>/dev/null || true; done
    for group in "${pid[@]}"; do
        while kill -0 -- "-$group" 2>/dev/null; do
            ((retries--)) || { kill -KILL -- "-$group" 2>/dev/null; break; }
            sleep 0.1
        done
    done
    wait 2>/dev/null || true
    rm -rf "$work"
    exit "$1"
}
trap 'finish $?' EXIT
trap 'finish 130' INT
trap 'finish 143' TERM HUP

# failed NAME ERROR: prints the error and the last output of that process, and exits.
failed() {
    echo "demo: $2" >&2
    [[ -s $work/$1.log ]] && { echo "demo: the last lines of $1:" && tail -n 15 "$work/$1.log"; } >&2
    exit 1
}

running() { kill -0 "${pid[$1]}" 2>/dev/null; }

# Prints the numbers of current and of all connections, as the simulated camera counts them.
connections() { sed -n 's/^clients \([0-9]*\) total \([0-9]*\)/\1 \2/p' "$work/camera.log" | tail -n 1; }

# Prints how many processes have a video decoder loaded. It checks the processes with the runtime directory of
# the demo in their environment, which are all of the demo except the camera.
decoders() {
    local environ count=0
    while read -r environ; do
        grep -qsE 'libgst(libav|openh264|de265|nvcodec|va|v4l2codecs)\.so|libnvcuvid' \
            "${environ%environ}maps" && count=$((count + 1))
    done < <(grep -las "CUFRAMES_RUNTIME_DIR=$CUFRAMES_RUNTIME_DIR" /proc/[0-9]*/environ)
    echo "$count"
}

if [[ ! $url ]]; then
    start camera env -u CUFRAMES_RUNTIME_DIR "$built/examples/camera" --port 0 --size 1280x720
    until url=$(sed -n 's/^ready //p' "$work/camera.log") && [[ $url ]]; do
        running camera || failed camera "the camera did not start"
        sleep 0.1
    done
fi
echo "demo: one connection to $url, published as cam1"
start publisher pipelines/publish-rtsp.sh "$url" cam1

mkfifo "$work/lines"
setsid "$built/examples/watch" cam1 </dev/null >"$work/lines" 2>"$work/watch.log" &
pid[watch]=$!
exec 3<"$work/lines"

SECONDS=0
while read -r -t 5 -u 3 line || failed watch "the frame counter has stopped"; do
    running publisher || failed publisher "the publisher exited"
    if [[ $line == *fps* && ! ${pid[recorder]-} ]]; then # the first frame has arrived
        start snapshot pipelines/snapshot.sh cam1 "$work/demo.jpg"
        start recorder pipelines/record.sh cam1 "$work/demo.mp4" 15
    fi
    count=$(connections 2>/dev/null || true) loaded=$(decoders)
    echo "$line${count:+ | RTSP connections ${count% *}} | decoders $loaded"
    if [[ ! ${pid[recorder]-} ]]; then
        ((SECONDS < 20)) || failed publisher "no frame arrived within 20 s"
    elif ! running recorder; then
        break
    fi
    ((SECONDS < 60)) || failed recorder "the recorder does not exit"
done

wait "${pid[recorder]}" || failed recorder "the recording failed"
wait "${pid[snapshot]}" || failed snapshot "the snapshot failed"
[[ ${count:-1 1} == "1 1" ]] || failed camera "the camera had ${count#* } connections instead of one"
((loaded == 1)) || failed publisher "$loaded processes decode instead of one"
gst-launch-1.0 -q filesrc location="$work/demo.jpg" ! jpegdec ! fakesink >"$work/check.log" 2>&1 ||
    failed check "the JPEG is incomplete"
frames=$(gst-launch-1.0 -v filesrc location="$work/demo.mp4" ! decodebin ! fakesink silent=false \
    2>"$work/check.log" | grep -c 'chain ') || failed check "the recording does not play"
((frames >= 100)) || failed recorder "the recording has only $frames frames"

mkdir -p out
mv "$work/demo.jpg" "$work/demo.mp4" out/
echo "demo: $repo/out/demo.jpg and $repo/out/demo.mp4 ($frames frames, all decodable)"
