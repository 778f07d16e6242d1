#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What may be wrong around a launch: what the launcher inherits, limits, disks, readers, wrappers, ranks that fail at the
# start. Real processes and signals: test_launch_faults.sh MUSTER PROGRAMS-FOLDER [TEST]
set -u
. "$(dirname "$0")/launching.sh"

# Whoever starts the tool may ignore signals, block them, and have closed its streams.
test_inherited_signals() {
    local signals="$programs/with_signals"
    inherit=("$signals" ignore CHLD --)
    launch 3 -n 2 sh -c 'exit $((MUSTER_RANK * 3))'
    has err "exited with status 3"
    inherit=("$signals" ignore CHLD PIPE INT TERM --)
    launch 0 -n 2 --respawn=1 sh -c \
        'mkdir "once$MUSTER_RANK" 2>/dev/null || exit 0; kill -TERM $$; sleep 60'
    has err "was killed by SIGTERM; it is started again"
    inherit=("$signals" block CHLD TERM INT --)
    local start=$SECONDS
    interrupted 143 TERM -n 2 --grace 60 sh -c 'echo up; exec sleep 60'
    interrupted 130 INT -n 2 --grace 60 sh -c 'echo up; exec sleep 60'
    expect "signals that were blocked did not reach the ranks: $((SECONDS - start)) s" [ $((SECONDS - start)) -lt 60 ]
    inherit=(env)
}

# The other subcommands have processes, too.
test_inherited_by_others() {
    timeout -k 5 60 "$programs/with_signals" ignore CHLD -- "$muster" demo --seed 1 --no-view >out 2>err
    expect "muster demo with SIGCHLD ignored: status $?" [ $? = 0 ]
    timeout -k 5 60 "$programs/with_signals" ignore CHLD -- "$muster" perf ep --no-baseline --blocks 2 --iterations 20 \
        --warmup 5 --tokens 3 >out 2>err
    expect "muster perf with SIGCHLD ignored: status $?" [ $? = 0 ]
}

# A terminal that stops whoever writes from the background must not stop the store with the launcher.
test_background_of_a_terminal() {
    command -v script >/dev/null || return
    cat >tostop <<'END'
set -m
stty tostop
"$MUSTER_UNDER_TEST" run -n 2 sh -c 'echo through' &
for i in $(seq 300); do
    kill -0 $! 2>/dev/null || break
    sleep 0.1
done
kill -KILL $! 2>/dev/null
END
    MUSTER_UNDER_TEST=$muster RUN_TEST_TAG=$tag script -qec "bash ./tostop" /dev/null </dev/null >out 2>err
    has out "[0] through"
    has out "[1] through"
    no_leftovers
}

test_inherited_streams() {
    RUN_TEST_TAG=$tag timeout -k 5 60 "$muster" run -n 2 sh -c 'echo "$(readlink /proc/self/fd/0)" >>seen' <&- >&- 2>&-
    expect "closed streams: status $?" [ $? = 0 ]
    : >out
    : >err
    count_is seen /dev/null 2
    timeout -k 5 60 "$muster" perf ep --no-baseline --blocks 2 --iterations 20 --warmup 5 --tokens 3 <&- >&- 2>err
    expect "muster perf with closed streams: status $?" [ $? = 0 ]
    no_leftovers
}

# A disk that is full ends nobody: it is told once, the ranks go on, and the exit status tells it at the end.
full() { # STATUS OPTIONS...: with stdout on a full disk
    local wanted=$1 got
    shift
    RUN_TEST_TAG=$tag timeout -k 5 60 "$muster" run "$@" >/dev/full 2>err
    got=$?
    : >out
    expect "exit status $got on a full disk, wanted $wanted" [ "$got" = "$wanted" ]
    no_leftovers
}

