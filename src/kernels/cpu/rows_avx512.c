// SPDX-License-Identifier: Apache-2.0
/* For processors with AVX-512. */
#include "kernels/cpu/rows.h"

#ifdef __x86_64__

#include <immintrin.h>

#define LANES 16
#define BLOCK 8
#define LANES_TARGET __attribute__((target("avx512f,avx512bw,avx512vl")))
#include "kernels/cpu/rows_lanes.h"

LANES_TARGET static inline void lanes_from_fp16(const uint16_t *from, float_lanes *to)
{
    *to = (float_lanes)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

LANES_TARGET static inline void lanes_to_fp16(const float_lanes *from, uint16_t *to)
{
    /* All sixteen: as a macro, which it is without optimisation, gcc's form without a mask has a warning. */
    __m256i half = _mm512_maskz_cvtps_ph(0xffff, (__m512)*from, _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256((__m256i *)(void *)to, half);
}

const struct rows_arithmetic rows_avx512 = {"avx512", add, quantise, add_quantise, add_quantised};

#endif
