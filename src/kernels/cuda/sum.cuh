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
#include "kernels/exchange.h"
#include "muster/ep.h"

/* The rows that are added up to one. In shared memory. */
struct sum_parts {
    int32_t count;
    bool aligned; /* every row begins on 16 bytes */
    const unsigned char *row[MUSTER_EP_MAX_TOPK];
    float weight[MUSTER_EP_MAX_TOPK];
};

enum { SUM_FLIGHT = 4, SUM_PIECE = 16, SUM_LANE_PIECES = 2 };

/* ALIGNED: from and to places on 16 bytes. Rows of a caller may begin on any element; then this takes longer. */
template <bool ALIGNED> __device__ __forceinline__ uint4 sum_load(const unsigned char *from)
{
    if (ALIGNED)
        return stream_load(from);
    const volatile uint16_t *half = (const volatile uint16_t *)from;
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        word[i] = half[2 * i] | (uint32_t)half[2 * i + 1] << 16;
    return make_uint4(word[0], word[1], word[2], word[3]);
}

template <bool ALIGNED> __device__ __forceinline__ void sum_store(unsigned char *to, uint4 piece)
{
    if (ALIGNED) {
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

/* Adds one piece of a row: eight values of bf16 or fp16, or four of fp32. WEIGHTED false: the weight is 1. */
template <enum exchange_type TYPE, bool WEIGHTED = true>
__device__ __forceinline__ void sum_add(float total[8], uint4 piece, float weight)
{
    auto step = [&](float sum, float value) { return WEIGHTED ? sum_step(sum, value, weight) : __fadd_rn(sum, value); };
    const uint32_t word[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (TYPE == EXCHANGE_FP32) {
            total[i] = step(total[i], __uint_as_float(word[i]));
            continue;
        }
        float2 value = TYPE == EXCHANGE_FP16 ? numbers_from_fp16(word[i]) : numbers_from_bf16(word[i]);
        total[2 * i] = step(total[2 * i], value.x);
        total[2 * i + 1] = step(total[2 * i + 1], value.y);
    }
}

/* Word i of the sums' piece. */
template <enum exchange_type TYPE> __device__ __forceinline__ uint32_t sum_word(const float total[8], int i)
{
    switch (TYPE) {
    case EXCHANGE_BF16: return numbers_to_bf16(total[2 * i], total[2 * i + 1]);
    case EXCHANGE_FP16: return numbers_to_fp16(total[2 * i], total[2 * i + 1]);
    default: return __float_as_uint(total[i]);
    }
}

template <enum exchange_type TYPE> __device__ __forceinline__ uint4 sum_round(const float total[8])
{
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        word[i] = sum_word<TYPE>(total, i);
    return make_uint4(word[0], word[1], word[2], word[3]);
}

/*
 * Adds the next of so many parts, from `begin` on, to the totals of pieces that are `STEP` bytes apart, as far as those are
 * before `bytes`. No branch lies between loads that are under way together, and how many parts there are is known beforehand:
 * behind a load the compiler reads shared memory again, for which the next would wait. Of parts that are not aligned there is
 * one at a time: little code, that takes no registers from the other.
 */
template <enum exchange_type TYPE, bool WEIGHTED, bool ALIGNED, int PIECES, size_t STEP>
__device__ __forceinline__ void sum_flight(const struct sum_parts *parts, int begin, int count, size_t first,
                                           size_t bytes, float (*total)[8])
{
    enum { FLIGHT = ALIGNED ? SUM_FLIGHT : 1 };
    uint4 piece[PIECES][FLIGHT];
#pragma unroll
    for (int i = 0; i < FLIGHT; i++)
#pragma unroll
        for (int n = 0; n < PIECES; n++)
            if (begin + i < count && first + n * STEP < bytes)
                piece[n][i] = sum_load<ALIGNED>(parts->row[begin + i] + first + n * STEP);
#pragma unroll
    for (int i = 0; i < FLIGHT; i++)
#pragma unroll
        for (int n = 0; n < PIECES; n++)
            if (begin + i < count)
                sum_add<TYPE, WEIGHTED>(total[n], piece[n][i], WEIGHTED ? parts->weight[begin + i] : 1.0f);
}

/* Adds the pieces of all parts. */
template <enum exchange_type TYPE, bool WEIGHTED, bool ALIGNED, int PIECES, size_t STEP>
__device__ __forceinline__ void sum_totals(const struct sum_parts *parts, size_t first, size_t bytes, float (*total)[8])
{
    enum { FLIGHT = ALIGNED ? SUM_FLIGHT : 1 };
    int count = parts->count;
#pragma unroll 1
    for (int begin = 0; begin < count; begin += FLIGHT)
        sum_flight<TYPE, WEIGHTED, ALIGNED, PIECES, STEP>(parts, begin, count, first, bytes, total);
}

/* The sum of the pieces at `at` of all parts. */
template <enum exchange_type TYPE, bool ALIGNED, bool WEIGHTED = true>
__device__ __forceinline__ uint4 sum_pieces(const struct sum_parts *parts, size_t at)
{
    float total[8] = {};
    sum_totals<TYPE, WEIGHTED, ALIGNED, 1, SUM_PIECE>(parts, at, at + SUM_PIECE, &total);
    return sum_round<TYPE>(total);
}

/* The sum of rows of `bytes`, by all threads of a block. */
template <enum exchange_type TYPE, bool WEIGHTED = true>
__device__ __forceinline__ void sum_row(const struct sum_parts *parts, unsigned char *to, size_t bytes)
{
    if (parts->aligned && copy_width(copy_bits(to)) == 16)
        for (size_t at = (size_t)threadIdx.x * SUM_PIECE; at < bytes; at += (size_t)blockDim.x * SUM_PIECE)
            sum_store<true>(to + at, sum_pieces<TYPE, true, WEIGHTED>(parts, at));
    else
        for (size_t at = (size_t)threadIdx.x * SUM_PIECE; at < bytes; at += (size_t)blockDim.x * SUM_PIECE)
            sum_store<false>(to + at, sum_pieces<TYPE, false, WEIGHTED>(parts, at));
}

/* By a warp that has nobody beside it to hide what loads take: each lane has two pieces under way, of up to four parts each. */
template <enum exchange_type TYPE>
__device__ __forceinline__ void sum_row_by_lanes(const struct sum_parts *parts, unsigned char *to, size_t begin,
                                                 size_t end)
{
    enum { PIECES = SUM_LANE_PIECES, STEP = 32 * SUM_PIECE };
    for (size_t first = begin + (threadIdx.x & 31) * SUM_PIECE; first < end; first += PIECES * STEP) {
        float total[PIECES][8] = {};
        sum_totals<TYPE, false, true, PIECES, STEP>(parts, first, end, total);
#pragma unroll
        for (int n = 0; n < PIECES; n++)
            if (first + n * STEP < end)
                sum_store<true>(to + first + n * STEP, sum_round<TYPE>(total[n]));
    }
}

/* From byte `begin` to before `end`. */
template <enum exchange_type TYPE>
__device__ __forceinline__ void sum_row_by_warp(const struct sum_parts *parts, unsigned char *to, size_t begin,
                                                size_t end)
{
    if (parts->aligned && copy_width(copy_bits(to)) == 16)
        sum_row_by_lanes<TYPE>(parts, to, begin, end);
    else
        for (size_t at = begin + (threadIdx.x & 31) * SUM_PIECE; at < end; at += 32 * SUM_PIECE)
            sum_store<false>(to + at, sum_pieces<TYPE, false, false>(parts, at));
}

#endif
