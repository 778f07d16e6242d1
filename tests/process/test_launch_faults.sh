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

run_tests "${3:-}"
exit $failed
