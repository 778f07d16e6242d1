#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A checkpoint that is split over several files: demo and eval say with it what they say with one file.
set -u
. "$(dirname "$0")/checks.sh"
model=$(cd "$(dirname "$0")/../.." && pwd)/models/kjv-moe
copy=$folder/sharded
export MUSTER_OPERATION_TIMEOUT_US=60000000 # nobody is to be judged by a deadline that a busy machine does not keep
mkdir "$copy"
"$2/shard_model" "$model" "$copy" 5 || complain "shard_model failed"
head -c 3000 "$model/heldout.txt" >"$folder/text"

call 0 demo --json --model "$model" --prompts "$model/prompts.txt" --kill 2@9 --seed 1
answers=$(field 1 answers)
[ -n "$answers" ] || complain "there are no answers"
call 0 demo --json --model "$copy" --prompts "$model/prompts.txt" --kill 2@9 --seed 1
is 1 answers "$answers"
is 1 identical true

call 0 eval --model "$model" --text "$folder/text" --ranks 2
bits=$(grep -oE '[0-9.]+ bits per byte' "$folder/out")
[ -n "$bits" ] || complain "there are no bits per byte"
call 0 eval --model "$copy" --text "$folder/text" --ranks 2
says out "$bits"

rm "$copy/model-00004-of-00005.safetensors"
call 1 eval --model "$copy" --text "$folder/text"
says err "model-00004-of-00005.safetensors: cannot be opened: No such file .*has tensor 'model"
call 1 demo --json --model "$copy" --prompts "$model/prompts.txt"
says err "model-00004-of-00005.safetensors: cannot be opened: No such file .*has tensor 'model"

[ "$failed" = 0 ] && echo "sharded: all good"
exit "$failed"
