#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `muster run` and the sidecar store, with real processes and signals: test_run.sh MUSTER PROGRAMS-FOLDER [TEST]
set -u
. "$(dirname "$0")/launching.sh"

test_prefixes() {
    launch 0 -n 3 -- sh -c 'echo "one $MUSTER_RANK of $MUSTER_RANKS"; echo two; echo bad >&2'
    for r in 0 1 2; do
        has out "[$r] one $r of 3"
        has out "[$r] two"
        has err "[$r] bad"
    done
    expect "lines: $(wc -l <out)" [ "$(wc -l <out)" = 6 ]
    launch 0 -n 1 printf 'no end'
    expect "a line without an end" [ "$(cat out)" = "[0] no end" ]
    launch 0 -n 2 sh -c 'head -c 10000 /dev/zero | tr "\0" x; echo; seq 20000'
    expect "long lines" [ "$(grep -c '^\[0\] xxx' out)" = 3 ]
    expect "bytes of a long line" [ "$(tr -cd x <out | wc -c)" = 20000 ]
    expect "many lines" [ "$(sed -n 's/^\[1\] \([0-9]*\)$/\1/p' out | sort -n | uniq | wc -l)" = 20000 ]
    launch 0 -n 2 --no-prefix sh -c 'echo plain'
    count_is out plain 2
    has_not out "["
}

test_environment() {
    MUSTER_RANK=7 MUSTER_STORE=fd:99 launch 0 -n 2 -- sh -c 'env | grep -c "^MUSTER_RANK="; cat; echo end'
    has out "[0] 1"
    has out "[1] end"
    launch 0 -n 1 echo -n 4 -- --respawn
    has out "[0] 4 -- --respawn"
}

test_exit_status() {
    launch 0 -n 4 true
    expect "silence" [ ! -s err ]
    launch 3 -n 4 bash -c '[ $MUSTER_RANK = 2 ] && exit 3; until_err "go on"; exit 0'
    has err "rank 2"
    has err "exited with status 3; 3 of 4 ranks go on"
    launch 4 -n 3 bash -c '[ $MUSTER_RANK = 0 ] || until_err "rank $((MUSTER_RANK - 1))"; exit $((4 + MUSTER_RANK))'
    launch 0 -n 3 bash -c '[ $MUSTER_RANK = 1 ] && kill -KILL $$; until_err "go on"'
    has err "was killed by SIGKILL; 2 of 3 ranks go on"
    launch 6 -n 3 bash -c '[ $MUSTER_RANK = 1 ] && kill -KILL $$; until_err "go on"; exit $((MUSTER_RANK * 3))'
    launch 137 -n 2 sh -c 'kill -KILL $$'
    launch 139 -n 1 sh -c 'kill -SEGV $$'
    launch 127 -n 2 ./there-is-none
    has err "cannot execute ./there-is-none: No such file or directory"
    : >not-executable
    launch 126 -n 1 ./not-executable
}

test_usage() {
    launch 2 true
    launch 2 -n 2
    launch 2 -n 0 true
    launch 2 -n 129 true
    has err "must be a number from 1 to 128"
    launch 2 -n 2 --min-ranks 3 true
    launch 2 -n x true
    launch 2 -n 2 --no-such-option true
    launch 0 --help
    has out "Exit status"
}

test_min_ranks() {
    launch 1 -n 4 --min-ranks 3 sh -c '[ $MUSTER_RANK -lt 2 ] && kill -KILL $$; exec sleep 60'
    has err "2 of 4 ranks are left, fewer than --min-ranks 3"
    launch 0 -n 4 --min-ranks 3 sh -c '[ $MUSTER_RANK = 3 ] && kill -KILL $$; sleep 0.3'
}

test_respawn() {
    launch 0 -n 3 --respawn sh -c '[ $MUSTER_RANK = 1 ] || exec "$0" @again
        mkdir once 2>/dev/null && { "$0" 0; kill -KILL $$; }
        "$0" 0 && touch again' "$rank"
    has err "rank 1"
    has err "it is started again"
    has out "[1] rank 1 of 3 arrived, incarnation 1"
    has out "[1] rank 1 of 3 arrived, incarnation 2"
    has out "[0] rank 0 of 3 arrived, incarnation 1"
    launch 9 -n 2 --respawn=3 sh -c '[ $MUSTER_RANK = 0 ] && { echo try; exit 9; }
        until [ "$(grep -cF "[0] try" out)" = 4 ]; do sleep 0.05; done'
    count_is out "[0] try" 4
    launch 127 -n 1 --respawn ./there-is-none
    count_is err "cannot execute" 1
    # Nobody is started again once a rank has finished.
    launch 0 -n 2 --respawn sh -c '[ $MUSTER_RANK = 0 ] && { echo $$ >zero; exit 0; }
        until [ -s zero ] && ! kill -0 "$(cat zero)" 2>/dev/null; do sleep 0.05; done # the launcher has seen it end
        echo try; kill -KILL $$'
    count_is out "[1] try" 1
}

