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

/* Adds one piece of a row: eight values of bf16 or fp16, or four of fp32. */
template <enum exchange_type TYPE> __device__ __forceinline__ void sum_add(float total[8], uint4 piece, float weight)
{
    const uint32_t word[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (TYPE == EXCHANGE_FP32) {
            total[i] = sum_step(total[i], __uint_as_float(word[i]), weight);
            continue;
        }
        float2 value = TYPE == EXCHANGE_FP16 ? numbers_from_fp16(word[i]) : numbers_from_bf16(word[i]);
        total[2 * i] = sum_step(total[2 * i], value.x, weight);
        total[2 * i + 1] = sum_step(total[2 * i + 1], value.y, weight);
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

/* Adds the pieces at `at` of all parts to `total`. */
template <enum exchange_type TYPE>
__device__ inline void sum_totals(const struct sum_parts *parts, size_t at, float total[8])
{
    for (int begin = 0; begin < parts->count; begin += SUM_FLIGHT) {
        uint4 piece[SUM_FLIGHT];
#pragma unroll
        for (int i = 0; i < SUM_FLIGHT; i++)
            if (begin + i < parts->count)
                piece[i] = sum_load(parts->row[begin + i] + at, parts->aligned);
#pragma unroll
        for (int i = 0; i < SUM_FLIGHT; i++)
            if (begin + i < parts->count)
                sum_add<TYPE>(total, piece[i], parts->weight[begin + i]);
    }
}

/* The sum of the pieces at `at` of all parts. */
template <enum exchange_type TYPE> __device__ inline uint4 sum_pieces(const struct sum_parts *parts, size_t at)
{
    float total[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    sum_totals<TYPE>(parts, at, total);
    return sum_round<TYPE>(total);
}

__device__ inline uint4 sum_pieces_of(enum exchange_type type, const struct sum_parts *parts, size_t at)
{
    switch (type) {
    case EXCHANGE_BF16: return sum_pieces<EXCHANGE_BF16>(parts, at);
    case EXCHANGE_FP16: return sum_pieces<EXCHANGE_FP16>(parts, at);
    default: return sum_pieces<EXCHANGE_FP32>(parts, at);
    }
}

/* Adds the parts up to one row of `bytes`, by all threads of a block. */
__device__ inline void sum_row(const struct sum_parts *parts, enum exchange_type type, unsigned char *to, size_t bytes)
{
    bool aligned = copy_width(copy_bits(to)) == 16;
    for (size_t at = (size_t)threadIdx.x * SUM_PIECE; at < bytes; at += (size_t)blockDim.x * SUM_PIECE)
        sum_store(to + at, sum_pieces_of(type, parts, at), aligned);
}

/*
 * The same by a warp that has nobody beside it to hide what loads take: each lane has two pieces under way, of up to four
 * parts each.
 */
template <enum exchange_type TYPE>
__device__ inline void sum_row_by_warp(const struct sum_parts *parts, unsigned char *to, size_t bytes)
{
    enum { PIECES = 2, STEP = 32 * SUM_PIECE };
    bool aligned = copy_width(copy_bits(to)) == 16;
    for (size_t first = (threadIdx.x & 31) * SUM_PIECE; first < bytes; first += PIECES * STEP) {
        float total[PIECES][8] = {};
        for (int begin = 0; begin < parts->count; begin += SUM_FLIGHT) {
            uint4 piece[PIECES][SUM_FLIGHT];
#pragma unroll
            for (int i = 0; i < SUM_FLIGHT; i++)
#pragma unroll
                for (int n = 0; n < PIECES; n++)
                    if (begin + i < parts->count && first + n * STEP < bytes)
                        piece[n][i] = sum_load(parts->row[begin + i] + first + n * STEP, parts->aligned);
#pragma unroll
            for (int i = 0; i < SUM_FLIGHT; i++)
#pragma unroll
                for (int n = 0; n < PIECES; n++)
                    if (begin + i < parts->count)
                        sum_add<TYPE>(total[n], piece[n][i], parts->weight[begin + i]);
        }
#pragma unroll
        for (int n = 0; n < PIECES; n++)
            if (first + n * STEP < bytes)
                sum_store(to + first + n * STEP, sum_round<TYPE>(total[n]), aligned);
    }
}

/* The row of a warp's own token, in whatever type. */
__device__ inline void sum_row_of(enum exchange_type type, const struct sum_parts *parts, unsigned char *to,
                                  size_t bytes)
{
    switch (type) {
    case EXCHANGE_BF16: sum_row_by_warp<EXCHANGE_BF16>(parts, to, bytes); return;
    case EXCHANGE_FP16: sum_row_by_warp<EXCHANGE_FP16>(parts, to, bytes); return;
    default: sum_row_by_warp<EXCHANGE_FP32>(parts, to, bytes);
    }
}

#endif
