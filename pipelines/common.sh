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

# codec ELEMENTS...: h264 or h265, whatever flows out of these elements.
codec() {
    local said
    said=$(timeout 15 gst-launch-1.0 -v "$@" ! fakesink num-buffers=1 2>/dev/null) || true
    [[ $said =~ video/x-(h26[45]) ]] && echo "${BASH_REMATCH[1]}"
}

# decoder h264|h265: the best one that works here. Those of a GPU exist only where there is one.
decoder() {
    local element
    for element in "nv$1dec" "avdec_$1" openh264dec libde265dec; do
        [[ $1$element == h265openh264dec || $1$element == h264libde265dec ]] && continue
        has "$element" && echo "$element" && return
    done
    fail "no decoder for $1; on Debian and Ubuntu the package gstreamer1.0-libav has one"
}

# decode_live DECODER: sets `decode` to what decodes a stream that one joins in its midst. Those of libav
# would also show what refers to pictures that never came.
decode_live() {
    decode=("$1")
    # shellcheck disable=SC2034 # used by the caller
    if [[ $1 == avdec_* ]]; then decode+=(output-corrupt=false); fi
}

# scaler DECODER: what makes its frames smaller, where they are.
scaler() {
    case $1 in
        nv*) echo cudaconvertscale ;;
        *) if has videoconvertscale; then echo videoconvertscale; else echo videoscale; fi ;;
    esac
}
