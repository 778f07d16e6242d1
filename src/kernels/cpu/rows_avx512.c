// SPDX-License-Identifier: Apache-2.0
/* For processors with AVX-512. */
#include "kernels/cpu/rows.h"

#ifdef __x86_64__

#define LANES 16
#define BLOCK 8
#define LANES_TARGET __attribute__((target("avx512f,avx512bw,avx512vl")))
#include "kernels/cpu/rows_lanes.h"

const struct rows_arithmetic rows_avx512 = {"avx512", add, quantise};

#endif