test_full_disk() {
    [ -e /dev/full ] || return
    rm -f done_*
    full 1 -n 2 sh -c 'seq 5000; : >done_$MUSTER_RANK'
    expect "the ranks did not go on" [ -e done_0 -a -e done_1 ]
    count_is err "stdout cannot be written: No space left on device" 1
    full 5 -n 1 sh -c 'echo something; exit 5'
    RUN_TEST_TAG=$tag timeout -k 5 60 "$muster" run -n 1 sh -c 'echo lost >&2; echo done' 2>/dev/full >out
    expect "exit status $? with stderr on a full disk, wanted 1" [ $? = 1 ]
    has out "[0] done"
    # A file that has reached its limit.
    (
        ulimit -f 1
        trap '' XFSZ # for the shell's own
        exec timeout -k 5 60 "$muster" run -n 1 sh -c 'seq 5000; echo "after all" >&2; exit 0' >limited 2>err
    )
    expect "exit status $? at the limit of a file, wanted 1" [ $? = 1 ]
    has err "stdout cannot be written: File too large"
    has err "[0] after all"
    for command in info "info --json" --help --version "run --help"; do
        "$muster" $command >/dev/full 2>err
        expect "exit status $? of muster $command on a full disk, wanted 1" [ $? = 1 ]
        has err "stdout cannot be written"
    done
}

# Nobody reads any more: that is noticed although nothing more is printed.
test_reader_goes() {
    local start=$SECONDS status
    for prefix in "" --no-prefix; do
        RUN_TEST_TAG=$tag timeout -k 5 60 "$muster" run $prefix -n 2 sh -c 'echo up; exec sleep 600' 2>err | head -n 1 >out
        status=${PIPESTATUS[0]}
        expect "exit status $status when the reader has gone, wanted 141" [ "$status" = 141 ]
        no_leftovers
    done
    expect "noticed after $((SECONDS - start)) s" [ $((SECONDS - start)) -lt 50 ]
    # Nobody reads stderr: that is no reason to end.
    { RUN_TEST_TAG=$tag timeout -k 5 60 "$muster" run -n 1 sh -c 'sleep 0.5; echo lost >&2; echo done' 2>&3 >out; } 3> >(exec true)
    expect "exit status $? when nobody reads stderr" [ $? = 0 ]
    has out "[0] done"
}

# A folder named like the tool, or a file that is none, is passed over.
test_folder_named_muster() {
    mkdir -p path/one/muster path/two path/three
    : >path/two/muster
    ln -sf "$muster" path/three/muster
    cp "$rank" alone # beside no tool
    for places in path/one path/one:path/two:path/three; do
        env -u MUSTER_TOOL RUN_TEST_TAG=$tag SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_JOB_ID="$tag-$places" \
            PATH="$places:/usr/bin:/bin" timeout -k 5 60 ./alone 0 >out 2>err
        if [ $places = path/one ]; then has err "was not found"; else has out "rank 0 of 1 arrived"; fi
    done
    env RUN_TEST_TAG=$tag SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_JOB_ID="$tag-folder" MUSTER_TOOL=path/one/muster ./alone 0 >out 2>err
    has err "MUSTER_TOOL=path/one/muster is not a program"
    mkdir -p beside/muster
    cp "$rank" beside/run_rank
    env -u MUSTER_TOOL RUN_TEST_TAG=$tag SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_JOB_ID="$tag-beside" \
        PATH="$PWD/path/three:/usr/bin:/bin" timeout -k 5 60 beside/run_rank 0 >out 2>err
    has out "rank 0 of 1 arrived"
    no_leftovers
}

# Where the kernel refuses to let the store watch a process, that is said at once by the rank that it concerns.
test_refused_pidfd() {
    local start=$SECONDS call error
    "$programs/without_call" pidfd_open EPERM true 2>err
    [ $? = 77 ] && return
    for call in pidfd_open pidfd_send_signal; do
        for error in EPERM ENOSYS; do
            inherit=("$programs/without_call" $call $error)
            launch 71 -n 2 "$rank" 60000
            has err "[0] not welcome: store"
            has err "refused rank 1: process"
            has err "cannot be watched: $call: "
            has err "seccomp"
        done
    done
    expect "refused after $((SECONDS - start)) s" [ $((SECONDS - start)) -lt 40 ]
    inherit=(env)
}

# Ranks that fail on their own when the launcher's patience is over have the time to say so.
test_last_words() {
    launch 1 -n 2 --start-timeout 1 sh -c 'sleep 1.2; echo "last words"; exit 3'
    has err "did not arrive within 1 s"
    has out "[0] last words"
    has out "[1] last words"
}