# The next program over the same connection is a new incarnation, so a wrapper script may start several.
test_wrapper() {
    launch 0 -n 2 sh -c '"$0" 0; "$0" 100; "$0" 0 && true' "$rank"
    for r in 0 1; do
        for incarnation in 1 2 3; do
            has out "[$r] rank $r of 2 arrived, incarnation $incarnation"
        done
    done
    launch 0 -n 2 bash -c '"$0" 60000 & until_out "rank $MUSTER_RANK of 2 arrived, incarnation 1"; kill -KILL $!
        exec "$0" 100' "$rank"
    for r in 0 1; do
        has out "[$r] rank $r of 2 arrived, incarnation 2"
    done
}

one_does_not_arrive() {
    launch 1 -n 3 --start-timeout "$1" sh -c '[ $MUSTER_RANK = 1 ] && exec sleep 600; exec "$0" 600000' "$rank"
    has err "rank 1 (process"
    has err "did not arrive within $1 s"
    has_not err "rank 0"
    has_not err "rank 2"
}

all_arrive() { launch 0 -n 2 --start-timeout "$1" "$rank" $((2000 * $1)); }

# Started again, and never arriving: that process is killed, the others go on.
one_arrives_only_once() {
    rm -rf late
    launch 0 -n 2 --start-timeout "$1" --respawn=1 sh -c '[ $MUSTER_RANK = 0 ] && exec "$0" $((3000 * $1))
        mkdir late 2>/dev/null && { "$0" 0; kill -KILL $$; }; exec sleep 600' "$rank" "$1"
    has err "started again, did not arrive: killed"
}

test_start_timeout() {
    in_time one_does_not_arrive
    in_time all_arrive
    launch 0 -n 1 --start-timeout 0 sleep 1.5
    MUSTER_START_TIMEOUT_US=500000 launch 1 -n 1 sleep 600
    in_time one_arrives_only_once
}

test_signals() {
    local start
    interrupted 130 INT -n 2 bash -c 'trap "echo caught; exit 0" INT; echo up; while :; do sleep 0.1; done'
    has out "[0] caught"
    has out "[1] caught"
    interrupted 143 TERM -n 2 sh -c 'echo up; exec sleep 60'
    interrupted 129 HUP -n 2 sh -c 'echo up; exec sleep 60'
    start=$SECONDS
    interrupted 143 TERM -n 2 --grace 1 bash -c 'trap "" TERM; echo up; while :; do sleep 0.1; done'
    expect "the grace: $((SECONDS - start)) s" [ $((SECONDS - start)) -lt 300 ]
    start=$SECONDS
    again=1 interrupted 143 TERM -n 2 --grace 600 bash -c 'trap "" TERM; echo up; while :; do sleep 0.1; done'
    expect "a second signal: $((SECONDS - start)) s" [ $((SECONDS - start)) -lt 300 ]
    interrupted 143 TERM -n 2 --grace 1 sh -c 'echo up; kill -STOP $$'
    interrupted 143 TERM -n 2 --respawn sh -c 'echo up; exec sleep 60'
}

test_nothing_is_left_behind() {
    launch 0 -n 2 sh -c 'sleep 60 & exit 0'
    launch 137 -n 1 sh -c 'sleep 60 & kill -KILL $$'
    launch 0 -n 2 sh -c 'setsid sleep 60 & exit 0'
    interrupted 143 TERM -n 2 sh -c 'setsid sleep 60 & sleep 60 & echo up; wait'
    # The launcher itself is killed: the ranks die with it, and a rank behind a wrapper loses its store and ends.
    : >out
    RUN_TEST_TAG=$tag "$muster" run --no-prefix -n 2 sh -c '"$0" 60000; true' "$rank" >out 2>err &
    local pid=$!
    wait_for out "rank 0 of 2 arrived"
    wait_for out "rank 1 of 2 arrived"
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null
    no_leftovers
}

