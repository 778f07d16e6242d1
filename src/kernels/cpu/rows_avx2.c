// SPDX-License-Identifier: Apache-2.0
/* For processors with AVX2. */
#include "kernels/cpu/rows.h"

#ifdef __x86_64__

#define LANES 8
#define BLOCK 8
#define LANES_TARGET __attribute__((target("avx2")))
#include "kernels/cpu/rows_lanes.h"

const struct rows_arithmetic rows_avx2 = {"avx2", add, quantise};

#endif
