#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `muster chaos cpu`: survivors survive, and what it says of them is complete and can be parsed; a wrong byte, a group that
# hangs and a survivor with an error are seen.
set -u
. "$(dirname "$0")/checks.sh"

# The object of a kind.
object() { grep -F "\"kind\": \"$1\"" "$folder/out"; }

# Who is stopped or hangs is found by the deadline. If another misses it, too, the machine is slow: then with a longer one.
# Wrong bytes are never forgiven.
campaign() {
    local deadline_ms status
    for deadline_ms in 150 600 2400; do
        timeout -k 5 300 "$muster" chaos cpu --trials 20 --ranks 3 --timeout-ms $deadline_ms --json >"$folder/out" 2>"$folder/err"
        status=$?
        is all wrong_bytes 0
        [ $status = 0 ] && break
        head -n 3 "$folder/err" | sed "s/^/with $deadline_ms ms: /"
    done
    [ $status = 0 ] || complain "exit status $status, also with a deadline of $deadline_ms ms"
    quiet
    parses
    for kind in kill stop hang between; do
        is $kind trials 5
    done
    for kind in kill stop hang between all; do
        is $kind errors 0
        is $kind hangs 0
        is $kind wrong_bytes 0
        above $kind void_steps 0
        above $kind good_steps 0
        above $kind detect_p50_ms 0
        above $kind agree_p50_ms 0
        above $kind resume_p99_ms "$(field $kind agree_p50_ms)"
    done
    is all trials 20
    is all backend cpu
    is all ranks 3
    is all timeout_ms $deadline_ms
    # Nobody is told of a rank that is stopped or hangs: the deadline must have found it.
    above stop detect_p50_ms $((deadline_ms * 2 / 3))
    above hang detect_p50_ms $((deadline_ms * 2 / 3))
}

table() {
    call 0 chaos cpu --trials 3 --ranks 2 --kinds between,kill --hidden 64 --tokens 5 --topk 3 --experts 2 --seed 9 \
        --timeout-ms 30000
    quiet
    says out '^# muster .* 3 faults in a group of 2 ranks on the CPU$'
    says out '^# 5 tokens of 64 bf16, top-3, 2 experts a rank; operation timeout 30000 ms; seed 9$'
    says out '^  between +2 +0 +0 +0 '
    says out '^  kill +1 +0 +0 +0 '
    says out '^  all +3 +0 +0 +0 '
    [ "$(grep -c '^  ' "$folder/out")" = 3 ] || complain "there are rows of other kinds"
}

# Few steps are spoiled, and of a busy machine's some trials have none that is good.
wrong_bytes_are_seen() {
    call 1 chaos cpu --trials 40 --ranks 3 --kinds kill --spoil --timeout-ms 30000 --json
    above all wrong_bytes 0
    is all errors 0
    is all hangs 0
}

# Each process stops itself at the fourth view that it begins: who outlives two victims in a row then is nobody's peer.
hangs_are_seen() {
    local deadline_ms
    for deadline_ms in 50 200 800; do # longer, if a survivor missed it too
        MUSTER_FENCE_TIMEOUT_US=500000 MUSTER_FAULT=view.begun:STOP:4 \
            call 1 chaos cpu --trials 4 --ranks 2 --timeout-ms $deadline_ms --kinds kill --json
        [ "$(field all errors)" = 0 ] && break
    done
    is all trials 4
    above all hangs 0
    is all errors 0
    says err 'trial [0-9]+ \(kill, rank [01], .*: hang: the survivors have not .*rank [01] waits for a view'
}

# A group that has used up its epochs at the first fault: survivors stop with an error.
errors_are_seen() {
    MUSTER_FIRST_EPOCH=16777214 call 1 chaos cpu --trials 2 --ranks 2 --kinds kill --timeout-ms 30000 --json
    is all trials 2
    is all errors 2
    is all hangs 0
    is all detect_p50_ms null
    says err 'trial 0 \(kill, rank [01], .*: error: rank [01]: .*MUSTER_ERR_EXHAUSTED: '
}

usage() {
    call 0 chaos --help
    call 0 chaos cpu --help
    says out '^Examples:'
    call 0 chaos gpu --help
    says out '^Exit status: 0 if there'
    call 2 chaos
    call 2 chaos tpu
    says err 'nothing called "tpu"'
    call 2 chaos cpu --ranks 1
    says err '--ranks is "1"; it must be a number from 2 to 128'
    call 2 chaos cpu --kinds kill,fire
    says err '--kinds has "fire"'
    call 2 chaos cpu --trials 0
    says err '--trials is "0"'
    call 2 chaos gpu --hidden 12
    says err 'hidden = 12'
    call 2 chaos cpu --topk 33
    says err '--topk is "33"; it must be a number from 1 to 32'
    call 2 chaos cpu more
}

# Nothing is left of a campaign that is killed.
killed() {
    local tool waited=0 children
    "$muster" chaos cpu >"$folder/out" 2>"$folder/err" &
    tool=$!
    until [ "$(pgrep -c -P $tool)" = 4 ] || [ $((waited += 1)) -gt 3000 ]; do
        sleep 0.02
    done
    children=$(pgrep -P $tool)
    [ -n "$children" ] || complain "there are no ranks to see"
    kill -KILL $tool 2>/dev/null
    wait $tool 2>/dev/null
    for waited in $(seq 1200); do
        ps -o pid= -p "$(echo $children | tr ' ' ,)" >/dev/null || return
        sleep 0.05
    done
    complain "these outlived the tool: $children"
}

campaign
table
wrong_bytes_are_seen
hangs_are_seen
errors_are_seen
usage
killed

[ "$failed" = 0 ] && echo "chaos on the CPU: all good"
exit "$failed"
