#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Checks what a package for crates.io contains: all that it needs, and neither
# corpora of tests nor results of benchmarks.
set -euo pipefail
cd "$(dirname "$0")/.."

# Local changes are packaged as well, so that the check runs before a commit.
list=$(cargo package --locked --allow-dirty --list -p cuframes -p gst-plugin-cuframes)
if unwanted=$(grep -E '(^|/)(corpus|tests|benches)/|\.json$' <<<"$list" | grep -v '^\.cargo_vcs_info\.json$'); then
    printf '%s: these do not belong into a package:\n%s\n' "$0" "$unwanted" >&2
    exit 1
fi
# Without a build, which would need the registry to have the library.
cargo package --locked --allow-dirty --no-verify --quiet -p cuframes
echo "2 packages checked"
