// SPDX-License-Identifier: Apache-2.0
/*
 * Rows that several blocks, or warps, share: the host cuts them into parts (struct cuda_cut), of which each is a unit of
 * work. The parts of one row are units that follow one another.
 */
#ifndef CUDA_CUT_CUH
#define CUDA_CUT_CUH

#include "kernels/cuda/plan.cuh"

enum { CUT_LOG2_PARTS = 3 }; /* so many parts a row has at most, as a power of two */

/* What one part is of something that is counted, from `begin` to before `end`; those behind the last piece are empty. */
struct cut_share {
    int32_t begin, end;
};

/* So many blocks, or warps, share `rows` rows, `count` pieces or words long each, in whole units. On the host. */
static inline struct cuda_cut cut_rows(int32_t blocks, int32_t rows, int32_t count, int32_t unit)
{
    struct cuda_cut cut = {0, 0};
    while (cut.log2_parts < CUT_LOG2_PARTS && rows << (cut.log2_parts + 1) <= blocks)
        cut.log2_parts++;
    int32_t parts = 1 << cut.log2_parts;
    cut.size = plan_round_up((size_t)(count + parts - 1) / (size_t)parts, (size_t)unit);
    return cut;
}

/* The row that a unit of work belongs to. */
__device__ __forceinline__ int32_t cut_row(const struct cuda_cut &cut, int32_t unit)
{
    return unit >> cut.log2_parts;
}

/* Which of the row's parts it is. */
__device__ __forceinline__ int32_t cut_part(const struct cuda_cut &cut, int32_t unit)
{
    return unit & ((1 << cut.log2_parts) - 1);
}

/* What it is of the row's `count` pieces or words. */
__device__ __forceinline__ struct cut_share cut_share(const struct cuda_cut &cut, int32_t count, int32_t unit)
{
    int32_t begin = cut_part(cut, unit) * cut.size, end = begin + cut.size;
    return {begin < count ? begin : count, end < count ? end : count};
}

#endif
