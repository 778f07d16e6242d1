#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `muster chaos gpu`: a short campaign, where there is a GPU; elsewhere it says why it cannot be done. What follows the tool
# and the folder of the tests are options of the campaign.
set -u
muster=$1
shift 2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

timeout -k 10 360 "$muster" chaos gpu --trials 8 "$@" >"$folder/out" 2>"$folder/err"
status=$?
if [ "$status" = 3 ]; then
    grep -q 'muster chaos gpu: it cannot be done here: ' "$folder/err" || { echo "FAILED: no reason is given"; exit 1; }
    sed 's/^/skipped: /' "$folder/err"
    exit 77
fi
cat "$folder/out" "$folder/err"
if [ "$status" != 0 ]; then
    echo "FAILED: exit status $status"
    exit 1
fi
echo "chaos on GPUs: all good"
