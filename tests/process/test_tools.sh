#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `muster info` and `muster perf ep`: what they say is complete, right, and can be parsed; with and without Open MPI.
set -u
. "$(dirname "$0")/checks.sh"

# All there are, from where the library has them.
settings=$(sed -n 's/.*{"MUSTER_\([A-Z_]*\)", .*/\1/p' "$(dirname "$0")/../../src/core/config.c")
[ "$(wc -w <<<"$settings")" -ge 16 ] || complain "found only these settings: $settings"

# Built or not, the tool finds the CUDA backend beside itself.
[ -e "$(dirname "$muster")/libmuster_cuda.so.0" ] && cuda=true || cuda=false

info_text() {
    call 0 info
    says out '^muster [0-9]+\.[0-9]+\.[0-9]+$'
    says out '^  backend cpu +yes'
    says out "^  backend cuda +$([ "$cuda" = true ] && echo yes || echo no)"
    says out '^  compiler +(gcc|Clang) [0-9]'
    says out "^  cores +$(nproc)$"
    for name in $settings; do
        says out "^  MUSTER_$name .* default "
    done
    says out '^  MUSTER_OPERATION_TIMEOUT_US +1000000 us +default +deadline'
    [ -s "$folder/err" ] && complain "something is on stderr"
}

info_environment() {
    MUSTER_LEASE_US=7654321 call 0 info
    says out '^  MUSTER_LEASE_US +7654321 us +environment '
    says out '^  MUSTER_STEP_TIMEOUT_US .* default '
    MUSTER_NO_SUCH_THING=1 call 0 info
    says err 'unknown setting MUSTER_NO_SUCH_THING'
    MUSTER_TEST_SECONDS=1 call 0 info
    says_not err 'unknown setting'
    MUSTER_LEASE_US=5x call 0 info
    says out '^  MUSTER_LEASE_US +5000000 us +default \(refused\)'
    says err 'MUSTER_LEASE_US="5x" is not a number from'
    call 2 info --no-such-option
}

info_json() {
    MUSTER_LEASE_US=7654321 call 0 info --json
    parses
    lines_are 1
    is 1 version "$("$muster" --version | cut -d ' ' -f 2)"
    is 1 cpu true
    is 1 cuda $cuda
    for name in $settings; do
        says out "\"name\": \"MUSTER_$name\""
    done
    says out '"name": "MUSTER_LEASE_US", "value": "7654321", "source": "environment"'
    says out '"name": "MUSTER_STEP_TIMEOUT_US", "value": "30000000", "source": "default"'
}

quick="--blocks 2 --iterations 20 --warmup 5"
keys="op backend ranks tokens hidden topk experts dtype combine ft dispatch_us combine_us pair_us link_gbs exchange_mb"

# row LINE BACKEND TOKENS
row() {
    for key in $keys; do
        [ -n "$(field "$1" "$key")" ] || complain "line $1 has no $key"
    done
    is "$1" backend "$2"
    is "$1" tokens "$3"
    is "$1" wrong 0
    for figure in dispatch_us combine_us pair_us link_gbs exchange_mb; do
        above "$1" $figure 0
    done
}

perf_rows() {
    call 0 perf ep --json --no-baseline --tokens 3,17 $quick
    parses
    lines_are 4 # two counts; rows in place and rows of the caller's
    row 1 cpu 3
    row 2 cpu 3
    row 3 cpu 17
    row 4 cpu 17
    is 1 op ep
    is 1 ranks 2
    is 1 hidden 2048
    is 1 topk 8
    is 1 experts 64
    is 1 dtype bf16
    is 1 combine reduced
    is 1 ft true
    is 1 rows in-place
    is 2 rows caller
}

# Every way through the exchange, 3 ranks that do not divide the experts, a short last group of values to quantise.
perf_modes() {
    local shape="--no-baseline --json --ranks 3 --tokens 9 --hidden 200 --topk 5 --experts 10"
    for mode in "--layout expert --combine exact" "--layout expert --combine reduced --dtype fp32" \
        "--layout expert --combine exact --quantise fp8" "--layout rank --quantise fp8p2" "--dtype fp32 --experts-do copy" \
        "--layout expert --combine exact --quantise-return fp8" "--layout expert --quantise fp8 --quantise-return fp8p2" \
        "--layout rank --quantise-return fp8" "--dtype fp32 --quantise fp8 --quantise-return fp8" \
        "--layout flat" "--layout flat --quantise fp8 --dtype fp32" "--layout flat --experts-do copy" \
        "--layout expert --combine exact --dtype fp16" "--dtype fp16 --quantise fp8" "--dtype fp16 --experts-do copy"; do
        call 0 perf ep $shape $quick $mode
        is 1 wrong 0
        above 1 pair_us 0
    done
    is 1 dtype fp16
    says out '"experts_do": "copy"'
}

# What goes home as fp8 is checked as everything else is, cannot be written in place, takes less memory and fewer bytes.
perf_quantised_return() {
    local shape="--no-baseline --tokens 16 --layout rank"
    call 0 perf ep $shape --json --quantise-return fp8 $quick
    lines_are 1
    is 1 rows caller
    is 1 quantise none
    is 1 quantise_return fp8
    is 1 wrong 0
    # 16 tokens, 2 ranks: an area of results of 2 * 16 rows of 2048 + 64 bytes, instead of two of 4096 bytes each.
    local less
    less=$(field 1 exchange_mb)
    call 0 perf ep $shape --json $quick
    is 1 quantise_return none
    awk -v a="$(field 1 exchange_mb)" -v b="$less" 'BEGIN { d = (a - b) * 1e6; exit !(d > 194000 && d < 195000) }' ||
        complain "memory: $less MB instead of $(field 1 exchange_mb)"
    call 1 perf ep $shape --json --quantise-return fp8 --spoil $quick
    above 1 wrong 0
    call 0 perf ep $shape --quantise-return fp8p2 $quick
    says out 'quantise none, on the way home fp8p2'
    call 0 perf ep --tokens 4 --quantise-return fp8 $quick
    says out '^# no mpi: it does --layout rank'
    call 2 perf ep --quantise-return fp4
    says err '--quantise-return is "fp4"; it must be one of none, fp8, fp8p2'
}

