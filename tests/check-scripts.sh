#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Checks that every script parses, prints its help on --help, fails on missing
# arguments, and passes shellcheck if that is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts=(pipelines/*.sh tests/*.sh tools/bench/tests/*.sh .ci/run packaging/debian/p* packaging/*.sh)
bash -n "${scripts[@]}"
if command -v shellcheck >/dev/null; then
    shellcheck --external-sources --source-path=SCRIPTDIR "${scripts[@]}"
else
    echo "$0: shellcheck is not installed: skipped"
fi

for script in pipelines/*.sh; do
    name=${script##*/}
    case $name in common.sh) continue ;; esac
    help=$("$script" --help </dev/null) || { echo "$script --help failed"; exit 1; }
    [[ $help == *"$name"* ]] || { echo "$script --help does not show its usage"; exit 1; }
    case $name in demo.sh) continue ;; esac # needs no argument
    if "$script" </dev/null >/dev/null 2>&1; then
        echo "$script succeeds without arguments"
        exit 1
    fi
done
echo "${#scripts[@]} scripts checked"
