// SPDX-License-Identifier: Apache-2.0
/*
 * fp8 on the way: groups of 128 values share a scale. On the way out a thread holds 16 values, so eight neighbouring
 * lanes hold a group; its 16 codes are one store for each destination. For the way home see quantise_return.cuh.
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

/* The group's scale, in each of the lanes that hold its values. fmaxf passes over NaN, as the comparison on the CPU does. */
template <int VALUES = QUANTISE_PIECE> __device__ inline float quantise_scale(const float *value, bool power_of_two)
{
    float most = 1e-4f;
#pragma unroll
    for (int i = 0; i < VALUES; i++)
        most = fmaxf(most, fabsf(value[i]));
#pragma unroll
    for (int lane = 1; lane < MUSTER_EP_FP8_GROUP / VALUES; lane *= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, lane));
    float scale = __fdiv_rn(most, 448.0f);
    return power_of_two ? number_power_of_two_above(scale) : scale;
}

/* The codes of four values, the first at the lowest address. */
__device__ __forceinline__ uint32_t quantise_word(const float value[4], float scale)
{
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        word |= (uint32_t)number_to_e4m3(__fdiv_rn(value[i], scale)) << (i * 8);
    return word;
}

__device__ inline uint4 quantise_codes(const float value[QUANTISE_PIECE], float scale)
{
    return make_uint4(quantise_word(value, scale), quantise_word(value + 4, scale), quantise_word(value + 8, scale),
                      quantise_word(value + 12, scale));
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
