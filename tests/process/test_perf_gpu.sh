#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `muster perf ep --backend cuda` on small shapes, in every mode: no value is wrong, and each row has what readers of the
# JSON rely on; so does NCCL, where it is. Needs two GPUs; elsewhere it says why it cannot be done. Behind the tool and the
# folder of the tests `few` asks for a few modes only, for simulated GPUs, which are slow.
set -u
. "$(dirname "$0")/checks.sh"

quick="--blocks 1 --iterations 2 --warmup 1"
counts="1 17 150"
[ "${3-}" = few ] && quick="--blocks 1 --iterations 1 --warmup 0" counts="1 17"

# measure OPTIONS...: a measurement on two GPUs, output in $folder/out and $folder/err; its exit status
measure() { timeout -k 5 120 "$muster" perf ep --backend cuda --ranks 2 --json "$@" >"$folder/out" 2>"$folder/err"; }
perf() { measure $quick --no-baseline "$@"; }

# Where there is no GPU, or one, or no backend, that is what the tool says.
perf --tokens 1 --hidden 128 --experts 8
status=$?
if [ "$status" != 0 ] && grep -qE 'there is no GPU|number of GPUs here|CUDA backend cannot be loaded' "$folder/err"; then
    sed -n 's/^/skipped: needs two GPUs: /;1p' "$folder/err"
    exit 77
fi
[ "$status" = 0 ] || complain "exit status $status"

keys="op backend ranks tokens hidden topk experts dtype combine ft dispatch_us combine_us pair_graph_us link_gbs sms exchange_mb
link_rate_gbs link_fraction"

# fraction LINE: the part of the links' rate is what the other two say, and no more than there is
fraction() {
    awk -v gbs="$(field "$1" link_gbs)" -v rate="$(field "$1" link_rate_gbs)" -v part="$(field "$1" link_fraction)" \
        'BEGIN { off = part - gbs / rate; exit !(off < 1e-4 && off > -1e-4 && part <= 1) }' ||
        complain "line $1: link_fraction is $(field "$1" link_fraction)"
}

# rows SERIES TOKENS...: a good row for each count and each of SERIES
rows() {
    local line=0 key series=$1
    shift
    for tokens in "$@"; do
        for name in $series; do
            line=$((line + 1))
            for key in $keys; do
                [ -n "$(field $line "$key")" ] || complain "line $line has no $key"
            done
            is $line op ep
            is $line backend cuda
            is $line rows "$name"
            is $line ranks 2
            is $line tokens "$tokens"
            is $line wrong 0
            for key in dispatch_us combine_us pair_graph_us link_gbs sms exchange_mb link_rate_gbs link_fraction; do
                above $line "$key" 0
            done
            fraction $line
        done
    done
    [ "$(wc -l <"$folder/out")" = "$line" ] || complain "$(wc -l <"$folder/out") lines, wanted $line"
}

# mode OPTIONS...: one token, an odd number, more than a block has; experts that the ranks do not divide evenly
mode() {
    perf --tokens "${counts// /,}" --hidden 1088 --topk 5 --experts 11 "$@"
    status=$?
    [ "$status" = 0 ] || complain "exit status $status: $*"
    # shellcheck disable=SC2086
    case " $* " in
    *--layout\ rank* | *--layout\ flat*) rows "in-place caller" $counts ;;
    *) rows caller $counts ;; # expert-major
    esac
}

# A wrong value is seen.
spoil() {
    perf --tokens 9 --hidden 128 --experts 8 --spoil
    [ $? = 1 ] || complain "a spoilt value leaves exit status 0"
    above 1 wrong 0
}

if [ "${3-}" = few ]; then
    mode --layout expert --quantise fp8
    mode --layout flat --no-fault-tolerance
    spoil
    [ "$failed" = 0 ] && echo "perf on GPUs: all good in a few modes"
    exit "$failed"
fi

for layout in "--layout expert --combine reduced" "--layout expert --combine exact" "--layout rank" "--layout flat"; do
    for type in "--dtype bf16" "--dtype fp16" "--dtype fp32" "--quantise fp8" "--quantise fp8p2" "--dtype fp16 --quantise fp8"; do
        mode $layout $type
        is 1 ft true
    done
    mode $layout --no-fault-tolerance
    is 1 ft false
    mode $layout --quantise fp8 --no-fault-tolerance
done
mode --layout expert --combine exact
is 2 hidden 1088
is 2 topk 5
is 2 experts 11
is 2 dtype bf16
is 2 combine exact
mode --flush
is 1 flushed true
mode --flush --layout rank --quantise fp8

