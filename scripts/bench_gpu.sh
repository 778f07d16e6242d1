#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What GPUs take for dispatch and combine, and what becomes of ranks there that die:
#     scripts/bench_gpu.sh BUILD-DIR [PART...] [OPTION...]
# Parts, for machines that are lent for minutes only; none named: all.
#   latency  1 to 256 tokens: bf16 and fp8, both combine modes, with and without fault tolerance in turns
#   large    1024 and 4096 tokens: the same, then the flat layout with 8, 24 and all multiprocessors
#   chaos    a campaign of faults
# Options go to every `muster perf ep`, for example --json or --ranks 4. The build folder may have been carried to here:
# libraries are found beside the tool, and so is libnccl.so.2 if somebody put it there.
set -eu
build=$(cd "$1" && pwd)
shift
muster=$build/muster
export LD_LIBRARY_PATH=$build${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

parts=
while [ $# -gt 0 ] && [[ $1 != -* ]]; do
    case $1 in
    latency | large | chaos) parts="$parts $1" ;;
    *)
        echo "there is no part \"$1\": latency, large, chaos" >&2
        exit 2
        ;;
    esac
    shift
done
options=("$@")

show() {
    echo
    echo "\$ ${*/#$build/${build##*/}}"
    "$@"
}

# perf ARGUMENTS...: a table, with and without fault tolerance
perf() { show "$muster" perf ep --backend cuda --compare-fault-tolerance "$@" ${options+"${options[@]}"}; }

# every_mode TOKENS: bf16 and fp8, both combine modes
every_mode() {
    local type combine
    for type in "--dtype bf16" "--quantise fp8"; do
        for combine in reduced exact; do
            # shellcheck disable=SC2086
            perf --tokens "$1" $type --combine $combine
        done
    done
}

latency() { every_mode 1,8,32,64,128,256; }

large() {
    local multiprocessors
    every_mode 1024,4096
    perf --tokens 1024,4096 --layout flat
    for multiprocessors in 8 24; do
        echo
        echo "MUSTER_MULTIPROCESSORS=$multiprocessors"
        MUSTER_MULTIPROCESSORS=$multiprocessors perf --tokens 1024,4096 --layout flat --no-baseline
    done
}

chaos() { show "$muster" chaos gpu; }

for part in ${parts:-latency large chaos}; do
    $part
done
