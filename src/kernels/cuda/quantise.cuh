// SPDX-License-Identifier: Apache-2.0
/*
 * fp8 on the way: groups of 128 values share a scale. A thread holds 16 values, so eight neighbouring lanes hold a
 * group; its 16 codes are one store for each destination.
 */
#ifndef CUDA_QUANTISE_CUH
#define CUDA_QUANTISE_CUH

#include "kernels/cuda/cast.cuh"
#include "kernels/cuda/copy.cuh"
#include "kernels/exchange.h"
#include "muster/ep.h"

enum { QUANTISE_PIECE = 16, QUANTISE_LANES = MUSTER_EP_FP8_GROUP / QUANTISE_PIECE };

__device__ __forceinline__ float quantise_value(const unsigned char *row, enum exchange_type type, int32_t at)
{
    switch (type) {
    case EXCHANGE_BF16: return number_from_bf16(((const uint16_t *)row)[at]);
    case EXCHANGE_FP16: return number_from_fp16(((const uint16_t *)row)[at]);
    default: return ((const float *)row)[at];
    }
}

/* Sixteen values of a row from `at`; fewer at its end, the rest is 0. */
__device__ inline void quantise_load(const unsigned char *row, enum exchange_type type, int32_t at, int32_t hidden,
                                     float value[QUANTISE_PIECE])
{
#pragma unroll
    for (int i = 0; i < QUANTISE_PIECE; i++) {
        value[i] = 0.0f;
        if (at + i < hidden)
            value[i] = quantise_value(row, type, at + i);
    }
}

/* The group's scale, in each of its lanes. fmaxf passes over NaN, as the comparison on the CPU does. */
__device__ inline float quantise_scale(const float value[QUANTISE_PIECE], bool power_of_two)
{
    float most = 1e-4f;
#pragma unroll
    for (int i = 0; i < QUANTISE_PIECE; i++)
        most = fmaxf(most, fabsf(value[i]));
    for (int lane = 1; lane < QUANTISE_LANES; lane *= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, lane));
    float scale = __fdiv_rn(most, 448.0f);
    return power_of_two ? number_power_of_two_above(scale) : scale;
}

__device__ inline uint4 quantise_codes(const float value[QUANTISE_PIECE], float scale)
{
    uint32_t word[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < QUANTISE_PIECE; i++)
        word[i / 4] |= (uint32_t)number_to_e4m3(__fdiv_rn(value[i], scale)) << (i % 4 * 8);
    return make_uint4(word[0], word[1], word[2], word[3]);
}

/* Stores the codes of one piece; at the end of a row, or where rows are not aligned, byte by byte. */
__device__ inline void quantise_store(unsigned char *to, uint4 codes, int32_t count)
{
    if (count >= QUANTISE_PIECE && copy_width(copy_bits(to)) == 16) {
        stream_store(to, codes);
        return;
    }
    const uint32_t word[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int i = 0; i < QUANTISE_PIECE; i++)
        if (i < count)
            to[i] = (unsigned char)(word[i / 4] >> (i % 4 * 8));
}

#endif
