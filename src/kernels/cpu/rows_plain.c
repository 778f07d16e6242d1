// SPDX-License-Identifier: Apache-2.0
/* For any processor: vectors of 16 bytes. */
#define LANES 4
#define BLOCK 8
#define LANES_TARGET
#include "kernels/cpu/rows_lanes.h"

const struct rows_arithmetic rows_plain = {"plain", add, quantise};
