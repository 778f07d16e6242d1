#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What is measured today: scripts/bench.sh BUILD-DIR
set -eu
"$1/tests/kill_latency"
"$1/muster" demo --json --seed 1
