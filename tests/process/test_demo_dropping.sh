#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `muster demo` notices when a dead rank's contributions are dropped. Two tools with such a fault built into them
# (dropping/) run beside the shipped one: without a death all give the same answers, with one only the shipped tool does.
set -u
muster=$1
programs=$2
failed=0
export MUSTER_OPERATION_TIMEOUT_US=60000000 # nobody is to be judged by a deadline that a busy machine does not keep

field() { grep -o "\"$1\": [^,}]*" <<<"$json" | head -n 1 | cut -d ' ' -f 2; }

# expect TOOL IDENTICAL STATUS OPTIONS...
expect() {
    local tool=$1 identical=$2 wanted=$3
    shift 3
    json=$(timeout -k 5 200 "$tool" demo --json "$@" 2>/dev/null)
    local status=$?
    if [ "$status" != "$wanted" ] || [ "$(field identical)" != "$identical" ] || [ "$(field tokens_lost)" != 0 ]; then
        failed=1
        echo "FAILED: ${tool##*/} demo $*: exit status $status, wanted $wanted with identical $identical: $json"
    fi
}

never=(--kill 0@9999) # the run is over before; exit status 1 because of that
expect "$muster" true 1 "${never[@]}"
answers=$(field answers)
for fault in experts step; do
    expect "$programs/muster_dropping_$fault" true 1 "${never[@]}"
    [ "$(field answers)" = "$answers" ] || { failed=1 && echo "FAILED: dropping/$fault.c differs without a death"; }
done

for victim in 0 1 2 3; do
    kill=(--kill $victim@$((12 + 9 * victim)) --seed $victim)
    expect "$muster" true 0 "${kill[@]}"
    [ "$(field answers)" = "$answers" ] || { failed=1 && echo "FAILED: other answers after a death"; }
    expect "$programs/muster_dropping_experts" false 1 "${kill[@]}"
    expect "$programs/muster_dropping_step" false 1 "${kill[@]}"
done

[ "$failed" = 0 ] && echo "dropped contributions: noticed"
exit "$failed"
