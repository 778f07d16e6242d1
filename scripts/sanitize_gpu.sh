#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# compute-sanitizer over the kernels: scripts/sanitize_gpu.sh BUILD-DIR
# Tests run with one rank: the tool runs the kernels of one process one after the other, and ranks of a process that wait
# for each other would never end. Two ranks are two processes of `muster perf`, where there are two GPUs.
set -u
build=$(cd "$1" && pwd) || exit 2
muster=$build/muster
export LD_LIBRARY_PATH=$build${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export MUSTER_TEST_PATIENCE=15             # deadlines of the tests so many times as long
export MUSTER_OPERATION_TIMEOUT_US=300000000 MUSTER_STEP_TIMEOUT_US=300000000 MUSTER_LEASE_US=300000000
failed=0

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
if [ -z "$sanitizer" ]; then
    echo "skipped: there is no compute-sanitizer (it comes with the CUDA toolkit)"
    exit 0
fi
if ! [ -e "$build/libmuster_cuda.so.0" ]; then
    echo "$build has no CUDA backend" >&2
    exit 1
fi

# check TOOL COMMAND...: 77 and "there is no GPU" are no finding of the tool's
check() {
    local tool=$1 log status
    shift
    log=$(mktemp)
    options=(--tool "$tool" --error-exitcode 99 --target-processes all)
    [ "$tool" = synccheck ] && options+=(--num-cuda-barriers 8192)
    echo
    echo "\$ compute-sanitizer ${options[*]} ${*/#$build/${build##*/}}"
    timeout -k 10 "${MUSTER_TEST_SECONDS:-1200}" "$sanitizer" "${options[@]}" "$@" >"$log" 2>&1
    status=$?
    grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|SKIPPED|skipped|PASSED|FAILED|number of GPUs|no GPU' "$log" | sort | uniq -c
    if [ "$status" = 77 ] || grep -qE 'number of GPUs here|there is no GPU' "$log"; then
        echo "skipped"
    elif [ "$status" != 0 ]; then
        failed=1
        echo "FAILED: exit status $status"
        head -n 200 "$log"
    fi
    rm -f "$log"
}

for tool in memcheck synccheck racecheck; do
    for plan in 0 1 2; do
        # What racecheck takes for races in the plan for many, docs/design.md says.
        [ $tool$plan = racecheck2 ] || MUSTER_PLAN=$plan check $tool "$build/tests/gpu_test_ep_exchange" one_rank
    done
    check $tool "$build/tests/gpu_test_gpu_exchange" 'one_rank*'
    check $tool "$build/tests/gpu_test_gpu_runtime"
    for layout in "--layout expert" "--layout expert --combine exact" "--layout rank --quantise fp8"; do
        # shellcheck disable=SC2086
        check $tool "$muster" perf ep --backend cuda --ranks 2 --no-baseline --tokens 5,17 --blocks 1 --iterations 1 --warmup 0 $layout
    done
done
[ "$failed" = 0 ] && echo && echo "compute-sanitizer: nothing was found"
exit "$failed"
