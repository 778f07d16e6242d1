#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `muster demo`: nothing is lost and the text is the same, whoever is killed; and it says no when it has to.
set -u
muster=$1
failed=0

# field NAME: a number or word of the JSON object in $json
field() { sed -n "s/.*\"$1\": \\([^,}]*\\).*/\\1/p" <<<"$json"; }

# demo STATUS OPTIONS...
demo() {
    local wanted=$1
    shift
    json=$(timeout -k 5 100 "$muster" demo --json "$@" 2>/dev/null)
    local got=$?
    [ "$got" = "$wanted" ] || complain "exit status $got, wanted $wanted: demo $* gave $json"
    pgrep -f "^$muster worker" >/dev/null && complain "demo $* left a worker behind"
}

complain() {
    failed=1
    echo "FAILED: $*"
}

is() { [ "$(field "$1")" = "$2" ] || complain "$1 is $(field "$1"), wanted $2: $json"; }
above() { awk -v a="$(field "$1")" -v b="$2" 'BEGIN { exit !(a > b) }' || complain "$1 is not above $2: $json"; }

for victim in 0 1 2 3; do
    demo 0 --kill $victim@$((7 + 11 * victim)) --seed $victim
    is alive 3
    is epoch 2
    is tokens 1024
    is tokens_lost 0
    is identical true
    above remote_routes 0
    above experts_loaded 0
    above detect_ms 0
    above resume_ms 0
done

demo 0 --kill 1@20 --kill 2@20 # at once
is alive 2
is tokens_lost 0
demo 0 --stop 3@15
is alive 3
above detect_ms 900 # the deadline of an operation is 1 s
demo 0 --ranks 2 --kill 0@5 --tokens 24
is alive 1

demo 1 --kill 1@9999 # the run is over before: not what was asked for
demo 2 --kill 4@1
demo 2 --kill 1@1 --kill 1@2
demo 2 --ranks 1

# The trace is a JSON array with the fault in it, and its scratch folder is gone.
trace=$(mktemp)
demo 0 --kill 0@10 --trace "$trace"
grep -q '"SIGKILL"' "$trace" && head -n 1 "$trace" | grep -qx '\[' && tail -n 1 "$trace" | grep -qx '\]' ||
    complain "the trace is not what it should be"
rm -f "$trace"
ls -d /tmp/muster-trace-* >/dev/null 2>&1 && complain "a trace folder was left behind"

# A signal to the launcher ends the ranks too.
"$muster" demo --json >/dev/null 2>&1 &
launcher=$!
sleep 0.3
kill -INT $launcher
wait $launcher
[ $? = 1 ] || complain "an interrupted demo did not exit with 1"
pgrep -f "^$muster worker" >/dev/null && complain "an interrupted demo left a worker behind"

[ "$failed" = 0 ] && echo "demo: all good"
exit "$failed"
