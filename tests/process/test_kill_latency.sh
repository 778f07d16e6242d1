#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SIGKILL to a new view, in milliseconds; see kill_latency.c.
exec timeout 120 "$2/kill_latency"
