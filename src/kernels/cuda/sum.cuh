// SPDX-License-Identifier: Apache-2.0
/*
 * Weighted sums of rows, 16 bytes of them per thread: fp32, from +0, part after part in their order, each product and
 * each sum rounded on its own, rounded once to the wire type (X15). Loads of up to four parts are under way before the
 * first is added; eight would not fit into the registers.
 */
#ifndef CUDA_SUM_CUH
#define CUDA_SUM_CUH

#include "kernels/cuda/cast.cuh"
#include "kernels/cuda/copy.cuh"
#include "muster/ep.h"

/* The rows that are added up to one. In shared memory. */
struct sum_parts {
    int32_t count;
    bool aligned; /* every row begins on 16 bytes */
    const unsigned char *row[MUSTER_EP_MAX_TOPK];
    float weight[MUSTER_EP_MAX_TOPK];
};

enum { SUM_FLIGHT = 4, SUM_PIECE = 16 };

/* Rows of a caller may begin on any element. */
__device__ inline uint4 sum_load(const unsigned char *from, bool aligned)
{
    if (aligned)
        return stream_load(from);
    const volatile uint16_t *half = (const volatile uint16_t *)from;
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        word[i] = half[2 * i] | (uint32_t)half[2 * i + 1] << 16;
    return make_uint4(word[0], word[1], word[2], word[3]);
}

__device__ inline void sum_store(unsigned char *to, uint4 piece, bool aligned)
{
    if (aligned) {
        stream_store(to, piece);
        return;
    }
    const uint32_t word[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        ((uint16_t *)to)[2 * i] = (uint16_t)word[i];
        ((uint16_t *)to)[2 * i + 1] = (uint16_t)(word[i] >> 16);
    }
}

__device__ __forceinline__ float sum_step(float total, float value, float weight)
{
    return __fadd_rn(total, __fmul_rn(value, weight));
}

/* Adds one piece of a row: eight values of bf16, or four of fp32. */
template <bool FP32> __device__ __forceinline__ void sum_add(float total[8], uint4 piece, float weight)
{
    const uint32_t word[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (FP32) {
            total[i] = sum_step(total[i], __uint_as_float(word[i]), weight);
            continue;
        }
        float2 value = numbers_from_bf16(word[i]);
        total[2 * i] = sum_step(total[2 * i], value.x, weight);
        total[2 * i + 1] = sum_step(total[2 * i + 1], value.y, weight);
    }
}

template <bool FP32> __device__ __forceinline__ uint4 sum_round(const float total[8])
{
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        word[i] = FP32 ? __float_as_uint(total[i]) : numbers_to_bf16(total[2 * i], total[2 * i + 1]);
    return make_uint4(word[0], word[1], word[2], word[3]);
}

/* The sum of the pieces at `at` of all parts. */
template <bool FP32> __device__ inline uint4 sum_pieces(const struct sum_parts *parts, size_t at)
{
    float total[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (int begin = 0; begin < parts->count; begin += SUM_FLIGHT) {
        uint4 piece[SUM_FLIGHT];
#pragma unroll
        for (int i = 0; i < SUM_FLIGHT; i++)
            if (begin + i < parts->count)
                piece[i] = sum_load(parts->row[begin + i] + at, parts->aligned);
#pragma unroll
        for (int i = 0; i < SUM_FLIGHT; i++)
            if (begin + i < parts->count)
                sum_add<FP32>(total, piece[i], parts->weight[begin + i]);
    }
    return sum_round<FP32>(total);
}

/* Adds the parts up to one row of `bytes`, by all threads of a block. */
__device__ inline void sum_row(const struct sum_parts *parts, bool fp32, unsigned char *to, size_t bytes)
{
    bool aligned = copy_width(copy_bits(to)) == 16;
    for (size_t at = (size_t)threadIdx.x * SUM_PIECE; at < bytes; at += (size_t)blockDim.x * SUM_PIECE)
        sum_store(to + at, fp32 ? sum_pieces<true>(parts, at) : sum_pieces<false>(parts, at), aligned);
}

#endif
