#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Installs the Debian or Ubuntu packages for building, the demo and the tests.
# Packages that are already installed are left unchanged.
set -euo pipefail

packages=(
    make gcc libc6-dev pkg-config ca-certificates   # linker of Rust; downloads of cargo
    libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev
    libgstrtspserver-1.0-dev                        # examples/camera.rs
    gstreamer1.0-tools                              # gst-launch-1.0, gst-inspect-1.0
    gstreamer1.0-plugins-base                       # videotestsrc, videoconvert
    gstreamer1.0-plugins-base-apps                  # gst-device-monitor-1.0
    gstreamer1.0-plugins-good                       # rtspsrc, mp4mux, matroskamux, jpegenc
    gstreamer1.0-plugins-bad                        # h264parse, h265parse, x265enc, watchdog
    gstreamer1.0-plugins-ugly                       # x264enc
    gstreamer1.0-libav                              # avdec_h264, avdec_h265
    ffmpeg                                          # used as Frigate uses it
    python3-gi python3-numpy gir1.2-gst-plugins-base-1.0   # examples/python/
)

fail() { echo "$0: $1" >&2; exit 1; }

has_cargo() { command -v cargo >/dev/null || fail "cargo is missing: install Rust from https://rustup.rs"; }

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    if ! { pkg-config gstreamer-rtsp-server-1.0 gstreamer-video-1.0 && command -v gst-launch-1.0; } &>/dev/null; then
        fail "this is not Debian or Ubuntu: install the equivalents of ${packages[*]}"
    fi
    has_cargo
    exit
fi

installed=" $(dpkg-query -W -f='${db:Status-Abbrev}:${Package} ' "${packages[@]}" 2>/dev/null || true)"
missing=()
for package in "${packages[@]}"; do
    [[ $installed == *" ii :$package "* ]] || missing+=("$package")
done

if ((${#missing[@]})); then
    sudo=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null || fail "as root, run: apt-get install --no-install-recommends ${missing[*]}"
        sudo=(sudo)
    fi
    echo "installing ${missing[*]}"
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends "${missing[@]}" </dev/null
fi

has_cargo
