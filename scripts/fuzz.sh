#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target for a while: scripts/fuzz.sh BUILD-DIR SECONDS
# A target may have a dictionary (tests/fuzz/NAME.dict) and inputs to begin with (tests/fuzz/seeds/NAME/).
set -u
build=$1
seconds=$2
here=$(cd "$(dirname "$0")/../tests/fuzz" && pwd)
failed=0
for target in "$build"/tests/fuzz_*; do
    [ -x "$target" ] || continue
    name=$(basename "$target")
    echo "== $name, ${seconds} s"
    corpus=$(mktemp -d)
    options=(-max_total_time="$seconds" -print_final_stats=1 -rss_limit_mb=2048 -verbosity=0)
    [ -f "$here/$name.dict" ] && options+=(-dict="$here/$name.dict")
    folders=("$corpus")
    [ -d "$here/seeds/$name" ] && folders+=("$here/seeds/$name")
    "$target" "${options[@]}" "${folders[@]}" 2>&1 | tail -n 6
    [ "${PIPESTATUS[0]}" = 0 ] || failed=1
    rm -rf "$corpus"
done
exit "$failed"
