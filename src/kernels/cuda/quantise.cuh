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

/* Sixteen values as a caller gave them; those of 16 bits take half of it. */
struct quantise_piece {
    uint4 part[4];
};

/* At a row's end, or where a caller's rows are not aligned. */
static __device__ __noinline__ void quantise_read_slowly(const unsigned char *row, enum exchange_type type, int32_t at,
                                                         int32_t hidden, struct quantise_piece *piece)
{
    int32_t size = type == EXCHANGE_FP32 ? 4 : 2;
    auto byte = (unsigned char *)piece;
    for (int32_t i = 0; i < QUANTISE_PIECE * size; i++)
        byte[i] = at * size + i < hidden * size ? row[(size_t)at * size + i] : 0;
}

/* Begins to load sixteen values of a row from `at`; fewer at its end, the rest is 0. */
__device__ inline struct quantise_piece quantise_read(const unsigned char *row, enum exchange_type type, int32_t at,
                                                      int32_t hidden)
{
    struct quantise_piece piece;
    if (at + QUANTISE_PIECE > hidden || copy_width(copy_bits(row)) != 16) {
        struct quantise_piece slowly; /* not `piece`, which would then have to lie in memory in every case */
        quantise_read_slowly(row, type, at, hidden, &slowly);
        return slowly;
    }
    auto part = (const uint4 *)(row + (size_t)at * (type == EXCHANGE_FP32 ? 4 : 2));
#pragma unroll
    for (int i = 0; i < 2; i++)
        piece.part[i] = part[i];
#pragma unroll
    for (int i = 2; i < 4; i++)
        if (type == EXCHANGE_FP32)
            piece.part[i] = part[i];
    return piece;
}

/* Waits for them. */
__device__ inline void quantise_values(const struct quantise_piece &piece, enum exchange_type type,
                                       float value[QUANTISE_PIECE])
{
    if (type == EXCHANGE_FP32) {
#pragma unroll
        for (int i = 0; i < QUANTISE_PIECE / 4; i++) {
            value[4 * i] = __uint_as_float(piece.part[i].x);
            value[4 * i + 1] = __uint_as_float(piece.part[i].y);
            value[4 * i + 2] = __uint_as_float(piece.part[i].z);
            value[4 * i + 3] = __uint_as_float(piece.part[i].w);
        }
        return;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint4 &part = piece.part[half];
        const uint32_t word[4] = {part.x, part.y, part.z, part.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 both = type == EXCHANGE_FP16 ? numbers_from_fp16(word[i]) : numbers_from_bf16(word[i]);
            value[8 * half + 2 * i] = both.x;
            value[8 * half + 2 * i + 1] = both.y;
        }
    }
}

/* Both, where nothing is gained by doing something in between. */
__device__ inline void quantise_load(const unsigned char *row, enum exchange_type type, int32_t at, int32_t hidden,
                                     float value[QUANTISE_PIECE])
{
    quantise_values(quantise_read(row, type, at, hidden), type, value);
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

/*
 * A value by its group's scale, rounded once, as on the CPU. A division would take a branch for each value; here a
 * product with 1 / scale is corrected by what is left of the value, twice: the first time to within one unit in the last place,
 * from which the second makes the nearest (Markstein, IA-64 and Elementary Functions, 2000). A scale is
 * positive and at least 1e-4 / 448. What the remainders of the smallest values lack makes no difference to a code: it is 0.
 */
__device__ __forceinline__ float quantise_divide(float value, float scale, float inverse)
{
    float product = __fmul_rn(value, inverse), quotient = product;
#pragma unroll
    for (int i = 0; i < 2; i++)
        quotient = __fmaf_rn(__fmaf_rn(-quotient, scale, value), inverse, quotient);
    return inverse == 0.0f ? product : copysignf(quotient, value); /* an infinite scale; -0 */
}

/* The codes of four values, the first at the lowest address. */
__device__ __forceinline__ uint32_t quantise_word(const float value[4], float scale)
{
    float quotient[4], inverse = __frcp_rn(scale);
#pragma unroll
    for (int i = 0; i < 4; i++)
        quotient[i] = quantise_divide(value[i], scale, inverse);
    return numbers_to_e4m3(quotient[0], quotient[1]) | numbers_to_e4m3(quotient[2], quotient[3]) << 16;
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
