#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A shared machine, and programs that do what programs may: small limits, a launcher that is stopped, no /proc, another locale.
# Real processes and signals: test_machine.sh MUSTER PROGRAMS-FOLDER [TEST]
set -u
. "$(dirname "$0")/launching.sh"
machine=$programs/machine_rank
life=$programs/group_life

# await FILE TEXT: a busy machine may need its time
await() {
    local i
    for i in $(seq 600); do
        grep -qE -- "$2" "$1" 2>/dev/null && return 0
        sleep 0.1
    done
    expect "\"$2\" did not appear in $1" false
}

# The launcher did not run while its patience ended, so it has not heard those who have arrived. Which of its threads comes
# first afterwards is chance: four tries.
test_stopped_launcher() {
    local i pids=()
    for i in 1 2 3 4; do
        RUN_TEST_TAG=$tag timeout -k 5 60 "$muster" run -n 1 --start-timeout 3 sh -c '
            kill -STOP $PPID
            setsid sh -c "sleep 5; kill -CONT $PPID" >/dev/null 2>&1 &
            exec "$0" plain' "$machine" >"out_$i" 2>"err_$i" &
        pids+=($!)
    done
    for i in 1 2 3 4; do
        wait "${pids[$((i - 1))]}"
        local got=$?
        cp "out_$i" out
        cp "err_$i" err
        expect "exit status $got of a job whose launcher was stopped" [ $got = 0 ]
        has_not err "did not arrive"
    done
    no_leftovers
}

# Threads of the library have room for the callbacks of programs, whatever the limit of stacks.
test_small_stack() {
    launch 0 -n 2 bash -c 'ulimit -s 128 && exec "$0" stack' "$machine"
    count_is out "left" 2
}

# Nobody may start another thread: who cannot says so, and which limits there are.
test_no_threads() {
    local why="cannot be started: Resource temporarily unavailable; these limits may be too low: "
    "$programs/without_call" clone3 EAGAIN true 2>err
    [ $? = 77 ] && return
    launch 1 -n 1 bash -c 'ulimit -u 4000; exec "$@"' - "$programs/without_call" clone3 EAGAIN "$machine" plain
    has out "created: MUSTER_ERR_SYSTEM the agent's thread $why"
    has out "RLIMIT_NPROC (ulimit -u) for all threads of user $(id -u) is 4000, "
    has out "pids.max of a cgroup"
    inherit=("$programs/without_call" clone3 EAGAIN)
    launch 1 -n 1 "$machine" plain
    has err "muster run: the store's thread $why"
    inherit=(env)
}

# The launcher may start no process for a while: a rank that is to come again is tried again. Root has no such limit.
test_no_processes_for_a_while() {
    [ "$(id -u)" != 0 ] || inherit=(setpriv --reuid 54321 --regid 54321 --clear-groups)
    chmod 1777 .
    if ! "${inherit[@]}" "$muster" --version >out 2>err; then
        echo "skipped: another user cannot run the tool"
        inherit=(env)
        return
    fi
    launch 0 -n 2 --respawn=5 bash -c '
        limit=$(ulimit -Hu)
        wait_for() { for i in $(seq 300); do [ -e "$1" ] && return; sleep 0.1; done; exit 9; }
        if [ $MUSTER_RANK = 0 ]; then
            wait_for short
            sleep 1
            prlimit --pid $PPID --nproc=$limit:
            wait_for again
        elif [ -e short ]; then
            : >again
        else
            prlimit --pid $PPID --nproc=1:
            : >short
            kill -KILL $$
        fi'
    inherit=(env)
    has err "rank 1 cannot be started: Resource temporarily unavailable; these limits may be too low: RLIMIT_NPROC"
    has err "; it is tried again"
    expect "rank 1 did not come again" [ -e again ]
}

# What goes on in the background is ended with the job, and that is said.
test_left_behind() {
    local leave='setsid sh -c "echo \$\$ >left_\$MUSTER_RANK; exec sleep 600" & until [ -s left_$MUSTER_RANK ]; do sleep 0.05; done'
    launch 0 -n 2 sh -c "$leave"
    has err "processes that ranks had left behind were killed: 2"
    launch 0 -n 2 true
    has_not err "left behind"
    rm -f left_*
    unshare -m sh -c 'umount -l /proc' 2>/dev/null || return
    timeout -k 5 60 unshare -m sh -c 'umount -l /proc && exec "$@"' - "$muster" run -n 2 sh -c "$leave" >out 2>err
    expect "exit status $? without /proc" [ $? = 0 ]
    has err "processes that ranks left behind go on: without /proc they cannot be found"
    kill -KILL $(cat left_*)
}

# Whoever is killed for being late is told apart from one that somebody else has killed.
test_told_why() {
    local pid
    : >out
    MUSTER_TEST_DEADLINE_MS=500 MUSTER_STEP_TIMEOUT_US=2000000 RUN_TEST_TAG=$tag timeout -k 5 120 \
        "$muster" run -n 3 "$life" 1 1000000 1 >out 2>err &
    pid=$!
    await out '^\[0\] epoch 1: 3 ranks' && await out '^\[1\] life 1: process' && await out '^\[2\] life 1: process'
    kill -STOP "$(sed -n 's/^\[1\] life 1: process //p' out)"
    await err 'rank 1 .* was killed by SIGKILL, since the others waited too long for it; 2 of 3 ranks go on'
    await out '^\[0\] epoch [0-9]*: 2 ranks'
    kill -KILL "$(sed -n 's/^\[2\] life 1: process //p' out)"
    await err 'rank 2 .* was killed by SIGKILL; 1 of 3 ranks go on'
    kill -TERM "$(pgrep -P $pid)"
    wait $pid
    no_leftovers
}

