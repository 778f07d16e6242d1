// SPDX-License-Identifier: Apache-2.0
/*
 * Rows of results that go home as codes with their scales behind them (exchange_shape.quantise_return). A thread works
 * on 16 bytes of a row as the caller gives or gets it, as in sum.cuh: eight values of bf16 or fp16, or four of fp32. So
 * 16 or 32 neighbouring lanes hold a group; and since rows are multiples of 16 bytes, what a lane holds is all there or
 * not at all.
 */
#ifndef CUDA_QUANTISE_RETURN_CUH
#define CUDA_QUANTISE_RETURN_CUH

#include "kernels/cuda/quantise.cuh"
#include "kernels/cuda/sum.cuh"

/* What the types of rows make of a piece. */
template <enum exchange_type TYPE> struct return_piece {
    static constexpr int VALUES = TYPE == EXCHANGE_FP32 ? 4 : 8;
    static constexpr int LANES = MUSTER_EP_FP8_GROUP / VALUES; /* that hold a group */
};

/* ---------------------------------------------------------------------------------------------------------- sending */

/* The values of a piece as they are: not a sum, which would make +0 of -0. */
template <enum exchange_type TYPE> __device__ __forceinline__ void return_values(uint4 piece, float value[8])
{
    const uint32_t word[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (TYPE == EXCHANGE_FP32) {
            value[i] = __uint_as_float(word[i]);
            continue;
        }
        float2 both = TYPE == EXCHANGE_FP16 ? numbers_from_fp16(word[i]) : numbers_from_bf16(word[i]);
        value[2 * i] = both.x;
        value[2 * i + 1] = both.y;
    }
}

/*
 * Quantises one row of a block's, whose values piece(at, value) gives for the 16 bytes at `at`. All lanes of a warp go
 * round together: a group's lanes exchange their maximum.
 */
template <enum exchange_type TYPE, typename Piece>
__device__ inline void return_quantised(const struct exchange_shape &shape, unsigned char *to, Piece piece)
{
    const int values = return_piece<TYPE>::VALUES, lanes = return_piece<TYPE>::LANES;
    size_t pieces = shape.result_bytes / SUM_PIECE;
    for (size_t n = threadIdx.x; n < (pieces + 31) / 32 * 32; n += blockDim.x) {
        float value[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (n < pieces)
            piece(n * SUM_PIECE, value);
        float scale = quantise_scale<values>(value, shape.quantise_return == MUSTER_EP_QUANTISE_FP8_POW2);
        if (n >= pieces)
            continue;
        uint32_t low = quantise_word(value, scale);
        if (values == 8)
            *(uint2 *)(to + n * 8) = make_uint2(low, quantise_word(value + 4, scale));
        else
            *(uint32_t *)(to + n * 4) = low;
        if (n % lanes == 0)
            ((float *)(to + shape.return_scales))[n / lanes] = scale;
    }
}

/* The sum of the parts, quantised, by all threads of a block. X15: rounded once, from fp32 to codes. */
template <enum exchange_type TYPE>
__device__ inline void return_sum(const struct exchange_shape &shape, const struct sum_parts *parts, unsigned char *to)
{
    return_quantised<TYPE>(shape, to, [&](size_t at, float(&value)[8]) {
        if (parts->aligned)
            sum_totals<TYPE, true, true, 1, SUM_PIECE>(parts, at, at + SUM_PIECE, &value);
        else
            sum_totals<TYPE, true, false, 1, SUM_PIECE>(parts, at, at + SUM_PIECE, &value);
    });
}

/* One row, quantised, by all threads of a block. */
template <enum exchange_type TYPE>
__device__ inline void return_copy(const struct exchange_shape &shape, const unsigned char *from, unsigned char *to)
{
    bool aligned = copy_width(copy_bits(from)) == 16;
    return_quantised<TYPE>(shape, to, [&](size_t at, float(&value)[8]) {
        return_values<TYPE>(aligned ? sum_load<true>(from + at) : sum_load<false>(from + at), value);
    });
}

/* ---------------------------------------------------------------------------------------------------------- at home */

/* What a lane reads of one part: its codes, and the scale of their group. A peer has stored them. */
struct return_codes {
    uint32_t word[2];
    float scale;
};

template <enum exchange_type TYPE>
__device__ __forceinline__ struct return_codes return_load(const struct exchange_shape &shape, const unsigned char *row,
                                                           size_t n)
{
    struct return_codes in = {{0, 0},
                              ((const volatile float *)(row + shape.return_scales))[n / return_piece<TYPE>::LANES]};
    if (return_piece<TYPE>::VALUES == 4) {
        in.word[0] = ((const volatile uint32_t *)row)[n];
        return in;
    }
    uint64_t both = ((const volatile uint64_t *)row)[n];
    in.word[0] = (uint32_t)both;
    in.word[1] = (uint32_t)(both >> 32);
    return in;
}

/* Adds what the codes of one part stand for: each code * scale, each product and each sum rounded on its own. */
template <enum exchange_type TYPE>
__device__ __forceinline__ void return_add(float total[8], const struct return_codes &in, float weight)
{
#pragma unroll
    for (int i = 0; i < return_piece<TYPE>::VALUES; i += 2) {
        float2 value = numbers_from_e4m3((uint16_t)(in.word[i / 4] >> (i % 4 * 8)));
        total[i] = sum_step(total[i], __fmul_rn(value.x, in.scale), weight);
        total[i + 1] = sum_step(total[i + 1], __fmul_rn(value.y, in.scale), weight);
    }
}

/* As sum_pieces(), of piece n of rows that came home as codes. */
template <enum exchange_type TYPE>
__device__ inline uint4 return_pieces(const struct exchange_shape &shape, const struct sum_parts *parts, size_t n)
{
    float total[8] = {};
    int count = parts->count;
    for (int begin = 0; begin < count; begin += SUM_FLIGHT) {
        struct return_codes in[SUM_FLIGHT];
#pragma unroll
        for (int i = 0; i < SUM_FLIGHT; i++)
            if (begin + i < count)
                in[i] = return_load<TYPE>(shape, parts->row[begin + i], n);
#pragma unroll
        for (int i = 0; i < SUM_FLIGHT; i++)
            if (begin + i < count)
                return_add<TYPE>(total, in[i], parts->weight[begin + i]);
    }
    return sum_round<TYPE>(total);
}

/* As sum_row(), of rows that came home as codes. */
template <enum exchange_type TYPE>
__device__ inline void return_add_up(const struct exchange_shape &shape, const struct sum_parts *parts,
                                     unsigned char *to)
{
    bool aligned = copy_width(copy_bits(to)) == 16;
    for (size_t n = threadIdx.x; n < shape.result_bytes / SUM_PIECE; n += blockDim.x) {
        uint4 sum = return_pieces<TYPE>(shape, parts, n);
        if (aligned)
            sum_store<true>(to + n * SUM_PIECE, sum);
        else
            sum_store<false>(to + n * SUM_PIECE, sum);
    }
}

#endif
