#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target for a while: scripts/fuzz.sh BUILD-DIR SECONDS
set -u
build=$1
seconds=$2
failed=0
for target in "$build"/tests/fuzz_*; do
    [ -x "$target" ] || continue
    echo "== $(basename "$target"), ${seconds} s"
    corpus=$(mktemp -d)
    "$target" -max_total_time="$seconds" -print_final_stats=1 -rss_limit_mb=2048 -verbosity=0 "$corpus" 2>&1 | tail -n 6
    [ "${PIPESTATUS[0]}" = 0 ] || failed=1
    rm -rf "$corpus"
done
exit "$failed"
