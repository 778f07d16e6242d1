#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The tests that need a GPU: scripts/test_gpu.sh BUILD-DIR
# Runs ctest -L gpu where the build folder was made; where it was carried to, and ctest would not find its programs, the
# same programs and scripts one by one. In the end it says what was skipped, and why.
set -u
build=$(cd "$1" && pwd) || exit 2
here=$(cd "$(dirname "$0")/.." && pwd)
export LD_LIBRARY_PATH=$build${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

if ! [ -e "$build/libmuster_cuda.so.0" ]; then
    echo "$build has no CUDA backend: CMake needs nvcc of CUDA 12.5 or newer to build it (build.log says what it found)" >&2
    exit 1
fi

failed=0

# one COMMAND...: runs a test, shows what it said if it failed
one() {
    local begun=$SECONDS status name=${1##*/} verdict
    timeout -k 10 "${MUSTER_TEST_SECONDS:-420}" "$@" >"$log.one" 2>&1
    status=$?
    verdict=passed
    [ "$status" = 77 ] && verdict=skipped
    if [ "$status" != 0 ] && [ "$status" != 77 ]; then
        verdict="FAILED ($status)"
        failed=1
        cat "$log.one"
    fi
    echo "$name: $verdict, $((SECONDS - begun)) s"
    sed "s/^/$name: /" "$log.one" >>"$log"
    rm -f "$log.one"
}

if command -v ctest >/dev/null 2>&1 && grep -qsF "CMAKE_CACHEFILE_DIR:INTERNAL=$build" "$build/CMakeCache.txt"; then
    ctest --test-dir "$build" --output-on-failure -L gpu || failed=1
    cp "$build/Testing/Temporary/LastTest.log" "$log"
else
    for program in "$build"/tests/gpu_test_*; do
        [ -x "$program" ] && one "$program"
    done
    for program in "$build"/tests/gpu_test_ep_exchange "$build"/tests/gpu_test_ep_modes; do
        for plan in 1 2; do
            MUSTER_PLAN=$plan one "$program" # few tokens go in words; once more as if there were more, and many
        done
    done
    for script in "$here"/tests/process/test_*_gpu.sh "$here"/tests/process/test_examples.sh; do
        one "$script" "$build/muster" "$build/tests"
    done
fi

if grep -qE 'SKIPPED|skipped:' "$log"; then
    echo
    echo "skipped:"
    grep -E 'SKIPPED|skipped:' "$log" | sed 's/\[  SKIPPED \] //; s/skipped: //; s/^/    /' | sort | uniq -c
fi
exit "$failed"
