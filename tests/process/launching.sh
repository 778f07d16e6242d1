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

# The machine may be busy. What must come is waited for, for a minute and more; who must come first is waited for by the
# others (until_err, until_out); what hangs on a deadline is tried with longer ones, too (in_time).

# launch STATUS OPTIONS...: runs the launcher, behind the command in `inherit`; output in out and err; the exit status must
# be STATUS.
launch() {
    local wanted=$1 got
    shift
    RUN_TEST_TAG=$tag timeout -k 5 120 "${inherit[@]}" "$muster" run "$@" >out 2>err
    got=$?
    expect "exit status $got, wanted $wanted: run $*" [ "$got" = "$wanted" ]
    no_leftovers
}

# For ranks: until_err TEXT, until_out TEXT wait until the launcher has said it, or a rank.
until_err() { until grep -qF -- "$1" err; do sleep 0.05; done; }
until_out() { until grep -qF -- "$1" out; do sleep 0.05; done; }
export -f until_err until_out

# in_time FUNCTION: calls it with a number of seconds that is long enough for this machine to keep a deadline by; only the
# last attempt may complain.
in_time() {
    local before=$failed complaints
    for seconds in 1 5; do
        failed=0
        complaints=$("$1" "$seconds"; exit "$failed") && { failed=$before; return; }
    done
    echo "after shorter deadlines: $complaints" | head -n 3
    failed=$before
    "$1" 25
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
    for i in $(seq 600); do
        [ -z "$(tagged)" ] && return 0
        sleep 0.1
    done
    return 1
}
no_leftovers() { expect "processes were left behind: $(tagged)" none_tagged; }

wait_for() { # FILE TEXT
    local i
    for i in $(seq 1200); do
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
