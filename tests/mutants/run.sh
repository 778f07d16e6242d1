#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Checks the checks: makes each deliberate mistake of the tables in a copy of the sources, one at a time, and demands
# that the test named beside it fails. A mistake that no longer fits the sources is an error, and so is a table with a
# test that fails without any mistake.
#
# A table (*.mutants) holds, besides comments (#) and blank lines:
#
#   test NAME                 how to build and run a test
#     build COMMAND           one call of the compiler over C sources, in the copy of the sources: {cc} {flags} are the
#                             compiler, {out} is an empty folder; what a mistake does not touch is compiled once
#     run COMMAND             must succeed without a mistake, and fail with one
#
#   mutant RULE WHAT          one mistake, in words
#     file PATH
#     test NAME
#     <<<<                    then the exact text, which must occur once in the file
#     ====                    then what replaces it
#     >>>>
set -u

usage()
{
    echo "Usage: run.sh [-r RULE] [TABLE ...]    (default: every table beside this script)"
    echo "CC and MUTANT_FLAGS set the compiler and its flags."
    exit 2
}

only=
while getopts r:h option; do
    case $option in
    r) only=$OPTARG ;;
    *) usage ;;
    esac
done
shift $((OPTIND - 1))

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
[ $# -gt 0 ] && tables=("$@") || tables=("$here"/*.mutants)
cc=${CC:-cc}
flags=${MUTANT_FLAGS:--std=c11 -D_GNU_SOURCE -O1 -ffp-contract=off}
limit_s=120
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT

declare -A builds runs passes
total=0
caught=0

# The command of a test with its placeholders filled in.
fill()
{
    local command=$1
    command=${command//\{cc\}/$cc}
    command=${command//\{flags\}/$flags}
    echo "${command//\{out\}/$work/out}"
}

fresh_tree()
{
    rm -rf "$work/tree" "$work/out"
    mkdir -p "$work/tree" "$work/out"
    cp -r "$root/include" "$root/src" "$root/tests" "$work/tree/"
    [ -d "$root/engine" ] && cp -r "$root/engine" "$work/tree/"
    return 0
}

# Takes a build command apart: compiles each source, unless it is as it was for the test without a mistake, and links.
# build_test NAME MUTATED-FILE; a header may be included by any source, so then all are compiled.
build_test()
{
    local words=() objects=() compile=() libraries=() word object cache=$work/objects/$1 output=
    mkdir -p "$cache"
    eval "words=($(fill "${builds[$1]}"))"
    for word in "${words[@]}"; do
        case $word in
        -l*) libraries+=("$word") ;;
        "$work/out/"*) output=$word ;;
        -o | *.c) ;;
        *) compile+=("$word") ;;
        esac
    done
    for word in "${words[@]}"; do
        [[ $word == *.c ]] || continue
        object=${word//\//_}.o
        if [ "$word" = "$2" ] || [[ $2 == *.h ]]; then
            object=$work/out/$object
        else
            object=$cache/$object
        fi
        [ -e "$object" ] || "${compile[@]}" -c "$word" -o "$object" || return 1
        objects+=("$object")
    done
    "${compile[@]}" "${objects[@]}" "${libraries[@]}" -o "$output"
}

# test_fails NAME [MUTATED-FILE]. 0: the test failed; 1: it passed; 2: it could not be built. With a mistake it may wait in
# vain, and need not wait for long.
test_fails()
{
    local patience=1
    [ -n "${2:-}" ] && patience=0.25
    (cd "$work/tree" && build_test "$1" "${2:-}") >"$work/log" 2>&1 || return 2
    ! (cd "$work/out" && MUSTER_TEST_PATIENCE=$patience timeout -k 5 $limit_s bash -c "$(fill "${runs[$1]}")") >"$work/log" 2>&1
}

complain()
{
    printf '%-4s %-9s %s\n' "$1" "$2" "$3"
    [ "${4:-}" = log ] && tail -n 15 "$work/log"
}

# The test must pass on the sources as they are, or its failures would prove nothing.
check_test()
{
    [ -n "${passes[$1]:-}" ] && return
    fresh_tree
    test_fails "$1"
    case $? in
    0) complain - BROKEN "test $1 fails without a mistake" log; exit 1 ;;
    2) complain - BROKEN "test $1 cannot be built" log; exit 1 ;;
    esac
    passes[$1]=yes
}

# Exactly one place in the file may match.
replace()
{
    OLD=$2 NEW=$3 perl -0777 -i -pe '
        $count = () = /\Q$ENV{OLD}\E/g;
        if ($count == 1) { s/\Q$ENV{OLD}\E/$ENV{NEW}/ }
        END { exit($count == 1 ? 0 : 1) }' "$1"
}

check_mutant()
{
    [ -n "$only" ] && [ "$only" != "$rule" ] && return
    total=$((total + 1))
    if [ -z "${builds[$test_name]:-}" ] || [ -z "${runs[$test_name]:-}" ]; then
        complain "$rule" BROKEN "no such test: $test_name"
        return
    fi
    check_test "$test_name"
    fresh_tree
    if ! replace "$work/tree/$file" "$old" "$new"; then
        complain "$rule" STALE "$what: its text does not occur exactly once in $file"
        return
    fi
    test_fails "$test_name" "$file"
    case $? in
    0) caught=$((caught + 1)); complain "$rule" caught "$what (by $test_name)" ;;
    1) complain "$rule" SURVIVED "$what (test $test_name passes)" ;;
    2) complain "$rule" BROKEN "$what: does not compile" log ;;
    esac
}

read_table()
{
    local line where=table key value name=
    while IFS= read -r line; do
        case $where in
        old) if [ "$line" = "    ====" ]; then where=new; else old+=$line$'\n'; fi; continue ;;
        new) if [ "$line" = "    >>>>" ]; then where=table; check_mutant; else new+=$line$'\n'; fi; continue ;;
        esac
        read -r key value <<<"$line"
        case $key in
        '' | '#'*) ;;
        test) if [ "$where" = mutant ]; then test_name=$value; else name=$value; fi ;;
        build) builds[$name]=$value ;;
        run) runs[$name]=$value ;;
        mutant) where=mutant; rule=${value%% *}; what=${value#* }; file=; test_name=; old=; new= ;;
        file) file=$value ;;
        '<<<<') where=old ;;
        *) echo "$1: what is \"$line\"?"; exit 2 ;;
        esac
    done <"$1"
}

for table in "${tables[@]}"; do
    read_table "$table"
done
echo "$total mutants, $caught caught"
[ "$total" -gt 0 ] && [ "$caught" -eq "$total" ]
