#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `muster perf ep --backend cuda` on small shapes, in every mode: no value is wrong, and each row has what readers of the
# JSON rely on. Needs two GPUs; elsewhere it says why it cannot be done.
set -u
. "$(dirname "$0")/checks.sh"

quick="--json --no-baseline --blocks 1 --iterations 2 --warmup 1"

# perf OPTIONS...: a measurement on two GPUs, output in $folder/out and $folder/err; its exit status
perf() { timeout -k 5 120 "$muster" perf ep --backend cuda --ranks 2 $quick "$@" >"$folder/out" 2>"$folder/err"; }

# Where there is no GPU, or one, or no backend, that is what the tool says.
perf --tokens 1 --hidden 128 --experts 8
status=$?
if [ "$status" != 0 ] && grep -qE 'there is no GPU|number of GPUs here|CUDA backend cannot be loaded' "$folder/err"; then
    sed -n 's/^/skipped: needs two GPUs: /;1p' "$folder/err"
    exit 77
fi
[ "$status" = 0 ] || complain "exit status $status"

keys="op backend ranks tokens hidden topk experts dtype combine ft dispatch_us combine_us pair_graph_us link_gbs sms exchange_mb"

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
            for key in dispatch_us combine_us pair_graph_us link_gbs sms exchange_mb; do
                above $line "$key" 0
            done
        done
    done
    [ "$(wc -l <"$folder/out")" = "$line" ] || complain "$(wc -l <"$folder/out") lines, wanted $line"
}

# mode OPTIONS...: one token, an odd number, more than a block has; experts that the ranks do not divide evenly
mode() {
    perf --tokens 1,17,150 --hidden 1088 --topk 5 --experts 11 "$@"
    status=$?
    [ "$status" = 0 ] || complain "exit status $status: $*"
    case " $* " in
    *--layout\ rank* | *--layout\ flat*) rows "in-place caller" 1 17 150 ;;
    *) rows caller 1 17 150 ;; # expert-major
    esac
}

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

# A wrong value is seen.
perf --tokens 9 --hidden 128 --experts 8 --spoil
[ $? = 1 ] || complain "a spoilt value leaves exit status 0"
above 1 wrong 0

[ "$failed" = 0 ] && echo "perf on GPUs: all good"
exit "$failed"
