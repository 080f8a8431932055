# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# Functions that the other scripts of this directory share. Source this file.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
built=${CARGO_TARGET_DIR:-$repo/target}/release

# Prints the header comment of the script, which is its help, without the license line.
usage() { sed -n '3,/^[^#]/ s/^# \{0,1\}//p' "$0"; }

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# Returns whether GStreamer has the element. Without --atleast-version, gst-inspect-1.0 requires the plugin
# to be as new as GStreamer itself.
has() { gst-inspect-1.0 --exists --atleast-version=0.0 "$1"; }

# arguments MINIMUM "$@": handles --help, exits with the usage if there are fewer than MINIMUM arguments, and
# makes the plugin available: the installed one, otherwise the one built in this repository.
arguments() {
    local minimum=$1
    shift
    case " $* " in *" --help "* | *" -h "*) usage; exit ;; esac
    (($# >= minimum)) || { usage >&2; exit 2; }
    has cuframessink && return
    export GST_PLUGIN_PATH=$built${GST_PLUGIN_PATH:+:$GST_PLUGIN_PATH}
    has cuframessink || fail "GStreamer does not find the plugin; run: make build"
}

# caps ELEMENTS...: prints the caps of the buffers that these elements produce.
caps() {
    timeout 15 gst-launch-1.0 -v "$@" ! fakesink num-buffers=1 2>/dev/null |
        sed -n 's/.*fakesink0.GstPad:sink: caps = //p' || true
}

# codec ELEMENTS...: prints h264 or h265, the codec that these elements produce. Fails for other caps.
codec() { [[ $(caps "$@") =~ video/x-(h26[45]) ]] && echo "${BASH_REMATCH[1]}"; }

# record SECONDS PIPELINE...: replaces the script by gst-launch-1.0, which completes its file after SECONDS (0:
# no limit) or on Ctrl-C. The time limit is a background process, not `timeout gst-launch-1.0`: timeout would
# forward a copy of each Ctrl-C, and a second interrupt ends gst-launch-1.0 before the file is complete.
record() {
    local seconds=$1
    ((seconds == 0)) || { timeout "$seconds" tail -f /dev/null --pid=$$ || kill -INT $$; } &
    exec gst-launch-1.0 -q -e "${@:2}"
}

# decoder h264|h265: prints the best decoder that works here, with its properties. The decoders of a GPU are
# registered only where there is one. output-corrupt=false: a stream that starts within a GOP must not publish
# the broken frames that libav makes of the rest of that GOP.
decoder() {
    local element
    for element in "nv$1dec" "avdec_$1" openh264dec libde265dec; do
        [[ $1$element == h265openh264dec || $1$element == h264libde265dec ]] && continue
        has "$element" || continue
        [[ $element == avdec_* ]] && element+=' output-corrupt=false'
        echo "$element" && return
    done
    fail "no decoder for $1: install one, on Debian and Ubuntu with the package gstreamer1.0-libav"
}

# offered OUTPUT: prints the video codec that a camera offers, h264 or h265, and the elements that receive its
# audio if subscribers support the audio codec. OUTPUT is what gst-launch-1.0 -v printed about rtspsrc. Fails
# if the camera offers neither video codec.
offered() {
    local output=$1 encoding elements
    [[ $output =~ encoding-name=\(string\)(H26[45]) ]] || return
    echo -n "${BASH_REMATCH[1],,}"
    while read -r encoding elements; do
        [[ $output == *"encoding-name=(string)$encoding"[,\;]* ]] || continue
        echo " application/x-rtp,media=audio,encoding-name=$encoding ! $elements"
        break
    done <<<"MPEG4-GENERIC rtpmp4gdepay ! aacparse
        MP4A-LATM rtpmp4adepay ! aacparse
        OPUS rtpopusdepay
        PCMU rtppcmudepay
        PCMA rtppcmadepay"
}

# scaler DECODER: prints the element that scales the frames of this decoder in their memory, GPU or host.
scaler() {
    case $1 in
        nv*) echo cudaconvertscale ;;
        *) if has videoconvertscale; then echo videoconvertscale; else echo videoscale; fi ;;
    esac
}