# Nobody reads: the job ends. Somebody reads slowly: the job waits, and the store goes on serving.
test_output_readers() {
    local status
    RUN_TEST_TAG=$tag timeout 120 "$muster" run -n 2 yes 2>err | head -n 2 >out
    status=${PIPESTATUS[0]}
    expect "exit status $status when nobody reads, wanted 141" [ "$status" = 141 ]
    no_leftovers
    in_time slow_reader
}

# Of a store that is not served for a lease, ranks say that it is lost.
slow_reader() {
    local status
    MUSTER_LEASE_US=$(($1 * 300000)) RUN_TEST_TAG=$tag timeout 120 "$muster" run -n 2 sh -c \
        '[ $MUSTER_RANK = 0 ] && { yes | head -n 200000; exit; }; exec "$0" $((2000 * $1))' "$rank" "$1" 2>err |
        { sleep $((5 * $1 / 2)).5; cat; } >out
    status=${PIPESTATUS[0]}
    expect "exit status $status with a slow reader" [ "$status" = 0 ]
    count_is out "[0] y" 200000
    has out "[1] rank 1 of 2 arrived"
    has_not out "the store was lost"
    no_leftovers
}

# sidecar JOB VARIABLES...: two ranks of a job that another launcher might have started; output in out and err.
sidecar() {
    local pids=() r status=0
    : >out
    : >err
    for r in 0 1; do
        env RUN_TEST_TAG=$tag "${@//%r/$r}" "$rank" 300 >>out 2>>err &
        pids+=($!)
    done
    for r in "${pids[@]}"; do
        wait "$r" || status=1
    done
    expect "a rank of $* failed" [ $status = 0 ]
    has out "rank 0 of 2 arrived, incarnation 1"
    has out "rank 1 of 2 arrived, incarnation 1"
}

test_sidecar() {
    sidecar RANK=%r WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 TORCHELASTIC_RUN_ID="$tag" MASTER_PORT=1
    sidecar RANK=%r WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 TORCHELASTIC_RUN_ID="$tag" MASTER_PORT=1 TORCHELASTIC_RESTART_COUNT=1
    sidecar OMPI_COMM_WORLD_RANK=%r OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=2 PMIX_NAMESPACE="$tag"
    sidecar SLURM_PROCID=%r SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1 SLURM_JOB_ID="$tag" SLURM_STEP_ID=0
    # A script's copy of what SLURM says: SLURM names the job.
    sidecar RANK=%r WORLD_SIZE=2 SLURM_PROCID=%r SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1 SLURM_JOB_ID="$tag" SLURM_STEP_ID=1
    # mpirun and torchrun inside of an allocation.
    sidecar OMPI_COMM_WORLD_RANK=%r OMPI_COMM_WORLD_SIZE=2 PMIX_NAMESPACE="$tag.2" SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_JOB_ID="$tag"
    sidecar RANK=%r WORLD_SIZE=2 MASTER_PORT=1 TORCHELASTIC_RUN_ID="$tag.2" SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_JOB_ID="$tag" SLURM_STEP_ID=0
    expect "sidecars serve after their ranks" [ -n "$(tagged)" ]
    no_leftovers # they end by themselves
    refused "all ranks must be on one host" \
        RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=1 TORCHELASTIC_RUN_ID="$tag" MASTER_PORT=1
    refused "all ranks must be on one host" \
        SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=2 SLURM_JOB_ID="$tag" SLURM_STEP_ID=0
    refused "SLURM_PROCID=\"x\" is not a number" SLURM_PROCID=x SLURM_NTASKS=2 SLURM_JOB_ID=1
    refused "rank is 2; with 2 ranks it must be 0..1" SLURM_PROCID=2 SLURM_NTASKS=2 SLURM_JOB_ID=1
    refused "Open MPI says OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2" \
        RANK=0 WORLD_SIZE=1 MASTER_PORT=1 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 PMIX_NAMESPACE="$tag"
    refused "all ranks must be on one host" \
        RANK=0 WORLD_SIZE=2 SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=2 SLURM_JOB_ID="$tag" SLURM_STEP_ID=0
    refused "nothing says which rank this is" NOTHING=1
    refused "nothing says where the store is" MUSTER_RANK=0 MUSTER_RANKS=1
    refused "MUSTER_TOOL=/nowhere is not a program" \
        SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_JOB_ID="$tag-none" MUSTER_TOOL=/nowhere
    no_leftovers
}

refused() { # TEXT VARIABLES...
    local text=$1
    shift
    : >out
    env "$@" "$rank" 0 >out 2>err
    expect "exit status with $*" [ $? = 71 ]
    has err "$text"
}

run_tests "${3:-}"
exit $failed
