#!/usr/bin/env bash
# Installs target/debian/cuframes_*.deb in a bare Debian or Ubuntu, made for that and thrown away,
# uses it as its first user would, and purges it again. Needs root, mmdebstrap and a mirror.
#
#   try.sh [SUITE [MIRROR...]]
#
# SUITE is bookworm, or another one, such as trixie; MIRROR what mmdebstrap takes for one.
set -euo pipefail

# In a subshell of the caller's: it is replaced, so that a signal to it ends the command.
as() { exec setpriv --reuid "$1" --regid "$2" --clear-groups --reset-env "${@:3}"; }

# shares USER GROUP USER GROUP: the first publishes, and the second gets 30 frames.
shares() {
    (as "$1" "$2" gst-launch-1.0 -q videotestsrc is-live=true ! cuframessink key=cam1) &
    (as "$3" "$4" timeout 60 gst-launch-1.0 -q cuframessrc key=cam1 num-buffers=30 ! fakesink)
    kill $!
    wait $! || true
}

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

    # With systemd there are a directory for all users, and a user who publishes there.
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
case ${1-} in -h | --help) sed -n '2,/^[^#]/ s/^# \{0,1\}//p' "$0"; exit ;; esac
packages=("${CARGO_TARGET_DIR:-target}"/debian/cuframes_*.deb)
[[ -f ${packages[0]} ]] || { echo "$0: there is no package; run: make deb" >&2; exit 1; }
# shellcheck disable=SC2016 # mmdebstrap names the new root $1
exec mmdebstrap --quiet --variant=minbase --include=apt --format=null \
    --customize-hook="upload '${packages[-1]}' /tmp/cuframes.deb" \
    --customize-hook='upload packaging/try.sh /tmp/try.sh' \
    --customize-hook='chroot "$1" bash /tmp/try.sh inside' \
    "${1:-bookworm}" /dev/null "${@:2}"