# A child that outlives its rank and holds the rank's socket is no client: the sidecar ends without it.
test_forked_child_of_a_client() {
    local sidecar child i
    env RUN_TEST_TAG=$tag SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_JOB_ID="$tag-fork" MUSTER_TEST_FORK=1 "$rank" 100 >out 2>err
    expect "the rank's status $?" [ $? = 0 ]
    child=$(sed -n 's/^forked //p' out)
    expect "no child" kill -0 "$child"
    for i in $(seq 300); do
        sidecar=$(pgrep -f -- "store --detach --name muster-") || break
        grep -qz "^SLURM_JOB_ID=$tag-fork\$" $(printf '/proc/%s/environ ' $sidecar) 2>/dev/null || break
        sleep 0.1
    done
    expect "the sidecar still serves" [ "$i" -lt 300 ]
    expect "the child has gone" kill -0 "$child"
    kill -KILL "$child"
    no_leftovers
}

# A rank may sit behind something that closes the descriptors it was to inherit, as Python's subprocess does. Its death is
# seen all the same, and what hangs there is killed.
wrapper='import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))'
process_of() { sed -n "s/^\[$1\] rank $1 joined, process //p" out; }

test_closed_descriptors() {
    local pid got r
    command -v python3 >/dev/null || return
    : >out
    RUN_TEST_TAG=$tag timeout -k 5 100 "$muster" run -n 4 python3 -c "$wrapper" "$programs/group_rank" 3 >out 2>err &
    pid=$!
    for r in 0 1 2 3; do
        wait_for out "rank $r joined"
    done
    kill -KILL "$(process_of 2)"
    wait $pid
    got=$?
    # What a wrapper makes of its program's death is its own: 256 - 9.
    expect "exit status $got, wanted 247" [ $got = 247 ]
    has err "rank 2 (process"
    has err "exited with status 247; "
    for r in 0 1 3; do
        has out "[$r] rank $r: "
    done
    no_leftovers
    # A rank that was started again comes the same way; its wrapper's status is not that of a program that is not there.
    launch 0 -n 2 --respawn python3 -c "$wrapper" sh -c \
        '[ $MUSTER_RANK = 1 ] && mkdir once_more 2>/dev/null && { "$0" 0; kill -KILL $$; }; exec "$0" 4000' "$rank"
    has err "it is started again"
    has out "[1] rank 1 of 2 arrived, incarnation 2"
}

test_fence_behind_a_wrapper() {
    local pid victim example
    example=$(dirname "$muster")/example_survive
    command -v python3 >/dev/null && [ -x "$example" ] || return
    : >out
    MUSTER_STEP_TIMEOUT_US=1000000 MUSTER_OPERATION_TIMEOUT_US=500000 RUN_TEST_TAG=$tag timeout -k 5 100 \
        "$muster" run -n 3 python3 -c "$wrapper" "$example" >out 2>err &
    pid=$!
    wait_for out ": 3 ranks are here"
    victim=$(tagged | grep -oE '[0-9]+' | while read -r p; do
        [ "$(readlink "/proc/$p/exe")" = "$example" ] && tr '\0' '\n' <"/proc/$p/environ" | grep -q '^MUSTER_RANK=1$' && echo "$p"
    done)
    kill -STOP "$victim"
    wait_for out ": 2 ranks are here"
    wait_for err "rank 1 (process"
    has err "exited with status 247, since the others waited too long for it; 2 of 3 ranks go on"
    kill -TERM $(pgrep -P $pid)
    wait $pid
    no_leftovers
}

