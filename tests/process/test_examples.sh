#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The examples beside the tool, as their comments say to run them: three ranks, of which two are killed one after the other.
# The last one must have done good steps before the first kill, and between the two.
set -u
. "$(dirname "$0")/checks.sh"
export MUSTER_OPERATION_TIMEOUT_US=60000000 # nobody is to be judged by a deadline that a busy machine does not keep
export MUSTER_MULTIPROCESSORS=${MUSTER_MULTIPROCESSORS:-16} # ranks may share a GPU
ran=0

# await COUNT TEXT: until so many lines of the output say it; false if that takes more than a minute
await() {
    local tries
    for tries in $(seq 600); do
        [ "$(grep -cE -e "$2" "$folder/out")" -ge "$1" ] && return 0
        kill -0 "$job" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}

# good RANKS: how many good steps the last rank had done when so many were here
good() { grep -E "^\[2\] epoch [0-9]+: $1 ranks are here" "$folder/out" | tail -n 1 | sed -E 's/.* here, ([0-9]+) good.*/\1/'; }

# survive PROGRAM: false if its ranks did not come together; it runs for ever, so all of it has a deadline. Ranks do steps
# for a second before each kill; on a busy machine for longer, if they did none.
survive() {
    local second
    for second in 1 5 25; do
        survive_kills "$1" "$second" || return 1
        [ "$(good 2)" -gt 0 ] && [ "$(good 1)" -gt "$(good 2)" ] && break
    done
    [ "$(good 2)" -gt 0 ] || complain "no good step before the first kill"
    [ "$(good 1)" -gt "$(good 2)" ] || complain "no good step after it"
    says_not err 'wrong result|did not come home'
    ran=1
}

# survive_kills PROGRAM SECONDS
survive_kills() {
    local program=$1
    : >"$folder/out"
    # shellcheck disable=SC2016
    timeout -k 5 180 "$muster" run -n 3 sh -c 'echo $$ >"$0.$MUSTER_RANK"; exec "$1"' "$folder/pid" "$program" >"$folder/out" 2>"$folder/err" &
    job=$!
    if ! await 3 ': 3 ranks are here'; then
        wait "$job"
        return 1
    fi
    for victim in 0 1; do
        sleep "$2"
        kill -KILL "$(cat "$folder/pid.$victim")"
        await $((2 - victim)) ": $((2 - victim)) ranks are here" || complain "no view without rank $victim"
    done
    sleep "$2"
    kill -KILL "$(cat "$folder/pid.2")"
    wait "$job"
    return 0
}

here=$(dirname "$muster")
if [ -x "$here/example_survive" ]; then
    survive "$here/example_survive" || complain "example_survive did not start"
fi
if [ -x "$here/example_replay" ] && ! survive "$here/example_replay"; then
    says err 'preparing the device: ' # there is no GPU
    sed -n 's/^/skipped: example_replay: /;1p' "$folder/err"
fi
[ "$ran" = 1 ] || complain "no example ran"
[ "$failed" = 0 ] && echo "examples: all good"
exit "$failed"