# A wrong value is seen, whichever way it is looked at; without the check nobody looks.
perf_check() {
    call 1 perf ep --no-baseline --json --tokens 4 --spoil $quick
    above 1 wrong 0
    above 2 wrong 0
    says err 'values were wrong'
    call 0 perf ep --no-baseline --json --tokens 4 --spoil --no-check $quick
    is 1 wrong null
}

perf_table() {
    call 0 perf ep --tokens 5 $quick
    says out '^# muster .* 2 ranks on'
    says out '^  cpu +in-place +2 +5 +2048 +8 +64 +bf16 +rank +reduced '
    says out '^  cpu +caller +2 +5 '
    if grep -q '^# no mpi: ' "$folder/out"; then # why not is said in that line
        says_not out '^  mpi '
    else
        says out '^# mpi: Open MPI .*permute'
        says out '^#  *mpirun -np 2 .*--bind-to'
        says out '^  mpi +caller +2 +5 .* 0 +1\.00$'
    fi
    call 0 perf ep --tokens 5 --layout expert $quick
    says out '^# no mpi: it does --layout rank'
    says_not out in-place # a row goes to each of its experts
    call 0 perf ep --tokens 5 --layout flat $quick
    says out '^  cpu +in-place +2 +5 .* flat +reduced '
    says out '^  cpu +caller +2 +5 .* flat +reduced '
    # Wherever this tool is, it works without mpirun.
    PATH=/nonexistent call_without_path perf ep --tokens 5 --json $quick
    lines_are 2
}
call_without_path() {
    /usr/bin/timeout -k 5 120 "$muster" "$@" >"$folder/out" 2>"$folder/err" || complain "without PATH: $*"
}

perf_floor() {
    [ "$(nproc)" -ge 2 ] || return
    call 0 perf floor --json
    parses
    lines_are 3
    is 3 bytes 524288
    for figure in round_trip_ns local_us push_us pull_us; do
        above 3 $figure 0
    done
    call 0 perf floor
    says out '^# flag there and back: [0-9]+ ns'
}

perf_usage() {
    call 0 perf --help
    call 0 perf ep --help
    says out 'Examples:'
    call 0 perf floor --help
    call 2 perf
    call 2 perf nothing
    says err 'no measurement "nothing"'
    call 2 perf ep --ranks 0
    says err '--ranks is "0"; it must be a number from 1 to 128'
    call 2 perf ep --dtype fp64
    says err '--dtype is "fp64"; it must be one of bf16, fp16, fp32'
    call 2 perf ep --tokens 1,x
    says err '--tokens is "x"'
    call 2 perf ep --topk 9 --experts 8
    says err '--topk is 9; with 8 experts it must be 1 to 8'
    call 2 perf ep --hidden 2049
    says err 'hidden'
    for layout in rank flat; do
        call 2 perf ep --combine exact --layout $layout
        says err 'combine'
    done
    call 2 perf ep --layout slot
    says err '--layout is "slot"; it must be one of expert, rank, flat'
    call 2 perf ep --quantise fp8 --experts-do copy
    says err '--experts-do copy'
    call 2 perf ep --flush
    says err '--flush and --no-fault-tolerance are for --backend cuda'
    call 2 perf ep --compare-fault-tolerance
    says err '--compare-fault-tolerance is for --backend cuda'
    call 2 perf ep --backend cuda --no-fault-tolerance --compare-fault-tolerance
    says err 'cannot be had together'
    call 2 perf ep --backend cuda --experts-do copy
    says err '--experts-do copy is for --backend cpu'
}

# Without a GPU, or without the backend, that is what is said, before anything is started.
perf_without_gpu() {
    CUDA_VISIBLE_DEVICES='' call 1 perf ep --backend cuda --json
    [ -s "$folder/out" ] && complain "something is on stdout"
    says err 'there is no GPU|CUDA backend cannot be loaded'
}

# Nothing is left of a measurement that is killed: neither its ranks and mpirun nor, of theirs, shared memory.
shared_memory() { ls /dev/shm | grep -E 'muster|vader'; }
perf_killed() {
    local before tool waited=0 children
    before=$(shared_memory)
    "$muster" perf ep --blocks 100 --iterations 10000 --tokens 128 >"$folder/out" 2>"$folder/err" &
    tool=$!
    until grep -q '^#  *by ' "$folder/out" || [ $((waited += 1)) -gt 1200 ]; do
        sleep 0.05
    done
    children=$(pgrep -P $tool)
    [ -n "$children" ] || complain "there are no ranks to see"
    kill -KILL $tool 2>/dev/null
    wait $tool 2>/dev/null
    for waited in $(seq 1200); do
        if ! ps -o pid= -p "$(echo $children | tr ' ' ,)" >/dev/null; then
            [ "$(shared_memory)" = "$before" ] || complain "left behind: $(shared_memory)"
            return
        fi
        sleep 0.05
    done
    complain "these outlived the tool: $children"
}

info_text
info_environment
info_json
perf_rows
perf_modes
perf_quantised_return
perf_check
perf_table
perf_floor
perf_usage
perf_without_gpu
perf_killed

[ "$failed" = 0 ] && echo "info and perf: all good"
exit "$failed"
