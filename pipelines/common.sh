# shellcheck shell=bash
# Sourced by the scripts beside it.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
built=${CARGO_TARGET_DIR:-$repo/target}/release

# The header comment of a script is its help.
usage() { sed -n '2,/^[^#]/ s/^# \{0,1\}//p' "$0"; }

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# Without a version it would ask for a plugin as new as GStreamer itself.
has() { gst-inspect-1.0 --exists --atleast-version=0.0 "$1"; }

# arguments LEAST "$@": answers --help, complains about fewer than LEAST
# arguments, and finds the plugin: the installed one, else the one built here.
arguments() {
    local least=$1
    shift
    case " $* " in *" --help "* | *" -h "*) usage; exit ;; esac
    (($# >= least)) || { usage >&2; exit 2; }
    has cuframessink && return
    export GST_PLUGIN_PATH=$built${GST_PLUGIN_PATH:+:$GST_PLUGIN_PATH}
    has cuframessink || fail "GStreamer does not find the plugin; run: make build"
}

# caps ELEMENTS...: of what flows out of these elements.
caps() {
    timeout 15 gst-launch-1.0 -v "$@" ! fakesink num-buffers=1 2>/dev/null |
        sed -n 's/.*fakesink0.GstPad:sink: caps = //p' || true
}

# codec ELEMENTS...: h264 or h265, whatever it is.
codec() { [[ $(caps "$@") =~ video/x-(h26[45]) ]] && echo "${BASH_REMATCH[1]}"; }

# record SECONDS PIPELINE...: becomes gst-launch-1.0, which completes its file after SECONDS (0: never) or on Ctrl-C.
# A second interrupt would end it at once, and timeout above it would hand on a copy of each.
record() {
    local seconds=$1
    ((seconds == 0)) || { timeout "$seconds" tail -f /dev/null --pid=$$ || kill -INT $$; } &
    exec gst-launch-1.0 -q -e "${@:2}"
}

# decoder h264|h265: the best one that works here, and its properties. Those of a GPU exist only where there is one.
# Who joins in the midst of a group of pictures must not publish what libav makes of its rest.
decoder() {
    local element
    for element in "nv$1dec" "avdec_$1" openh264dec libde265dec; do
        [[ $1$element == h265openh264dec || $1$element == h264libde265dec ]] && continue
        has "$element" || continue
        [[ $element == avdec_* ]] && element+=' output-corrupt=false'
        echo "$element" && return
    done
    fail "no decoder for $1; on Debian and Ubuntu the package gstreamer1.0-libav has one"
}

# offered SAID: h264 or h265, whatever a camera sends, and the elements that take its sound, if it has one
# that subscribers know; by what gst-launch-1.0 -v said of rtspsrc. Fails where that names no such picture.
offered() {
    local said=$1 encoding elements
    [[ $said =~ encoding-name=\(string\)(H26[45]) ]] || return
    echo -n "${BASH_REMATCH[1],,}"
    while read -r encoding elements; do
        [[ $said == *"encoding-name=(string)$encoding"[,\;]* ]] || continue
        echo " application/x-rtp,media=audio,encoding-name=$encoding ! $elements"
        break
    done <<<"MPEG4-GENERIC rtpmp4gdepay ! aacparse
        MP4A-LATM rtpmp4adepay ! aacparse
        OPUS rtpopusdepay
        PCMU rtppcmudepay
        PCMA rtppcmadepay"
}

# scaler DECODER: what makes its frames smaller, where they are.
scaler() {
    case $1 in
        nv*) echo cudaconvertscale ;;
        *) if has videoconvertscale; then echo videoconvertscale; else echo videoscale; fi ;;
    esac
}
