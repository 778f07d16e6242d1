#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Several hundred deaths of real processes at every marked point: test_campaign.sh MUSTER PROGRAMS-FOLDER
set -u
exec "$2/campaign" "$2"
