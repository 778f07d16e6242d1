# SPDX-License-Identifier: Apache-2.0
# Sourced by the tests of `muster run`: launches, looks at what comes out, and that nothing is left. Takes the test's first
# two arguments, the tool and the folder of the test programs, and leaves it in an empty folder of its own. Sets `muster`,
# `rank` (the smallest program that is a rank) and `programs`. A test ends with: run_tests "$3"; exit "$failed"
muster=$(realpath -e "$1") && programs=$(realpath -e "$2") && rank=$(realpath -e "$programs/run_rank") || exit 1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1
export MUSTER_TOOL="$muster"
tag="run_test_$$"
failed=0
inherit=(env)

# launch STATUS OPTIONS...: runs the launcher, behind the command in `inherit`; output in out and err; the exit status must
# be STATUS.
launch() {
    local wanted=$1 got
    shift
    RUN_TEST_TAG=$tag timeout -k 5 60 "${inherit[@]}" "$muster" run "$@" >out 2>err
    got=$?
    expect "exit status $got, wanted $wanted: run $*" [ "$got" = "$wanted" ]
    no_leftovers
}

expect() {
    local what=$1
    shift
    if "$@"; then
        return
    fi
    failed=1
    echo "FAILED: $what"
    sed 's/^/    out: /' out | head -n 20 | cut -c1-200
    sed 's/^/    err: /' err | head -n 20 | cut -c1-200
}

has() { expect "\"$2\" is not in $1" grep -qF -- "$2" "$1"; }
has_not() { expect "\"$2\" is in $1" bash -c '! grep -qF -- "$2" "$1"' - "$1" "$2"; }
count_is() { expect "\"$2\" is not $3 times in $1" [ "$(grep -cF -- "$2" "$1")" = "$3" ]; }

# Processes that carry our tag in their environment.
tagged() { grep -lz "^RUN_TEST_TAG=$tag\$" /proc/[0-9]*/environ 2>/dev/null; }
none_tagged() {
    local i
    for i in $(seq 50); do
        [ -z "$(tagged)" ] && return 0
        sleep 0.1
    done
    return 1
}
no_leftovers() { expect "processes were left behind: $(tagged)" none_tagged; }

wait_for() { # FILE TEXT
    local i
    for i in $(seq 800); do
        grep -qF -- "$2" "$1" 2>/dev/null && return 0
        sleep 0.05
    done
    expect "\"$2\" did not appear in $1" false
}

# interrupted STATUS SIGNAL OPTIONS...: sends the signal once the ranks say "up".
interrupted() {
    local wanted=$1 signal=$2 pid got
    shift 2
    : >out
    RUN_TEST_TAG=$tag "${inherit[@]}" "$muster" run "$@" >out 2>err &
    pid=$!
    wait_for out "[1] up"
    kill -"$signal" "$pid"
    [ -n "${again:-}" ] && { sleep 0.3; kill -"$signal" "$pid"; }
    wait "$pid"
    got=$?
    expect "exit status $got after SIG$signal, wanted $wanted" [ "$got" = "$wanted" ]
    no_leftovers
}

# run_tests [NAME]: every function whose name begins with test_, or that one.
run_tests() {
    local name start
    for name in $(declare -F | sed -n 's/^declare -f \(test_.*\)/\1/p'); do
        [ -n "${1:-}" ] && [ "$1" != "$name" ] && continue
        start=$SECONDS
        "$name"
        echo "$name: $((SECONDS - start)) s"
    done
}
