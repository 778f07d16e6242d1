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

/* At a row's end, or where a caller's rows are not aligned. */
static __device__ __noinline__ void quantise_load_slowly(const unsigned char *row, enum exchange_type type, int32_t at,
                                                         int32_t hidden, float *value)
{
    for (int i = 0; i < QUANTISE_PIECE; i++)
        value[i] = at + i < hidden ? quantise_value(row, type, at + i) : 0.0f;
}

/* Sixteen values of a row from `at`; fewer at its end, the rest is 0. */
__device__ inline void quantise_load(const unsigned char *row, enum exchange_type type, int32_t at, int32_t hidden,
                                     float value[QUANTISE_PIECE])
{
    if (at + QUANTISE_PIECE > hidden || copy_width(copy_bits(row)) != 16) {
        float slowly[QUANTISE_PIECE]; /* not `value`, which would then have to lie in memory in every case */
        quantise_load_slowly(row, type, at, hidden, slowly);
#pragma unroll
        for (int i = 0; i < QUANTISE_PIECE; i++)
            value[i] = slowly[i];
        return;
    }
    if (type == EXCHANGE_FP32) {
#pragma unroll
        for (int i = 0; i < QUANTISE_PIECE / 4; i++) {
            float4 four = *((const float4 *)((const float *)row + at) + i);
            value[4 * i] = four.x;
            value[4 * i + 1] = four.y;
            value[4 * i + 2] = four.z;
            value[4 * i + 3] = four.w;
        }
        return;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint4 piece = *((const uint4 *)((const uint16_t *)row + at) + half);
        const uint32_t word[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 both = type == EXCHANGE_FP16 ? numbers_from_fp16(word[i]) : numbers_from_bf16(word[i]);
            value[8 * half + 2 * i] = both.x;
            value[8 * half + 2 * i + 1] = both.y;
        }
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
    return numbers_to_e4m3(__fdiv_rn(value[0], scale), __fdiv_rn(value[1], scale)) |
           numbers_to_e4m3(__fdiv_rn(value[2], scale), __fdiv_rn(value[3], scale)) << 16;
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
