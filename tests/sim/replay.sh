#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A seed replays to the same trace, and another seed to another one.
set -eu
sim=$1
hash_of() { "$sim" --seed "$1" | tail -n 1; }
for seed in 1 170 869; do
    first=$(hash_of $seed)
    case "$first" in
    "trace hash: "????????????????) ;;
    *)
        echo "seed $seed: the last line is not a trace hash: $first"
        exit 1
        ;;
    esac
    [ "$first" = "$(hash_of $seed)" ] || { echo "seed $seed does not replay"; exit 1; }
done
[ "$(hash_of 1)" != "$(hash_of 2)" ] || { echo "two seeds have one trace"; exit 1; }
