#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Installs target/debian/cuframes_*.deb in a temporary bare Debian or Ubuntu system, uses it as a first
# user does, and purges it again. Needs root, mmdebstrap and a package mirror.
#
#   try.sh [SUITE [MIRROR...]]
#
# SUITE is bookworm by default, or another one such as trixie. MIRROR is a mirror argument of mmdebstrap.
set -euo pipefail

# as USER GROUP COMMAND...: replaces the calling subshell by the command, so that a signal to the subshell ends it.
as() { exec setpriv --reuid "$1" --regid "$2" --clear-groups --reset-env "${@:3}"; }

# shares USER GROUP USER GROUP: publishes as the first user, and receives 30 frames as the second.
shares() {
    (as "$1" "$2" gst-launch-1.0 -q videotestsrc is-live=true ! cuframessink key=cam1) &
    (as "$3" "$4" timeout 60 gst-launch-1.0 -q cuframessrc key=cam1 num-buffers=30 ! fakesink)
    kill $!
    wait $! || true
}

# purged: removes the package, and fails if any of its files or its user is left.
purged() {
    apt-get purge -qq --yes cuframes >/dev/null
    local left
    left=$(find / -xdev -name '*cuframes*' ! -path '/tmp/*'; getent passwd cuframes || true)
    [[ -z $left ]] || { echo "left after purge: $left" >&2; exit 1; }
}

if [[ ${1-} == inside ]]; then
    export DEBIAN_FRONTEND=noninteractive
    install() { apt-get install -qq --yes -o Dpkg::Use-Pty=0 --no-install-recommends "$@" >/dev/null; }
    install /tmp/cuframes.deb
    gst-inspect-1.0 cuframes
    (as nobody nogroup cuframes doctor)
    shares nobody nogroup nobody nogroup
    rm -r "/tmp/cuframes-$(id -u nobody)"
    purged

    # systemd creates the directory for all users, and the user that publishes there.
    install systemd /tmp/cuframes.deb
    systemd-analyze verify cuframes-publish@cam1.service
    stat -c '%U %G %a %n' /run/cuframes /etc/cuframes
    shares cuframes video nobody video
    systemctl enable cuframes-publish@cam1.service
    purged
    echo "installed, used and purged"
    exit
fi

cd "$(dirname "$0")/.."
case ${1-} in -h | --help) sed -n '3,/^[^#]/ s/^# \{0,1\}//p' "$0"; exit ;; esac
packages=("${CARGO_TARGET_DIR:-target}"/debian/cuframes_*.deb)
[[ -f ${packages[0]} ]] || { echo "$0: the package is missing; run: make deb" >&2; exit 1; }
# shellcheck disable=SC2016 # mmdebstrap passes the root of the new system as $1
exec mmdebstrap --quiet --variant=minbase --include=apt --format=null \
    --customize-hook="upload '${packages[-1]}' /tmp/cuframes.deb" \
    --customize-hook='upload packaging/try.sh /tmp/try.sh' \
    --customize-hook='chroot "$1" bash /tmp/try.sh inside' \
    "${1:-bookworm}" /dev/null "${@:2}"
