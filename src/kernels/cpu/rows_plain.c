// SPDX-License-Identifier: Apache-2.0
/* For any processor: vectors of 16 bytes. */
#define LANES 4
#define BLOCK 8
#define LANES_TARGET
#include "kernels/cpu/rows_lanes.h"

INLINE void lanes_from_fp16(const uint16_t *from, float_lanes *to)
{
    half_lanes half;
    memcpy(&half, from, sizeof(half));
    bits_lanes all = __builtin_convertvector(half, bits_lanes), size = all & 0x7fff;
    bits_lanes is_large = (bits_lanes)(size >= 0x7c00), is_nan = (bits_lanes)(size > 0x7c00);
    bits_lanes bits = (size << 13) + (112u << 23) + (is_large & (112u << 23));
    bits |= is_nan & 0x400000;
    bits_lanes small = (bits_lanes)((float_lanes)(bits + (1u << 23)) - 0x1p-14f);
    bits_lanes is_small = (bits_lanes)(size < 0x400);
    choose_lanes(&is_small, &small, &bits);
    *to = (float_lanes)(bits | (all & 0x8000) << 16);
}

INLINE void lanes_to_fp16(const float_lanes *from, uint16_t *to)
{
    bits_lanes bits = (bits_lanes)*from, size = bits & 0x7fffffff;
    bits_lanes small = (bits_lanes)((float_lanes)size + 0.5f) & 0x7ff;
    bits_lanes code = ((size + 0xfff + (size >> 13 & 1)) >> 13) - (112u << 10);
    bits_lanes is_small = (bits_lanes)(size < 0x38800000), is_large = (bits_lanes)(size >= 0x47800000);
    bits_lanes is_nan = (bits_lanes)(size > 0x7f800000);
    bits_lanes large = (bits_lanes){0} + 0x7c00, nan = (size >> 13 & 0x1ff) | 0x7e00;
    choose_lanes(&is_small, &small, &code);
    choose_lanes(&is_large, &large, &code);
    choose_lanes(&is_nan, &nan, &code);
    half_lanes out = __builtin_convertvector((bits >> 16 & 0x8000) | code, half_lanes);
    memcpy(to, &out, sizeof(out));
}

const struct rows_arithmetic rows_plain = {"plain", add, quantise, add_quantise, add_quantised};