# Fewer multiprocessors than there are: the rows say so.
MUSTER_MULTIPROCESSORS=8 mode --dtype fp16
is 1 sms 8

# With and without fault tolerance, in turns.
perf --tokens 5,40 --hidden 256 --experts 8 --compare-fault-tolerance --blocks 3
[ $? = 0 ] || complain "--compare-fault-tolerance does not work"
lines_are 4
for line in 1 3; do
    is $line ft true
    is $((line + 1)) ft false
    is $((line + 1)) wrong 0
    for key in ft_cost_us ft_cost_low_us ft_cost_high_us; do
        [ -n "$(field $line $key)" ] || complain "line $line has no $key"
    done
done

# It may cost 1 us an operation; here, where other work may disturb, a pair gets twice as much. Over PCIe the end of a step,
# which peers are told, takes longer.
fast_gbs=100
(
    unset MUSTER_PLAN MUSTER_MULTIPROCESSORS
    measure --no-baseline --tokens 1,32 --compare-fault-tolerance --blocks 6 --iterations 4
)
lines_are 4
if awk -v gbs="$(field 1 link_rate_gbs)" -v fast=$fast_gbs 'BEGIN { exit !(gbs + 0 > fast) }'; then
    below 1 ft_cost_us 4
    below 3 ft_cost_us 4
fi

# The table says the same in words.
timeout -k 5 120 "$muster" perf ep --backend cuda --ranks 2 $quick --no-baseline --tokens 5 --hidden 256 --experts 8 \
    --compare-fault-tolerance >"$folder/out" 2>"$folder/err" || complain "no table"
says out '^# links carry [0-9.]+ GB/s from each GPU'
says out '^# no nccl: --no-baseline was given'
says out '^  cuda +caller +yes +2 +5 +256 .* 0\.[0-9]+ +[0-9.]+ +0 +-$'
says out '^  cuda +caller +no +2 +5 +256 '
says out '^# fault tolerance costs a pair -?[0-9.]+ us \(-?[0-9.]+ to -?[0-9.]+\)'

# Blocks of many tokens are shorter, unless it is said how long they are to be.
measure --no-baseline --blocks 1 --tokens 64,1024,4096 --hidden 128 --experts 8
is 1 iterations 30
is 2 iterations 7
is 3 iterations 3

# What a GPU has no memory for is left out: 60 TB.
perf --tokens 3,65536 --hidden 65536 --experts 4096 --dtype fp32 --layout expert
lines_are 1
is 1 tokens 3
says err 'left out: 65536 tokens need [0-9]+'
perf --tokens 65536 --hidden 65536 --experts 4096 --dtype fp32 --layout expert
[ $? = 1 ] || complain "nothing can be measured, and the exit status says otherwise"

# The same over NCCL, checked in the same way: its row is the last of each token count, after one of the library's, or two (in
# place, and the caller's arrays).
nccl() {
    local each=2 last line before
    case " $* " in
    *--layout\ rank* | *--layout\ flat*) each=3 ;;
    esac
    measure $quick --tokens 1,17,150 --hidden 1088 --topk 5 --experts 11 "$@"
    status=$?
    [ "$status" = 0 ] || complain "exit status $status: $*"
    lines_are $((3 * each))
    for last in 1 2 3; do
        line=$((last * each))
        is $line backend nccl
        is $line wrong 0
        is $line ft false
        is $line ratio 1.0
        is $line sms null
        for ((before = line - each + 1; before < line; before++)); do
            is $before backend cuda
            above $before ratio 0
        done
        for key in dispatch_us combine_us pair_graph_us link_gbs link_fraction; do
            above $line $key 0
        done
        fraction $line
    done
    above $line exchange_mb 0 # of one token nothing may leave the first rank
}
measure $quick --tokens 1 --hidden 128 --experts 8
if grep -q 'no nccl: it cannot be loaded' "$folder/err"; then
    sed -n 's/^.*no nccl: /skipped: NCCL: /p' "$folder/err"
else
    for mode in "" "--combine exact" "--layout rank" "--layout flat" "--dtype fp16" "--dtype fp32" "--layout flat --dtype fp16" \
        "--layout rank --dtype fp32" --flush; do
        nccl $mode
    done
    measure $quick --tokens 9 --hidden 128 --experts 8 --spoil
    [ $? = 1 ] || complain "a spoilt value leaves exit status 0"
    is 2 backend nccl
    above 2 wrong 0
fi
measure $quick --tokens 1 --hidden 128 --experts 8 --quantise fp8
lines_are 1
says err 'no nccl: it does neither way --quantise'

spoil

[ "$failed" = 0 ] && echo "perf on GPUs: all good"
exit "$failed"
