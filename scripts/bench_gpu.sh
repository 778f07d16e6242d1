#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What GPUs take for dispatch and combine, and what becomes of ranks there that die: scripts/bench_gpu.sh BUILD-DIR [OPTION...]
# Options go to every `muster perf ep`, for example --json or --ranks 4. The build folder may have been carried to here:
# libraries are found beside the tool.
set -eu
build=$(cd "$1" && pwd)
shift
muster=$build/muster
export LD_LIBRARY_PATH=$build${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

show() {
    echo
    echo "\$ ${*/#$build/${build##*/}}"
    "$@"
}

for type in "--dtype bf16" "--quantise fp8"; do
    for combine in reduced exact; do
        for checks in "" --no-fault-tolerance; do
            # shellcheck disable=SC2086
            show "$muster" perf ep --backend cuda --no-baseline $type --combine $combine $checks "$@"
        done
    done
done
show "$muster" chaos gpu
