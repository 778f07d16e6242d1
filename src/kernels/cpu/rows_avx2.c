// SPDX-License-Identifier: Apache-2.0
/* For processors with AVX2 and F16C. */
#include "kernels/cpu/rows.h"

#ifdef __x86_64__

#include <immintrin.h>

#define LANES 8
#define BLOCK 8
#define LANES_TARGET __attribute__((target("avx2,f16c")))
#include "kernels/cpu/rows_lanes.h"

LANES_TARGET static inline void lanes_from_fp16(const uint16_t *from, float_lanes *to)
{
    *to = (float_lanes)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)from));
}

LANES_TARGET static inline void lanes_to_fp16(const float_lanes *from, uint16_t *to)
{
    _mm_storeu_si128((__m128i *)(void *)to, _mm256_cvtps_ph((__m256)*from, _MM_FROUND_TO_NEAREST_INT));
}

const struct rows_arithmetic rows_avx2 = {"avx2", add, quantise, add_quantise, add_quantised};

#endif