# A process of another user finds the name in /proc/net/unix, and no store behind it.
test_other_users() {
    [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null || return
    chmod 755 . && cp "$rank" ./theirs
    launch 0 -n 1 sh -c 'env -i MUSTER_RANK=0 MUSTER_RANKS=1 MUSTER_STORE="${MUSTER_STORE#*,}" \
        setpriv --reuid=65534 --clear-groups ./theirs 0; [ $? = 71 ]'
    has err 'store "unix:@muster-'
    has err 'belongs to another user'
    has_not out arrived
}

# Neither way leads to the store: both are told, and what became of the first.
test_no_way_to_the_store() {
    local start=$SECONDS
    : >out
    env MUSTER_RANK=0 MUSTER_RANKS=1 MUSTER_STORE="fd:99,unix:@muster-nobody-$tag" "$rank" 0 2>err
    expect "the status $? of a rank without a store" [ $? = 71 ]
    has err "store \"fd:99\" is not an open connection to a store in this process: what started it has closed"
    has err "; store \"unix:@muster-nobody-$tag\" cannot be reached: Connection refused"
    expect "after $((SECONDS - start)) s" [ $((SECONDS - start)) -lt 9 ]
    env MUSTER_RANK=0 MUSTER_RANKS=1 MUSTER_STORE="fd:99,tcp:80" "$rank" 0 2>err
    has err "store \"tcp:80\" must be"
}

# The launcher takes the open files that it needs, the ranks keep the limit that there was; what does not fit is refused.
test_few_descriptors() {
    local hard
    hard=$(ulimit -Hn)
    inherit=(prlimit --nofile=512:"$hard")
    launch 0 -n 128 "$programs/group_rank" 128
    has_not err "refused"
    launch 0 -n 100 sh -c 'ulimit -Sn'
    count_is out "] 512" 100
    inherit=(prlimit --nofile=512:512)
    launch 1 -n 128 true
    has err "128 ranks need "
    has err "open files here, and the hard limit is 512: raise it (ulimit -Hn), or start fewer"
    launch 0 -n 64 "$programs/group_rank" 64
    inherit=(env)
    prlimit --nofile=64:64 "$muster" store --name "$tag-few" --ranks 128 2>err
    expect "status of a store without room" [ $? = 1 ]
    has err "muster store: 128 ranks need "
    prlimit --nofile=64:64 "$muster" perf ep --no-baseline --ranks 64 --tokens 1 --blocks 2 --iterations 2 >out 2>err
    expect "status of muster perf without room" [ $? = 1 ]
    has err "64 ranks need "
}

# A rank that lacks descriptors says so, however few it has; the others are not ended for it without a reason.
test_rank_without_descriptors() {
    local few
    for few in 12 8 7 6 5 4; do
        : >out
        RUN_TEST_TAG=$tag timeout -k 5 60 "$muster" run -n 2 --grace 1 sh -c \
            '[ $MUSTER_RANK = 1 ] && exec prlimit --nofile='$few:$few' "$0" 2; exec "$0" 2' "$programs/group_rank" >out 2>err
        grep -q "^\[1\] rank 1 joined" out && continue
        expect "rank 1 with $few open files says nothing" \
            grep -qE "^\[1\] (no group: .*(Too many open files|no descriptor is left|open files)|.*error while loading)" err
    done
}

# A group begins with all its ranks: when one has gone for good, the others are not left to wait for it.
test_failure_at_the_start() {
    local start=$SECONDS
    launch 9 -n 4 sh -c '[ $MUSTER_RANK = 2 ] && { echo "no such model" >&2; exit 9; }; exec "$0" 4' "$programs/group_rank"
    has err "[2] no such model"
    has err "rank 2 exited with status 9 before the group was formed, which needs every rank: ending the job"
    launch 139 -n 3 sh -c '[ $MUSTER_RANK = 1 ] && kill -SEGV $$; exec "$0" 3' "$programs/group_rank"
    has err "rank 1 was killed by SIGSEGV before the group was formed"
    launch 1 -n 3 sh -c '[ $MUSTER_RANK = 0 ] && exit 0; exec "$0" 3' "$programs/group_rank"
    has err "rank 0 exited with status 0 before the group was formed"
    # One that had arrived, too.
    launch 137 -n 3 sh -c '[ $MUSTER_RANK = 0 ] && { sleep 1; exit 5; }; [ $MUSTER_RANK = 1 ] && { "$0" 3 & sleep 0.3; kill -KILL $$; }; exec "$0" 3' "$programs/group_rank"
    has err "rank 1 was killed by SIGKILL before the group was formed"
    # Started again it may come after all, until its restarts are used up.
    rm -rf failed_once
    launch 0 -n 3 --respawn sh -c '[ $MUSTER_RANK = 1 ] && mkdir failed_once 2>/dev/null && exit 9; exec "$0" 3' "$programs/group_rank"
    has out "[1] rank 1 joined"
    launch 9 -n 3 --respawn=2 sh -c '[ $MUSTER_RANK = 1 ] && exit 9; exec "$0" 3' "$programs/group_rank"
    count_is err "it is started again" 2
    expect "noticed after $((SECONDS - start)) s" [ $((SECONDS - start)) -lt 50 ]
    # Once a group was formed its ranks outlive each other; and ranks without a group need nobody.
    launch 4 -n 3 sh -c '[ $MUSTER_RANK = 1 ] && exec "$0" 3 4; exec "$0" 2' "$programs/group_rank"
    has out "[0] rank 0: "
    launch 3 -n 3 sh -c '[ $MUSTER_RANK = 1 ] && exit 3; exec "$0" 2500' "$rank"
    has_not err "ending the job"
}

run_tests "${3:-}"
exit $failed
