#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `muster demo`: nothing is lost and the answers are the same, whoever is killed; and it says no when it has to.
set -u
muster=$1
failed=0
# Deaths are seen by themselves; nobody is to be judged by a deadline that a busy machine does not keep.
export MUSTER_OPERATION_TIMEOUT_US=60000000

# field NAME: the first number or word of that name in the JSON object in $json
field() { grep -o "\"$1\": [^,}]*" <<<"$json" | head -n 1 | cut -d ' ' -f 2; }

complain() {
    failed=1
    echo "FAILED: $*"
}

nobody_left() { pgrep -f "^$muster worker" >/dev/null && complain "$* left a worker behind"; }
soon_nobody_left() {
    for _ in $(seq 600); do
        pgrep -f "^$muster worker" >/dev/null || return
        sleep 0.1
    done
    complain "$* left a worker behind"
}

# demo STATUS OPTIONS...
demo() {
    local wanted=$1
    shift
    json=$(timeout -k 5 200 "$muster" demo --json "$@" 2>/dev/null)
    local got=$?
    [ "$got" = "$wanted" ] || complain "exit status $got, wanted $wanted: demo $* gave $json"
    nobody_left "demo $*"
}

is() { [ "$(field "$1")" = "$2" ] || complain "$1 is $(field "$1"), wanted $2: $json"; }
above() { awk -v a="$(field "$1")" -v b="$2" 'BEGIN { exit !(a > b) }' || complain "$1 is not above $2: $json"; }

# Whatever happens to however many ranks: 1024 tokens, always the same ones.
answers=
same_answers() {
    : "${answers:=$(field answers)}"
    is tokens 1024
    is tokens_lost 0
    is identical true
    is distinct true
    is answers "$answers"
}

for victim in 0 1 2 3; do
    demo 0 --kill $victim@$((7 + 11 * victim)) --seed $victim
    is ranks 4
    is alive 3
    is epoch 2
    is rank $victim
    is happened true
    for figure in detect_ms agree_ms weights_ms resume_ms tokens_per_s remote_routes experts_loaded; do
        above $figure 0
    done
    same_answers
done

demo 0 --kill 1@20 --kill 2@20 # at once
is alive 2
same_answers
demo 0 --kill 3@20 --kill 0@30 --seed 5 # one after the other
is alive 2
is epoch 3
same_answers
# A rank that is stopped is found by the deadline alone; a longer one if another was late, too. Answers are never wrong.
for deadline_s in 1 4 16; do
    MUSTER_OPERATION_TIMEOUT_US=${deadline_s}000000 demo 0 --stop 3@15
    same_answers
    [ "$(field alive)" = 3 ] && break
    echo "others than the stopped rank missed a deadline of $deadline_s s: $json"
done
is alive 3
above detect_ms $((deadline_s * 900))
above agree_ms 0
demo 0 --ranks 2 --kill 0@5
is alive 1
same_answers
demo 0 --ranks 7
is alive 6
above remote_routes 0
same_answers

demo 1 --kill 1@9999 # the run is over before: not what was asked for
is happened false
is identical true
demo 2 --kill 4@1
demo 2 --kill 1@1 --kill 1@2
demo 2 --kill 1@
demo 2 --kill 1@1x
demo 2 --kill 1@-1
demo 2 --ranks 1
demo 1 --model /nonexistent
demo 1 --prompts /nonexistent

# Two prompts may have the same answer. It is said, but both are what they are without a fault.
prompts=$(mktemp)
printf 'And it came to pass\nAnd it came to pass\n' >"$prompts"
demo 0 --prompts "$prompts" --tokens 8
is tokens_lost 0
is identical true
is distinct false
rm -f "$prompts"
demo 0 --tokens 8
is tokens 128
is identical true
is distinct false

# The trace is a JSON array, an event a line: of the survivors, the launcher and the fault.
trace=$(mktemp)
demo 0 --kill 0@10 --trace "$trace"
for event in '"SIGKILL"' '"name":"dispatch","ph":"X","pid":1' '"name":"load weights","ph":"X","pid":3' 'rank 0 died' '"launcher"'; do
    grep -q -e "$event" "$trace" || complain "there is no $event in the trace"
done
[ "$(head -n 1 "$trace")" = "[" ] && [ "$(tail -n 1 "$trace")" = "]" ] || complain "the trace is no array"
sed '1d;$d' "$trace" | sed '$d' | grep -qv '^{.*},$' && complain "a line of the trace is no element"
sed '$d' "$trace" | tail -n 1 | grep -q '^{.*}$' || complain "the last element of the trace is not the last"
rm -f "$trace"

# A signal to the launcher ends the ranks too, also one that it cannot catch. A run that was over before it is repeated.
interrupt() {
    "$muster" demo --json --tokens 500 >/dev/null 2>&1 &
    local launcher=$!
    for _ in $(seq 3000); do
        pgrep -f "^$muster worker" >/dev/null && break
        kill -0 $launcher 2>/dev/null || break
        sleep 0.02
    done
    kill "-$1" $launcher 2>/dev/null
    wait $launcher 2>/dev/null
}
interrupted() {
    local status=0 attempt
    for attempt in 1 2 3 4 5; do
        interrupt "$1"
        status=$?
        [ "$status" = 0 ] || break
    done
    [ "$status" = "$2" ] || complain "SIG$1: exit status $status, wanted $2"
    $3 "SIG$1"
}
interrupted INT 1 nobody_left
interrupted TERM 1 nobody_left
interrupted KILL 137 soon_nobody_left

[ "$failed" = 0 ] && echo "demo: all good"
exit "$failed"
