#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What docs/performance.md reports: scripts/bench.sh BUILD-DIR
set -eu
muster=$1/muster

show() {
    echo
    echo "\$ ${*/#$1/${1##*/}}"
    "$@"
}

show "$1/tests/kill_latency"
show "$muster" demo --json --seed 1
# Five runs of each: how the memory of a run happens to lie in the caches is worth more than what changes within it.
for _ in 1 2 3 4 5; do
    show "$muster" perf floor
    show "$muster" perf ep
    show "$muster" perf ep --experts-do copy
    show "$muster" perf ep --ranks 4 --iterations 200
done