# A rank whose stderr nobody reads takes part in the group: what the library has to say there is left out. The fifo has a
# reader, which does not read before the end.
test_held_stderr() {
    mkfifo held_pipe
    : >out
    RUN_TEST_TAG=$tag MUSTER_LOG=debug timeout -k 5 60 "$muster" run -n 2 sh -c '
        [ $MUSTER_RANK = 0 ] && exec 2>held_pipe
        exec "$0" held' "$machine" >out 2>err 3<>held_pipe
    local got=$?
    expect "exit status $got of a job with a held rank" [ $got = 0 ]
    has out "[0] 1 left"
    no_leftovers
}

# A tool whose file is removed or built anew while it runs starts its ranks again as what it is itself.
test_removed_tool() {
    cp "$muster" tool_copy
    timeout -k 5 100 bash -c 'exec 3<tool_copy; rm tool_copy; exec /proc/self/fd/3 chaos cpu --trials 4' >out 2>err 3<&-
    local got=$?
    expect "exit status $got of a tool without its file" [ $got = 0 ]
}

# A terminal that stops what writes to it from the background, and a rank that wants to read from it.
test_terminal() {
    local got
    command -v script >/dev/null || return
    : >err
    RUN_TEST_TAG=$tag timeout -k 5 30 script -qec "stty tostop && '$muster' run --no-prefix -n 2 sh -c 'echo up'" /dev/null >out </dev/null
    got=$?
    expect "exit status $got of ranks that write to a terminal" [ $got = 0 ]
    count_is out "up" 2
    RUN_TEST_TAG=$tag timeout -k 5 30 script -qec "'$muster' run -n 1 sh -c 'read word </dev/tty || echo nothing'" /dev/null >out </dev/null
    got=$?
    expect "exit status $got of a rank that reads from a terminal" [ $got = 0 ]
    has out "[0] nothing"
    no_leftovers
}

# Who waits for a store, or for the process that has its number, says so long before its patience ends.
test_told_waits() {
    local name=muster-waits-$tag store holder
    export MUSTER_RANKS=1 MUSTER_RANK=0 MUSTER_STORE=unix:@$name
    "$machine" plain >out 2>err &
    holder=$!
    await err "store \"unix:@$name\" is waited for: Connection refused; at most [0-9]+ s more"
    "$muster" store --name "$name" --ranks 1 --grace 60 2>/dev/null &
    store=$!
    wait $holder
    expect "the status $? of who has waited" [ $? = 0 ]
    "$rank" 600000 >holds 2>&1 &
    holder=$!
    await holds "arrived"
    "$rank" 0 >out 2>err &
    await err "is waited for: process $holder holds the rank; at most [0-9]+ s more"
    kill -KILL $holder
    { wait $holder; } 2>/dev/null
    wait $!
    expect "the status $? of who comes after" [ $? = 0 ]
    kill -STOP $store
    "$rank" 0 >out 2>err &
    await err "is waited for: it does not answer; at most [0-9]+ s more"
    kill -CONT $store
    wait $!
    kill -TERM $store
    wait $store
    unset MUSTER_RANKS MUSTER_RANK MUSTER_STORE
}

# A program that closes what is not its own loses its group, which has a reason to be told; nothing of it keeps a core busy.
test_closed_under_a_group() {
    launch 137 -n 1 "$machine" close
    has err "was killed by SIGKILL, since it closed its connection to the store without leaving its group; 0 of 1 ranks go on"
    launch 0 -n 1 sh -c '"$0" close; exit $?' "$machine" # the shell holds the connection, too
    has err "store: lost: this program has closed its descriptor"
    has out "closed: MUSTER_ERR_STORE"
    has out "left"
    expect "busy without anything to do" [ "$(sed -n 's/.*busy for \([0-9]*\) ms/\1/p' out)" -lt 300 ]
}

# A program may have taken a locale whose numbers have a comma. What is for other programs to read has a point.
test_locale() {
    command -v localedef >/dev/null || return
    printf '%s\n' 'comment_char %' 'escape_char /' LC_NUMERIC 'decimal_point ","' 'thousands_sep "."' 'grouping 3;3' \
        'END LC_NUMERIC' >comma.src
    localedef -c -i ./comma.src ./comma >/dev/null 2>&1
    inherit=(env LOCPATH="$PWD" LC_ALL=comma MUSTER_TRACE=trace.json)
    launch 0 -n 1 "$machine" locale
    inherit=(env)
    has out "left"
    expect "no trace" grep -qE '"ts":[0-9]+\.[0-9]{3},' trace.json
    expect "a comma in a number" bash -c '! grep -qE "[0-9],[0-9]" trace.json'
}

# A number is digits alone: what a space or a sign hides must not be taken for another one.
test_numbers() {
    local text
    for text in ' 2' +2 -1 ' -18446744073709551614' 0x2 2.0 1e0 18446744073709551618 ''; do
        launch 2 -n "$text" true
        has err "--ranks is \"$text\"; it must be a number from 1 to 128"
        MUSTER_RANKS=$text MUSTER_RANK=0 MUSTER_STORE=fd:99 "$machine" plain >out 2>err
        expect "the status $? of a rank" [ $? = 1 ]
        has out "MUSTER_RANKS=\"$text\" is not a number from 0 to 128"
    done
    MUSTER_RANKS=1 MUSTER_RANK=0 MUSTER_STORE='fd: 3' "$machine" plain >out 2>err
    has out "a descriptor number must follow"
    MUSTER_LEASE_US=' -18446744073701551616' launch 0 -n 1 "$machine" plain
    has err "MUSTER_LEASE_US=\" -18446744073701551616\" is not a number from 10000 to 3600000000"
}

run_tests "${3:-}"
exit $failed
