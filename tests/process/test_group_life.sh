#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The life of a group beyond one set of processes, with real processes and signals: test_group_life.sh MUSTER PROGRAMS [TEST]
set -u
. "$(dirname "$0")/checks.sh"
muster=$(realpath -e "$1") && life=$(realpath -e "$2/group_life") || exit 1

# background ARGUMENTS...: `muster run` in a session of its own; `job` is its process and the number of its group
background() {
    : >"$folder/out"
    timeout -k 5 120 setsid "$muster" run "$@" >"$folder/out" 2>"$folder/err" &
    waiter=$!
    local tries
    for tries in $(seq 600); do
        job=$(pgrep -P "$waiter" | head -n 1)
        [ -n "$job" ] && return
        sleep 0.02
    done
    complain "nothing was started"
}

# await COUNT TEXT: until so many lines of the output say it; false if the job has ended, or a minute has passed
await() {
    local tries
    for tries in $(seq 1200); do
        [ "$(grep -cE -e "$2" "$folder/out")" -ge "$1" ] && return 0
        kill -0 "$waiter" 2>/dev/null || break
        sleep 0.05
    done
    [ "$(grep -cE -e "$2" "$folder/out")" -ge "$1" ] && return 0
    complain "no $1 lines say \"$2\""
    return 1
}

# ends STATUS
ends() {
    wait "$waiter"
    local got=$?
    [ "$got" = "$1" ] || complain "exit status $got, wanted $1"
}

count() { grep -cE -e "$1" "$folder/out"; }
said() { [ "$(count "$2")" = "$1" ] || complain "\"$2\" was said $(count "$2") times, wanted $1"; }
ranks() { sed -nE 's/.*life [0-9]+: process ([0-9]+)$/\1/p' "$folder/out" | tail -n "$1"; }

test_a_program_creates_its_group_again() {
    call 0 run -n 1 "$life" 3 5
    said 3 'is over: 0 void'
    call 0 run -n 4 "$life" 3 5
    said 4 'life 3 is over'
}

test_two_programs_in_one_script() {
    call 0 run -n 4 sh -c '"$0" 1 5 && exec "$0" 1 10' "$life"
    said 8 'life 1 is over'
}

# sidecar RANKS: a job of that size, whose sidecar has the same name as the one before
sidecar() {
    local r pids=
    : >"$folder/out"
    for r in $(seq 0 $(($1 - 1))); do
        env SLURM_PROCID="$r" SLURM_NTASKS="$1" SLURM_JOB_ID="group-life-$$" MUSTER_TOOL="$muster" \
            timeout -k 5 60 "$life" 1 5 >>"$folder/out" 2>>"$folder/err" &
        pids+=" $!"
    done
    for r in $pids; do wait "$r" || complain "a rank of $1 failed"; done
    said "$1" 'is over: 0 void'
}

test_a_sidecar_serves_one_job_after_another() {
    sidecar 2
    sidecar 2
    sidecar 3
    sidecar 1
}

test_nobody_loses_its_last_step() {
    local i
    for i in $(seq 10); do
        call 0 run -n 4 "$life" 1 10
        said 4 'is over: 0 void'
    done
}

test_all_are_killed_at_once_and_come_again() {
    background -n 4 --respawn "$life" 1 1000000 1
    await 4 'epoch 1: 4 ranks' || return
    sleep 0.3
    # shellcheck disable=SC2046
    kill -KILL $(ranks 4)
    await 8 'epoch [0-9]+: 4 ranks'
    kill -TERM "$job"
    ends 143
    says_not out 'wrong|creating|waiting'
}

# Three of four are needed, two are killed: the others end as well, and all four come again.
test_too_few_are_left_and_all_come_again() {
    local killed
    MUSTER_TEST_MIN_RANKS=3 background -n 4 --respawn=20 sh -c '"$0" 1 1000000 1; "$0" 1 1000000 1' "$life"
    await 4 'epoch 1: 4 ranks' || return
    killed=$(ranks 4 | head -n 2)
    # shellcheck disable=SC2086
    kill -KILL $killed
    await 8 'epoch [0-9]+: 4 ranks'
    kill -TERM "$job"
    wait "$waiter"
    says_not out 'wrong'
}

# A paused container, a suspended machine: nobody runs, and nobody is to blame, though one rank computes and all others have
# waited for it past their deadline.
test_a_pause_of_the_whole_job_costs_nobody() {
    local i all
    MUSTER_TEST_DEADLINE_MS=2000 MUSTER_TEST_COMPUTE_MS=300 background -n 4 "$life" 1 1000000
    await 4 'epoch 1: 4 ranks' || return
    all="$job $(ranks 4 | tr '\n' ' ')"
    for i in 1 2 3; do
        sleep 0.${i}7
        # shellcheck disable=SC2086
        kill -STOP $all
        sleep 2.5
        # shellcheck disable=SC2086
        kill -CONT $all
    done
    sleep 1
    kill -TERM "$job"
    ends 143
    says_not out ': [123] ranks'
    says_not err 'died|killed by|EVICTED'
}

for t in $(if [ $# -gt 2 ]; then echo "$3"; else declare -F | sed -n 's/^declare -f \(test_.*\)/\1/p'; fi); do
    before=$failed
    "$t"
    [ "$failed" = "$before" ] || echo "FAILED: $t"
done
exit "$failed"
